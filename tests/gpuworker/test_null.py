"""The null worker: what it answers depends on the (token, position) sequence seen through the page table, and on all
of it; it samples as the torch worker does; its language round-trips."""

import contextlib
import itertools
import json
import math
import random
import struct
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

import jinja2
import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gpuworker import noise, nulltext, sampling
from gpuworker.backend import StepError
from gpuworker.null import NullBackend
from gpuworker.stepcost import StepCost
from gpuworker.wire import Answer, Ask, Batch, BatchDone, BatchHead, Draw, Edit, Row
from sdk.abi.errors import Errno
from sdk.abi.values import Sampling

SIZE = 4  # tokens a page
ALL = Ask(0, Draw(Sampling(temperature=0.8), 11, 5), top_k=5, logprobs_of=[65, 300], target=66, entropy=True)


def null(**options: object) -> NullBackend:
    defaults = {"page_size": SIZE, "n_pages": 64, "max_model_len": 64, "verify": True}
    return NullBackend(**(defaults | options))  # type: ignore[arg-type]


class File:
    """A file as a kernel keeps it: tokens with their positions, and a page table."""

    def __init__(self, worker: NullBackend, free: Iterator[int], pages: Sequence[int] = (), n: int = 0) -> None:
        self.worker, self.free, self.pages, self.n = worker, free, list(pages), n

    def row(self, tokens: Sequence[int], asks: Sequence[Ask]) -> Row:
        while len(self.pages) * SIZE < self.n + len(tokens):
            self.pages.append(next(self.free))
        row = Row(0, self.n, len(tokens), len(self.pages), list(asks))
        self.n += len(tokens)
        return row

    def append(
        self, tokens: Sequence[int], ask: Ask | None = None, positions: Sequence[int] | None = None
    ) -> Answer | None:
        """Computes `tokens` and asks after the last of them."""
        first, offset = self.n, len(tokens) - 1
        asks = [] if ask is None else [Ask(offset, *(getattr(ask, f) for f in ask.__struct_fields__[1:]))]
        row = self.row(tokens, asks)
        at = positions if positions is not None else range(first, self.n)
        batch = Batch(BatchHead(1, [], [row]), *(array("I", a) for a in (tokens, at, self.pages, [])))
        answers = self.worker.run(batch).head.rows[0].answers
        return answers[0] if answers else None

    def fork(self) -> "File":
        """Shares all pages but a partial last one, which is copied."""
        child = File(self.worker, self.free, self.pages, self.n)
        if self.n % SIZE:
            child.pages[-1] = next(self.free)
            head = BatchHead(1, [(self.pages[-1], child.pages[-1])], [])
            self.worker.run(Batch(head, *(array("I") for _ in range(4))))
        return child


def fresh(worker: NullBackend | None = None) -> File:
    return File(worker or null(), itertools.count())


def answer_of(tokens: Sequence[int], positions: Sequence[int] | None = None, ask: Ask = ALL) -> Answer:
    answer = fresh().append(tokens, ask, positions)
    assert answer is not None
    return answer


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 511), st.integers(0, 63)), min_size=1, max_size=20),
    st.lists(st.integers(1, 5), max_size=20),
    st.integers(0, 2**32),
)
def test_only_the_sequence_counts(sequence: list[tuple[int, int]], cuts: list[int], seed: int) -> None:
    """Whole, in chunks, and in whatever pages: the same answer."""
    tokens, positions = [t for t, _ in sequence], [p for _, p in sequence]
    numbers = random.Random(seed).sample(range(64), 64)
    file = File(null(), iter(numbers))
    chunks = [0, *(c for c in itertools.accumulate(cuts) if c < len(tokens)), len(tokens)]
    answer = None
    for a, b in itertools.pairwise(chunks):
        answer = file.append(tokens[a:b], ALL, positions[a:b])
    assert answer == answer_of(tokens, positions)
    assert file.append([], ALL) == answer  # the tail knows what comes next


def test_every_token_and_position_counts() -> None:
    tokens, positions = list(range(70, 80)), list(range(10))
    want = answer_of(tokens, positions)
    for i in range(10):
        changed = list(tokens)
        changed[i] += 1
        assert answer_of(changed, positions) != want
        moved = list(positions)
        moved[i] += 1
        assert answer_of(tokens, moved) != want
    assert answer_of(tokens[::-1], positions[::-1]) != want
    assert answer_of([0], [0]) != answer_of([0, 0], [0, 0])


def test_forks_go_their_own_ways_and_share_what_they_had() -> None:
    file = fresh()
    file.append([70, 71, 72, 73, 74, 75])
    a, b = file.fork(), file.fork()
    got = [f.append([80 + i], ALL) for i, f in enumerate((a, b, file))]
    assert got == [answer_of([70, 71, 72, 73, 74, 75, 80 + i]) for i in range(3)]
    assert a.pages[0] == b.pages[0] == file.pages[0]
    assert len({a.pages[1], b.pages[1], file.pages[1]}) == 3


def test_a_fork_asks_its_copied_tail() -> None:
    file = fresh()
    want = file.append([70, 71, 72, 73, 74, 75], ALL)
    child = file.fork()
    file.append([90])
    assert child.append([], ALL) == want


def test_a_missed_copy_changes_the_text() -> None:
    worker = null(verify=False)
    file = fresh(worker)
    file.append([70, 71, 72, 73, 74, 75])
    child = File(worker, file.free, [file.pages[0], next(file.free)], 6)
    assert child.append([80], ALL) != answer_of([70, 71, 72, 73, 74, 75, 80])


def test_copies_are_done_in_order_and_before_the_rows() -> None:
    worker = null()
    file = fresh(worker)
    file.append([70, 71])
    child = File(worker, file.free, [9], 2)
    batch = Batch(
        BatchHead(1, [(0, 8), (8, 9)], [child.row([80], [Ask(0, ALL.draw)]), file.row([81], [Ask(0, ALL.draw)])]),
        *(array("I", a) for a in ([80, 81], [2, 2], [9, 0], [])),
    )
    got = [r.answers[0].sample for r in worker.run(batch).head.rows]
    assert got == [answer_of([70, 71, t], ask=Ask(2, ALL.draw)).sample for t in (80, 81)]


def test_the_tail_is_read_before_the_step_moves_it() -> None:
    file = fresh()
    file.append([70, 71])
    row = file.row([72], [Ask(-1, ALL.draw), Ask(0, ALL.draw)])
    batch = Batch(BatchHead(1, [], [row]), *(array("I", a) for a in ([72], [2], file.pages, [])))
    before, after = file.worker.run(batch).head.rows[0].answers
    assert before.sample == answer_of([70, 71], ask=Ask(1, ALL.draw)).sample
    assert after.sample == answer_of([70, 71, 72], ask=Ask(2, ALL.draw)).sample


def test_verify_tells_of_a_stale_tail() -> None:
    """After a truncation the page's tails are of tokens that are gone; computing goes on well, asking does not."""
    file = fresh()
    file.append([70, 71, 72])
    file.n = 2
    with pytest.raises(AssertionError, match="out of date"):
        file.append([], ALL)
    assert file.append([73], ALL) == answer_of([70, 71, 73])


@given(st.integers(1, 12))
def test_a_surplus_token_leaves_the_tail_before_it(n: int) -> None:
    """Computed ahead and thrown away, in the same page or the next; and the file goes on as if it had never been."""
    file, tokens = fresh(), list(range(70, 70 + n))
    want = file.append(tokens, ALL)
    file.append([99])
    file.n, n_pages = n, -(-n // SIZE)
    surplus, file.pages = file.pages, file.pages[:n_pages]
    assert file.append([], ALL) == want
    file.pages = surplus
    assert file.append([80], ALL) == answer_of([*tokens, 80])


def test_a_fork_after_a_surplus_asks_the_tail_before_it() -> None:
    file = fresh()
    want = file.append([70, 71, 72, 73, 74], ALL)
    file.append([99])
    file.n = 5
    assert file.fork().append([], ALL) == want


def generated(n: int, chained: bool) -> list[tuple[list[int | None], bytes]]:
    """Samples and raw logits of n steps of three rows, which swap places after each step."""
    worker, free, draws = null(), itertools.count(), [Sampling(), Sampling(temperature=0.9), Sampling(temperature=2.0)]
    files, fed, steps = [File(worker, free) for _ in draws], [70, 71, 72], []
    for i in range(n):
        order = [(i + k) % 3 for k in range(3)]
        is_chained = chained and i > 0
        table = [files[j].row([0], [Ask(0, Draw(draws[j], j, i + 1), logits=True)]) for j in order]
        table = [msgspec.structs.replace(r, job=j, chained=is_chained) for r, j in zip(table, order, strict=True)]
        tokens = [0] * 3 if is_chained else [fed[j] for j in order]
        arrays = (tokens, [i] * 3, [p for j in order for p in files[j].pages], list[int]())
        done = worker.run(Batch(BatchHead(i, [], table), *(array("I", a) for a in arrays)))
        samples = {row.job: row.answers[0].sample for row in done.head.rows}
        fed = [samples[j] or 0 for j in range(3)]
        steps.append(([samples[j] for j in range(3)], bytes(done.logits)))
    return steps


def test_chained_rows_go_on_from_what_was_drawn() -> None:
    assert generated(12, chained=True) == generated(12, chained=False)


def test_a_chain_breaks_at_a_failure_and_after_a_batch_without_its_job() -> None:
    worker = null()
    draw, chained = Row(1, 0, 1, 1, [Ask(0, Draw(Sampling(), 0, 1))]), Row(1, 1, 1, 1, chained=True)

    def run(row: Row, *tokens: int) -> None:
        arrays = (tokens, range(row.n_before, row.n_before + row.n_new), [0] * row.n_pages, list[int]())
        worker.run(Batch(BatchHead(1, [], [row]), *(array("I", a) for a in arrays)))

    run(draw, 70)
    run(chained, 0)
    for between in (Row(2, 0, 0, 0), Row(1, 0, 0, 1)):  # a batch of another job; one that is refused
        run(draw, 70)
        with contextlib.suppress(StepError):
            run(between)
        with pytest.raises(StepError, match="job 1: it is chained") as e:
            run(chained, 0)
        assert e.value.errno == Errno.EINVAL


def moves(out: Sequence[tuple[int, int]] = (), back: Sequence[tuple[int, int]] = ()) -> Batch:
    return Batch(BatchHead(1, [], [], 0, list(out), list(back)), *(array("I") for _ in range(4)))


def test_pages_move_out_and_come_back_elsewhere() -> None:
    worker = null(n_host_pages=4)
    assert worker.info().n_host_pages == 4
    file = fresh(worker)
    want = file.append([70, 71, 72, 73, 74, 75], ALL)
    assert worker.run(moves(out=[(0, 3), (1, 0)])).head.move_s > 0
    File(worker, iter([0, 1])).append([90] * 8)
    worker.run(moves(back=[(3, 40), (0, 41)]))
    back = File(worker, itertools.count(50), [40, 41], 6)
    assert back.append([], ALL) == want
    assert back.append([76], ALL) == answer_of([70, 71, 72, 73, 74, 75, 76])


def test_moves_go_with_the_rows_of_others() -> None:
    worker = null()
    file, other = fresh(worker), File(worker, iter([20]))
    want = file.append([70, 71], ALL)
    row = other.row([80], [Ask(0, ALL.draw)])
    head = BatchHead(1, [(5, 6)], [row], 0, [(0, 9)])
    done = worker.run(Batch(head, *(array("I", a) for a in ([80], [0], [20], list[int]()))))
    assert done.head.rows[0].answers[0].sample == answer_of([80], ask=Ask(0, ALL.draw)).sample
    worker.run(moves(back=[(9, 7)]))
    assert File(worker, iter([]), [7], 2).append([], ALL) == want


def test_a_host_page_never_written_is_told_of() -> None:
    worker = null()
    worker.run(moves(back=[(5, 0)]))
    with pytest.raises(AssertionError, match="nothing was ever written"):
        File(worker, iter([]), [0], 2).append([], ALL)


def edited(worker: NullBackend, *edits: Edit) -> None:
    worker.run(Batch(BatchHead(1, [], [], edits=list(edits)), *(array("I") for _ in range(4))))


def test_slots_are_copied_to_other_pages_and_positions() -> None:
    """Of tokens 70 … 75 at 0 … 5: 71 to 74, at 3 … 6, which a file that was computed so has as well."""
    worker = null()
    file = fresh(worker)
    file.append([70, 71, 72, 73, 74, 75], ALL)
    edited(worker, Edit(0, 1, 20, 0, 3, 2), Edit(1, 0, 20, 3, 1, 2))
    cut, computed = File(worker, itertools.count(21), [20], 4), fresh(null())
    computed.append([71, 72, 73, 74], ALL, positions=[3, 4, 5, 6])
    for token in (7, 8):
        assert cut.append([token], ALL, positions=[token]) == computed.append([token], ALL, positions=[token])
    assert file.append([76], ALL) == answer_of([70, 71, 72, 73, 74, 75, 76])


def test_an_edit_takes_origins_along_and_leaves_tails() -> None:
    worker = null()
    fresh(worker).append([70, 71, 72])
    edited(worker, Edit(0, 2, 20, 0, 1, -2))
    before, after = (array("Q", worker.fetch([page])) for page in (0, 20))
    assert after[2 * SIZE] == before[2 * SIZE + 2] != 0  # where it was computed
    assert list(after[3 * SIZE :]) == [0, 0]
    assert before[3 * SIZE + 1] == before[2 * SIZE + 2]


def test_a_slot_that_was_never_written_or_goes_below_zero_is_told_of() -> None:
    worker = null()
    fresh(worker).append([70, 71])
    for edit in (Edit(0, 2, 20, 0, 1), Edit(0, 0, 20, 0, 2, -1)):
        with pytest.raises(AssertionError, match="was never written, or moves beyond"):
            edited(worker, edit)


def test_as_many_host_pages_as_pages_unless_it_is_told() -> None:
    assert null(n_pages=7).info().n_host_pages == 7
    with pytest.raises(StepError, match="this worker has none"):
        null(n_host_pages=0).run(moves(out=[(0, 0)]))


def test_pages_can_be_sent_to_another_worker() -> None:
    source, target = fresh(), null()
    want = source.append([70, 71, 72, 73, 74, 75], ALL)
    contents = source.worker.fetch([1, 0])
    assert len(contents) == 2 * target.info().page_bytes
    target.store([30, 31], memoryview(contents))
    assert target.fetch([30, 31]) == contents
    copy = File(target, itertools.count(), [31, 30], 6)
    assert copy.append([], ALL) == want
    assert copy.append([76], ALL) == answer_of([70, 71, 72, 73, 74, 75, 76])
    n_pages, n_host_pages = target.info().n_pages, target.info().n_host_pages
    for pages, bad in (([n_pages + n_host_pages], contents[: len(contents) // 2]), ([0], contents)):
        with pytest.raises(StepError) as e:
            target.store(pages, bad)
        assert e.value.errno == Errno.EINVAL
    target.run(moves(out=[(31, 5)]))
    assert target.fetch([n_pages + 5, 30]) == target.fetch([31, 30])
    with pytest.raises(StepError):
        target.fetch([n_pages + n_host_pages])
    target.store([n_pages + 6, 33], contents)
    target.run(moves(back=[(6, 32)]))
    assert target.fetch([32, 33]) == contents


def test_a_step_takes_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    cost = StepCost(step_s=0.001, row_s=0.01, token_s=0.1, context_s=1.0)
    fresh(null(cost=cost)).append([70, 71, 72])
    fresh(null()).append([70, 71, 72])
    null(cost=cost).run(moves(out=[(0, 0)]))
    assert slept == [cost.cost(1, 3, 3)]


def test_verify_tells_of_a_slot_never_written() -> None:
    file = fresh()
    file.n = 3
    with pytest.raises(AssertionError, match="token 0"):
        file.append([70])


def test_no_row_may_see_what_another_writes() -> None:
    worker = null()
    file = fresh(worker)
    file.append([70, 71, 72, 73, 74])
    writer = file.row([75], [])
    reader = Row(1, 5, 0, 2, [Ask(-1)])  # the five tokens of before: the same page, other slots
    peeper, rival = Row(1, 6, 0, 2, [Ask(-1)]), Row(1, 5, 1, 2)

    def run(other: Row) -> BatchDone:
        new = [75] * (1 + other.n_new)
        arrays = (array("I", a) for a in (new, [5] * len(new), [0, 1, 0, 1], list[int]()))
        return worker.run(Batch(BatchHead(1, [], [writer, other]), *arrays))

    run(reader)
    for other, complaint in ((peeper, "written by another row"), (rival, "another writer")):
        with pytest.raises(StepError, match=complaint) as e:
            run(other)
        assert e.value.errno == Errno.EINVAL


def dense(hidden: int, vocab_size: int = 512) -> torch.Tensor:
    return torch.tensor([nulltext.row(hidden, vocab_size)])


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7, 5.0, 100.0]),
    top_k=st.sampled_from([0, 1, 3, 8, 20, 600]),
    top_p=st.sampled_from([0.1, 0.6, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.5, 0.6]),
    frequency_penalty=st.sampled_from([0.0, 1.1]),
    presence_penalty=st.sampled_from([0.0, -0.4]),
    logit_bias=st.dictionaries(st.integers(0, 511), st.sampled_from([-1e9, -2.0, 45.0]), max_size=2),
)


@settings(max_examples=200, deadline=None, derandomize=True)  # a cut may fall between fp32 and fp64
@given(st.integers(0, 2**64 - 1), samplings, st.integers(0, 2**64 - 1), st.integers(0, 3))
def test_it_answers_as_the_torch_sampler_does(hidden: int, s: Sampling, seed: int, position: int) -> None:
    """The same logits, the same noise, the same order: but for fp32's rounding, the same token."""
    history = [*nulltext.ranked(nulltext.likely(hidden))[:3], 400, 400]
    ask = Ask(0, Draw(s, seed, position, 5, 3), top_k=12, logprobs_of=[65, 258], target=70, entropy=True, logits=True)
    got = nulltext.answer(hidden, ask, history, 512)
    (want,) = sampling.answers(dense(hidden), [ask], [history])
    assert got.sample == want.sample
    assert got.sample_logprob == pytest.approx(want.sample_logprob, abs=1e-4)
    assert got.logprobs_of == pytest.approx(want.logprobs_of, abs=1e-4)
    assert (got.target_logprob, got.entropy) == pytest.approx((want.target_logprob, want.entropy), abs=1e-4)
    assert got.top_logprobs == pytest.approx(want.top_logprobs, abs=1e-4)
    likely = len(nulltext.likely(hidden))
    assert got.top_tokens[:likely] == want.top_tokens[:likely]
    assert got.has_logits


def test_it_draws_the_unlikely_as_often_at_high_temperatures() -> None:
    """Where the rest of the vocabulary comes within reach of the noise, and where it just does not."""
    for temperature in (1.4, 1.8, 5.0):
        asks = [Ask(0, Draw(Sampling(temperature=temperature), 1, i)) for i in range(300)]
        got = [nulltext.answer(77, ask, [], 512).sample for ask in asks]
        want = [a.sample for a in sampling.answers(dense(77).expand(300, -1), asks, [[]] * 300)]
        assert got == want
        assert any(t not in nulltext.likely(77) for t in got) == (temperature == 5.0)


def test_raw_logits_come_row_after_row() -> None:
    file = fresh()
    row = file.row([70, 71, 72], [Ask(0, logits=True), Ask(1), Ask(2, logits=True, top_k=1)])
    batch = Batch(BatchHead(1, [], [row]), *(array("I", a) for a in ([70, 71, 72], [0, 1, 2], file.pages, [])))
    done = file.worker.run(batch)
    logits = struct.unpack(f"<{2 * 512}f", done.logits)
    first, last = logits[:512], logits[512:]
    (best,) = done.head.rows[0].answers[2].top_tokens
    assert last[best] == max(last)
    assert first != last
    z = math.log(sum(map(math.exp, last)))
    assert done.head.rows[0].answers[2].top_logprobs == pytest.approx([last[best] - z])


def test_text_is_printable_and_does_not_end_by_itself() -> None:
    file = fresh(null(max_model_len=512, n_pages=128))
    text = [72]
    while len(text) < 400:
        answer = file.append(text[-1:], Ask(0, Draw(Sampling(temperature=1.0), 3, len(text))))
        assert answer is not None
        assert answer.sample is not None
        text.append(answer.sample)
    assert all(32 <= t < 127 for t in text)
    assert len(Counter(text)) > 60


def test_the_end_of_sequence_can_be_asked_for() -> None:
    s = Sampling(logit_bias={nulltext.EOS: 100.0})
    assert answer_of([70], ask=Ask(0, Draw(s, 1, 1))).sample in null().info().model.eos_tokens


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(null().assets().tokenizer_json)


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    ids = tokenizer().encode(text, add_special_tokens=False).ids
    assert tokenizer().decode(ids, skip_special_tokens=False) == text
    if not any(t in text for t in nulltext.SPECIAL_TOKENS):
        assert bytes(ids) == text.encode()


def test_every_token_has_a_text_and_special_ones_are_one_token() -> None:
    words = tokenizer()
    assert words.get_vocab_size() == 512
    assert words.encode("<|im_start|>user\n", add_special_tokens=False).ids == [256, *b"user\n"]
    assert words.token_to_id("<|im_end|>") == nulltext.IM_END
    assert words.token_to_id("<eos>") == nulltext.EOS
    assert json.loads(null().assets().tokenizer_json)["model"]["merges"] == []


def test_the_template_is_chatml() -> None:
    template = jinja2.Template(null().assets().chat_template or "")
    messages = [{"role": "user", "content": "hi"}]
    text = template.render(messages=messages, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_likely_are_out_of_reach_of_the_rest() -> None:
    """What lets the sampler leave the rest aside at ordinary temperatures."""
    assert -nulltext.REST > noise.SPREAD
    assert all(0 <= v < 4 for h in range(200) for v in nulltext.likely(h).values())
