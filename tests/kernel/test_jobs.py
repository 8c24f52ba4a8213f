"""A pred cut into steps asks the same questions as one in a single step."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from gpuworker.wire import Answer
from kernel.jobs import N_LOGITS_MAX, PredJob, Sent, needs_history
from sdk.abi.values import Sampling, Want


def make(n_tokens, want, *, n_file=5, again=False):
    job = PredJob(
        SimpleNamespace(), list(range(100, 100 + n_tokens)), list(range(n_file, n_file + n_tokens)), want,
        last_token=99, last_position=n_file - 1, seed=1, history=lambda: list(range(n_file)),
        on_done=lambda _: None, on_fail=lambda _: None,
    )  # fmt: skip
    job.n_file = n_file
    if again:
        job.again()
    return job


def run(job, limit, depth=1, failures=()):
    """What the worker sees: (token, position) of each step, and for each ask the token it comes after. `depth` steps
    are in flight; those that are when the n-th is sent, n in `failures`, are refused."""
    fed, asked, n_sent = [], [], 0
    while not job.over:
        while len(job.sent) < depth and job.ready:
            step = job.next_step(limit)
            assert 0 <= len(step.tokens) <= limit
            assert len(step.tokens) == len(step.positions)
            job.sent.append(Sent(job, step, None))
            n_sent += 1
        if n_sent in failures:
            failures = [n for n in failures if n > n_sent]
            while job.sent:
                job.retract(job.sent.pop().step)
            continue
        step = job.sent.pop(0).step
        fed += list(zip(step.tokens, step.positions, strict=True))
        answers = []
        for ask in step.asks:
            after = fed[len(fed) - len(step.tokens) + ask.offset] if ask.offset >= 0 else (99, job.last_position)
            asked.append(after)
            answers.append(Answer(target_logprob=-float(after[1])))
        job.took(step, answers, [])
    return fed, asked


@given(st.integers(1, 30), st.integers(1, 8), st.data())
def test_any_cut_asks_the_same(n_tokens, limit, data):
    at = data.draw(st.lists(st.integers(-1, n_tokens - 1), unique=True, max_size=6))
    again = data.draw(st.booleans())
    job = make(n_tokens, Want(at=at, targets=[7] * len(at)), again=again)
    failures = sorted(data.draw(st.lists(st.integers(1, 12), max_size=3)))
    fed, asked = run(job, limit, data.draw(st.integers(1, 2)), failures)
    expected = list(zip(job.tokens, job.positions, strict=True))
    assert fed == ([(99, 4)] if again else []) + expected
    assert sorted(asked) == sorted([(99, 4), *expected][offset + 1] for offset in at)
    result = job.result()
    assert [d.position for d in result] == [offset + 5 for offset in at]
    assert [d.target_logprob for d in result] == [-float(offset + 5) for offset in at]
    assert job.n_prompt_tokens == len(fed)


def test_raw_logits_come_in_portions():
    job = make(200, Want(at=list(range(200)), logits=True))
    assert len(job.next_step(1000).asks) == N_LOGITS_MAX


def test_penalties_send_what_was_before():
    sampling = Sampling(temperature=1.0, repetition_penalty=1.2)
    assert needs_history(sampling)
    job = make(3, Want(at=[-1, 2], sample=sampling))
    step = job.next_step(10)
    assert list(step.history) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 100, 101, 102]
    assert [ask.draw.n_history for ask in step.asks] == [5, 8]
    assert [ask.draw.position for ask in step.asks] == [5, 8]
