"""The batcher with a real null worker behind it, one call at a time: what goes into a batch, and that whatever
happens to batches, files and memory, every job ends once, with what it would have got in peace."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworker.wire import Answer, BatchDone, BatchDoneHead, BatchFailed, RowDone
from kernel.batcher import WorkerFault
from kernel.generate import GenerateJob
from kvfs.access import Who
from sdk.abi.errors import Errno, SyscallError
from tests.kernel.rig import STEP_S, Rig, shapes

# --- what goes into a batch -------------------------------------------------------------------------------------


def test_what_is_pending_goes_out_together():
    rig = Rig()
    for _ in range(3):
        rig.pred(5)
    assert shapes(rig.plan()) == [(1, 0, 5), (2, 0, 5), (3, 0, 5)]
    rig.run()
    assert all(isinstance(r, list) for r in rig.results.values())
    assert rig.plan() is None
    rig.close()


def test_a_generation_is_one_batch_ahead():
    rig = Rig()
    rig.generate("abc", 6)
    first, second = rig.plan(), rig.plan()
    assert [r.chained for r in first.head.rows + second.head.rows] == [False, True]
    assert rig.plan() is None, "two are in flight"
    rig.close()
    assert len(rig.results[0].tokens) == 6
    assert rig.counters.n_surplus_tokens == 0


def test_a_program_that_decides_is_waited_for_when_it_is_worth_it():
    rig = Rig()
    for _ in range(3):
        rig.pred(1)
        rig.step()  # what a step takes is known from now on
    rig.generate("a", 8, pid=1)
    job = rig.pred(2, pid=2)
    rig.plan()
    rig.now += 0.9 * STEP_S
    assert rig.plan() is None, "its next call can join"
    rig.run()
    rig.pred(1, file=job.file, pid=2)
    assert len(rig.plan().head.rows) == 2
    rig.close()


def test_a_long_prompt_is_cut_and_short_steps_go_first():
    rig = Rig(max_tokens=32)
    rig.pred(70)
    rig.plan()
    rig.pred(1)
    rig.run()
    assert shapes(rig.plan()) == [(2, 0, 1), (1, 32, 31)]
    rig.close()


def test_no_more_rows_than_the_worker_takes():
    rig = Rig(max_rows=4)
    for _ in range(6):
        rig.pred(1)
    assert len(rig.plan().head.rows) == 4
    rig.run()
    assert len(rig.plan().head.rows) == 2
    rig.close()


def test_surplus_work_is_dropped_and_the_tail_stays_good():
    rig = Rig()
    calm = Rig()
    calm.generate("abc", 30, pid=3)
    calm.finish()
    text = calm.results[0].text
    rig.generate("abc", 30, pid=3, stop=[text[4]])
    rig.finish()
    assert rig.results[0].text == text[: text.index(text[4])]
    assert rig.counters.n_surplus_tokens == 1
    assert rig.fs.length(rig.files[0]) == 3 + len(rig.results[0].tokens)
    assert sum(a.n_tokens for a in rig.accounts.values()) == 3 + len(rig.results[0].tokens) + 0
    rig.close()


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_a_cancelled_pred_leaves_the_file_as_it_was():
    rig = Rig()
    first = rig.pred(3)
    rig.step()
    job = rig.pred(5, file=first.file)
    rig.plan()
    rig.batcher.cancel(job, 0.0)
    assert rig.fs.length(first.file) == 3
    rig.run()
    assert rig.fs.length(first.file) == 3
    assert rig.results[1] is None
    rig.close()


def test_a_cancelled_generation_keeps_what_it_had():
    rig = Rig()
    job = rig.generate("abc", 20)
    rig.plan()
    rig.plan()
    rig.batcher.cancel(job, 0.0)
    assert rig.fs.length(job.file) == 3, "the prompt counts as done, the draw is nobody's"
    rig.check()
    rig.run()
    rig.run()
    assert rig.fs.tail_valid(job.file)
    rig.close()


def test_a_worker_that_answers_something_else_is_at_fault():
    rig = Rig()
    rig.pred(3)
    batch = rig.plan()
    for head in (
        BatchDoneHead(batch.head.seq + 1, [], 0, 0.0),
        BatchDoneHead(batch.head.seq, [], 0, 0.0),
        BatchDoneHead(batch.head.seq, [RowDone(99, [Answer()])], 0, 0.0),
        BatchDoneHead(batch.head.seq, [RowDone(1, [])], 0, 0.0),
    ):
        with pytest.raises(WorkerFault):
            rig.batcher.done(BatchDone(head), 0.0)
    with pytest.raises(WorkerFault):
        rig.batcher.failed(BatchFailed(batch.head.seq, Errno.EIO, "", void=True), 0.0)
    rig.close()


def test_a_refused_row_fails_alone():
    rig = Rig(max_rows=8)
    for pid in range(8):
        rig.pred(2, pid=pid)
    bad = rig.pred(3, pid=8)
    rig.backend.refuse = lambda batch: Errno.EINVAL if any(r.n_new == 3 for r in batch.head.rows) else None
    rig.finish()
    assert [isinstance(r, list) for r in rig.results.values()] == [True] * 8 + [False]
    assert rig.results[8].errno == Errno.EINVAL
    assert rig.fs.length(bad.file) == 0
    rig.close()


def test_a_worker_short_of_memory_gets_shorter_steps():
    rig = Rig(max_tokens=256, n_pages=128)
    rig.backend.refuse = lambda batch: Errno.ENOSPC if len(batch.tokens) > 40 else None
    rig.pred(200)
    rig.finish()
    assert isinstance(rig.results[0], list)
    assert rig.counters.n_retried_batches > 0
    rig.close()


# --- all of it --------------------------------------------------------------------------------------------------


def test_a_lost_worker_costs_nothing_but_time():
    calm, rig = Rig(), Rig()
    for r in (calm, rig):
        for pid in range(3):
            r.generate("hello"[: pid + 2], 12, pid=pid)
    calm.finish()
    for _ in range(5):
        rig.step()
    rig.plan()
    rig.lose_worker()
    rig.check()
    rig.finish()
    assert [r.tokens for r in rig.results.values()] == [r.tokens for r in calm.results.values()]
    assert rig.counters.n_recomputed_tokens > 0
    rig.close()


EVENT = st.tuples(st.sampled_from("gggpppssssssrrcftkwx"), st.integers(0, 40))


@settings(deadline=None, max_examples=150)
@given(st.lists(EVENT, max_size=60), st.integers(9, 40), st.integers(0, 40), st.sampled_from(["auto", "recompute"]))
def test_whatever_happens_results_are_those_of_peace(events, n_pages, n_host_pages, mode):
    """Generations and preds, forks, cancels, truncations, refusals and lost workers, in memory that does not do."""
    calm = Rig(n_pages=2000, max_rows=64)
    rig = Rig(n_pages=n_pages, n_host_pages=n_host_pages, max_rows=3, max_tokens=8, mode=mode)
    for pid, (kind, n) in enumerate(events, 1):
        if kind == "g":
            for r in (calm, rig):
                r.generate("prompt"[: n % 6 + 1], n % 13 + 1, pid=pid, stop=["a", "xy"][: n % 3])
            calm.finish()
        elif kind == "p":
            for r in (calm, rig):
                r.pred(n % 20 + 1, pid=pid)
            calm.finish()
        elif kind == "s":
            rig.step()
        elif kind == "r" and rig.sent:
            rig.run()
        elif kind == "c" and rig.jobs:
            rig.batcher.cancel(rig.jobs[n % len(rig.jobs)], rig.now)
        elif kind == "f":
            left = [1]
            rig.backend.refuse = lambda batch, left=left: Errno.ENOSPC if left and left.pop() else None
        elif kind == "k" and rig.files:
            rig.files.append(rig.fs.fork(rig.files[n % len(rig.files)], None, who=Who("o", pid=pid), now=rig.now))
        elif kind == "t" and rig.files and not (file := rig.files[n % len(rig.files)]).inode.claimed:
            rig.fs.truncate(file, rig.fs.length(file) // 2, rig.now)
        elif kind == "w":
            rig.lose_worker()
        elif kind == "x" and (idle := [f for f in rig.files if f.inode.tokens and not f.inode.claimed]):
            calm.keys()
            rig.generate("", n % 5 + 1, file=idle[n % len(idle)], pid=pid)
            rig.jobs[-1].cancelled = True  # there is nothing to compare it with
        rig.check()
    rig.finish()
    for job, result, peace in zip(rig.jobs, rig.results.values(), calm.results.values(), strict=True):
        if job.cancelled:
            continue
        if isinstance(result, SyscallError):
            assert result.errno == Errno.ENOSPC
        elif isinstance(job, GenerateJob):
            assert (result.tokens, result.text) == (peace.tokens, peace.text)
        else:
            assert result == peace
    assert math.isinf(rig.batcher.due(rig.now)) or not rig.batcher.n_jobs
    rig.close()
