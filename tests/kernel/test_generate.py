"""`generate`'s loop, driven step by step against a plain list for a file, with no kernel around it."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworker import nulltext
from gpuworker.wire import Answer
from kernel.generate import GenerateJob
from kernel.jobs import Sent
from kernel.language import Language
from sdk.abi.values import Chunk, Decoding, FinishReason, Sampling

LANGUAGE = Language(nulltext.assets(512))
EOS = 9999
PROMPT = LANGUAGE.encode("prompt:")
NONSENSE = 300


class Run:
    """One generation over a scripted model: the n-th draw is the n-th token of the script, and after those nonsense.

    With `depth` 2 each step is sent while the one before it is in flight, as the batcher does."""

    def __init__(
        self,
        script,
        decoding,
        *,
        prompt=PROMPT,
        file=(),
        n_room=1000,
        budget=1000,
        tail_valid=True,
        depth=1,
        failures=(),
        stream=True,
    ):
        self.file = list(file)  # as committed
        self.computed = 0  # and counted
        self.n_surplus = 0
        self.chunks: list[Chunk] = []
        self.drawn_at: list[int] = []
        self.biases: list[dict] = []
        self.done = []
        self.script = iter(script)
        job = self.job = GenerateJob(
            SimpleNamespace(),
            list(prompt),
            decoding,
            language=LANGUAGE,
            eos_tokens=frozenset([EOS]),
            n_room=n_room,
            next_position=len(self.file),
            last_token=self.file[-1] if self.file else 0,
            seed=7,
            history=lambda: self.file,
            on_done=self.done.append,
            on_fail=pytest.fail,
            on_chunk=self.chunks.append if stream else None,
        )
        job.n_file = len(self.file)
        if not tail_valid:
            job.again()
        n_sent = 0
        while not job.over:
            while len(job.sent) < depth and job.ready:
                job.sent.append(Sent(job, self.send(job, budget), None))
                n_sent += 1
            if n_sent in failures:  # the worker refuses what is in flight
                failures = [n for n in failures if n > n_sent]
                while job.sent:
                    job.retract(job.sent.pop().step)
                continue
            self.take(job)
        job.finish()
        self.result = self.done[0]

    def send(self, job, budget):
        step = job.next_step(min(budget, max(1, job.n_wanted)))
        assert len(step.tokens) <= budget
        assert step.chained == bool(job.sent and job.sent[-1].step.asks)
        return step

    def take(self, job):
        """The oldest step in flight is computed."""
        sent = job.sent.pop(0)
        step = sent.step
        tokens = [sent.lease] if step.chained else list(step.tokens)  # what was drawn is noted in the lease's place
        if step.n_again:
            assert self.file.pop() == tokens[0]
        self.file.extend(tokens)
        self.computed += len(tokens)
        answers = []
        for ask in step.asks:
            assert ask.offset == len(tokens) - 1
            assert ask.draw.position == len(self.file)
            self.drawn_at.append(ask.draw.position)
            self.biases.append(ask.draw.sampling.logit_bias)
            answers.append(Answer(next(self.script, NONSENSE), -1.0))
        job.took(step, answers, [])
        if job.sent:
            if job.surplus:
                assert job.sent.pop().step.chained
                self.n_surplus += 1
            elif answers:
                job.sent[0].lease = answers[-1].sample
        job.tell()
        if job.truncate_to is not None:
            del self.file[job.truncate_to :]
            job.truncate_to = None


def words(text):
    return LANGUAGE.encode(text)


def check(run, file=(), prompt=PROMPT):
    """What holds after every generation."""
    result = run.result
    assert run.file == [*file, *prompt, *result.tokens], "the file is the prompt and the returned tokens"
    assert LANGUAGE.decode(result.tokens, skip_special=True) == result.text
    assert "".join(c.text for c in run.chunks) == result.text
    assert [t for c in run.chunks for t in c.tokens] == result.tokens
    assert [c.finish for c in run.chunks if c.finish] == [result.finish]
    assert run.chunks[-1].finish is result.finish


def test_length():
    run = Run(words("abcdef"), Decoding(max_tokens=4))
    check(run)
    assert (run.result.text, run.result.finish) == ("abcd", FinishReason.LENGTH)
    assert run.computed == len(PROMPT) + 4, "each token is computed once"


def test_end_of_sequence_is_neither_text_nor_file():
    run = Run([*words("ab"), EOS], Decoding())
    check(run)
    assert run.result.text == "ab"
    assert run.result.stop_reason is None
    assert run.result.n_sampled == 3
    assert run.computed == len(PROMPT) + 2


def test_ignore_eos():
    run = Run([*words("ab"), EOS, *words("c")], Decoding(ignore_eos=True, max_tokens=4))
    assert run.result.tokens == [*words("ab"), EOS, *words("c")]


def test_stop_token():
    (x,) = words("x")
    run = Run(words("abx"), Decoding(stop_tokens=[x]))
    check(run)
    assert (run.result.text, run.result.stop_reason) == ("ab", x)
    kept = Run(words("abx"), Decoding(stop_tokens=[x], include_stop=True))
    check(kept)
    assert kept.result.text == "abx"


def test_stop_string_is_cut_off_again():
    run = Run(words("one STOP two"), Decoding(stop=[" STOP"]))
    check(run)
    assert (run.result.text, run.result.stop_reason, run.result.finish) == ("one", " STOP", FinishReason.STOP)
    assert run.computed == len(PROMPT) + len("one STO"), "the token that completes the stop is not computed"


def test_stop_string_kept_computes_each_token_once():
    run = Run(words("one STOP two"), Decoding(stop=["STOP"], include_stop=True))
    check(run)
    assert run.result.text == "one STOP"
    assert run.computed == len(run.file)


def test_the_earliest_stop_wins():
    run = Run(words("ab12cd"), Decoding(stop=["2c", "12"]))
    assert (run.result.text, run.result.stop_reason) == ("ab", "12")


def test_a_stop_inside_a_character_of_several_tokens():
    run = Run(words("aé!"), Decoding(stop=["é"]))
    check(run)
    assert run.result.text == "a"


def test_streaming_holds_back_what_may_be_a_stop():
    run = Run(words("say STO, no"), Decoding(stop=["STOP"], max_tokens=11))
    check(run)
    assert not any(c.text.endswith("STO") for c in run.chunks)


def test_half_characters_are_held_back():
    run = Run(words("é" * 3), Decoding(max_tokens=6))
    check(run)
    assert all("\ufffd" not in c.text for c in run.chunks)
    cut = Run(words("é"), Decoding(max_tokens=1))
    assert cut.result.text == "\ufffd"


def test_min_tokens_forbids_the_stops():
    run = Run(words("abcd"), Decoding(min_tokens=2, max_tokens=4, stop=["c"], sampling=Sampling(logit_bias={5: 1.0})))
    assert run.biases[0][EOS] < -1e8
    assert run.biases[0][5] == 1.0
    assert EOS not in run.biases[2]
    assert run.result.text == "ab", "after two tokens the stop string counts"
    early = Run(words("cab"), Decoding(min_tokens=2, max_tokens=3, stop=["c"]))
    assert early.result.text == "cab", "what came before does not stop it later"


def test_no_prompt_samples_after_the_file():
    file = words("before")
    run = Run(words("xy"), Decoding(max_tokens=2), prompt=[], file=file)
    check(run, file, [])
    assert run.drawn_at == [6, 7]
    assert run.computed == 2


def test_a_lost_tail_is_computed_again():
    file = words("before")
    run = Run(words("xy"), Decoding(max_tokens=2), prompt=[], file=file, tail_valid=False)
    check(run, file, [])
    assert run.drawn_at == [6, 7]
    assert run.computed == 3


def test_the_context_ends_it():
    run = Run(words("abcdef"), Decoding(), n_room=3)
    check(run)
    assert (run.result.text, run.result.finish) == ("abc", FinishReason.LENGTH)
    full = Run([], Decoding(), n_room=0)
    check(full)
    assert full.result.tokens == []


TEXT = st.text(alphabet="ab é!", min_size=1, max_size=30)


@given(
    TEXT,
    st.lists(st.text(alphabet="ab é", min_size=1, max_size=3), max_size=3),
    st.integers(1, 12),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 40)),
    st.integers(1, 2),
    st.lists(st.integers(1, 20), max_size=3),
)
def test_any_text_any_stop(text, stops, budget, include, n_max, depth, failures):
    script = words(text)
    n = len(script) if n_max is None else min(n_max, len(script))
    decoding = Decoding(stop=stops, include_stop=include, max_tokens=n)
    run = Run(script, decoding, budget=budget, depth=depth, failures=sorted(failures))
    result = run.result
    shown = LANGUAGE.decode(script[:n])
    hits = [(shown.find(s), s) for s in stops if s in shown]
    if hits:
        # the first stop to be *completed* ends the generation; of those completed together the leftmost
        end = min(shown.find(s) + len(s) for s in stops if s in shown)
        at, stop = min((shown.find(s), s) for s in stops if s in shown and shown.find(s) + len(s) == end)
        assert result.text == (shown[: at + len(stop)] if include else shown[:at])
        assert result.finish is FinishReason.STOP
    else:
        assert result.text == shown
        assert result.finish is FinishReason.LENGTH
    if "\ufffd" not in result.text:
        check(run)


@pytest.mark.parametrize("decoding", [Decoding(max_tokens=4), Decoding(max_tokens=4, logprobs=2), Decoding(stop=["d"])])
def test_a_length_is_known_ahead_and_costs_nothing(decoding):
    alone, ahead = Run(words("abcd"), decoding), Run(words("abcd"), decoding, depth=2)
    check(ahead)
    assert ahead.result == alone.result
    assert ahead.n_surplus == (1 if decoding.stop else 0)


def test_a_stop_is_seen_one_step_late():
    run = Run([*words("ab"), EOS], Decoding(), depth=2)
    check(run)
    assert run.result.text == "ab"
    assert run.n_surplus == 1, "the step that feeds the end of sequence"
    assert run.computed == len(PROMPT) + 2
    kept = Run([*words("ab"), EOS], Decoding(include_stop=True, stop_tokens=[EOS]), depth=2)
    assert kept.result.tokens == [*words("ab"), EOS]
    assert kept.n_surplus == 0, "that token is part of the text"
    assert kept.file == [*PROMPT, *kept.result.tokens]


def test_penalties_wait_for_the_draw():
    run = Run(words("abcd"), Decoding(max_tokens=4, sampling=Sampling(frequency_penalty=0.5)), depth=2)
    check(run)
    assert run.result.text == "abcd"


def test_text_that_nobody_follows_is_decoded_at_the_end():
    for script in (words("aé!"), words("é")[:1]):
        followed = Run(script, Decoding(max_tokens=len(script)))
        alone = Run(script, Decoding(max_tokens=len(script)), stream=False)
        assert alone.result == followed.result
