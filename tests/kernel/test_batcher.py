"""The batcher on its own: budgets, order, fusing, and leases that always come back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworker.wire import Answer, BatchDone, BatchDoneHead, BatchFailed, RowDone
from kernel.batcher import Batcher, WorkerFault
from kernel.jobs import PredJob
from kvfs import fsck
from kvfs.fs import Kvfs
from sdk.abi.errors import Errno
from sdk.abi.values import Want


class Rig:
    """A file system with one device, a batcher, and a worker that answers what it is told to."""

    def __init__(self, n_pages=64, max_rows=4, max_tokens=32):
        self.fs = Kvfs()
        self.fs.add_device("d", n_pages=n_pages, page_size=4)
        self.batcher = Batcher(self.fs, max_rows=max_rows, max_tokens=max_tokens, vocab_size=8)
        self.results = {}
        self.files = []

    def pred(self, n_tokens, want=None, file=None):
        if file is None:
            file = self.fs.create(None, owner="o", now=0.0, device="d")
            self.files.append(file)
        n_file = self.fs.length(file)
        key = len(self.results)
        self.results[key] = None
        job = PredJob(
            file, list(range(n_tokens)), list(range(n_file, n_file + n_tokens)), want or Want(),
            last_token=0, last_position=n_file - 1, seed=0, history=list,
            on_done=lambda r: self.results.__setitem__(key, r), on_fail=lambda e: self.results.__setitem__(key, e),
        )  # fmt: skip
        job.n_file = n_file
        job.claim = self.fs.claim(file)
        self.batcher.submit(job)
        return job

    def step(self):
        batch = self.batcher.plan(0.0)
        if batch is not None:
            rows = [RowDone(r.job, [Answer() for _ in r.asks]) for r in batch.head.rows]
            self.batcher.done(BatchDone(BatchDoneHead(batch.head.seq, rows, len(batch.tokens), 0.0)), 0.0)
            self.batcher.deliver()
        return batch

    def close(self):
        for file in self.files:
            self.fs.close(file, 0.0)
        usage = self.fs.devices()["d"]
        assert usage.n_free == usage.n_pages
        assert fsck.check(self.fs) == []


def shapes(batch):
    return [(r.job, r.n_before, r.n_new) for r in batch.head.rows]


def test_what_is_pending_goes_out_together():
    rig = Rig()
    for _ in range(3):
        rig.pred(5)
    assert shapes(rig.step()) == [(1, 0, 5), (2, 0, 5), (3, 0, 5)]
    assert all(isinstance(r, list) for r in rig.results.values())
    assert rig.step() is None
    rig.close()


def test_one_batch_is_in_flight():
    rig = Rig()
    rig.pred(5)
    batch = rig.batcher.plan(0.0)
    rig.pred(5)
    assert rig.batcher.plan(0.0) is None
    rig.batcher.failed(BatchFailed(batch.head.seq, Errno.EIO, "x"), 0.0)
    rig.step()
    rig.batcher.deliver()
    assert str(rig.results[0]).startswith("EIO")
    rig.close()


def test_a_long_prompt_is_cut_and_short_steps_go_first():
    rig = Rig(max_tokens=32)
    rig.pred(70)
    rig.step()
    rig.pred(1)
    assert shapes(rig.step()) == [(2, 0, 1), (1, 32, 31)]
    assert shapes(rig.step()) == [(1, 63, 7)]
    rig.close()


def test_no_more_rows_than_the_worker_takes():
    rig = Rig(max_rows=4)
    for _ in range(6):
        rig.pred(1)
    assert [len(rig.step().head.rows) for _ in range(2)] == [4, 2]
    rig.close()


def test_no_page_is_one_jobs_misfortune():
    rig = Rig(n_pages=4)
    rig.pred(12)
    rig.pred(12)
    rig.pred(4)
    assert shapes(rig.step()) == [(1, 0, 12), (3, 0, 4)]
    assert str(rig.results[1]).startswith("ENOSPC")
    rig.close()


def test_a_cancelled_job_leaves_the_file_as_it_was():
    rig = Rig()
    first = rig.pred(3)
    rig.step()
    job = rig.pred(5, file=first.file)
    batch = rig.batcher.plan(0.0)
    rig.batcher.cancel(job, 0.0)
    done = BatchDoneHead(batch.head.seq, [RowDone(r.job, [Answer()]) for r in batch.head.rows], 5, 0.0)
    rig.batcher.done(BatchDone(done), 0.0)
    assert rig.fs.length(first.file) == 3
    assert rig.results[1] is None
    rig.close()


def test_a_worker_that_answers_something_else_is_at_fault():
    rig = Rig()
    rig.pred(3)
    batch = rig.batcher.plan(0.0)
    for head in (
        BatchDoneHead(batch.head.seq + 1, [], 0, 0.0),
        BatchDoneHead(batch.head.seq, [], 0, 0.0),
        BatchDoneHead(batch.head.seq, [RowDone(99, [Answer()])], 0, 0.0),
        BatchDoneHead(batch.head.seq, [RowDone(1, [])], 0, 0.0),
    ):
        try:
            rig.batcher.done(BatchDone(head), 0.0)
        except WorkerFault:
            continue
        raise AssertionError(head)
    rig.batcher.lost("gone", 0.0)
    rig.batcher.deliver()
    assert str(rig.results[0]).startswith("EIO: gone")
    rig.fs.remove_device("d", now=0.0)
    assert fsck.check(rig.fs) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pscfl"), st.integers(0, 30)), max_size=40))
def test_whatever_happens_every_job_ends_once_and_every_page_comes_back(events):
    rig = Rig(n_pages=24, max_rows=3, max_tokens=8)
    jobs = []
    for kind, n in events:
        if kind == "p":
            jobs.append(rig.pred(n + 1))
        elif kind == "s":
            rig.step()
        elif kind == "c" and jobs:
            rig.batcher.cancel(jobs[n % len(jobs)], 0.0)
        elif kind == "f" and (batch := rig.batcher.plan(0.0)) is not None:
            rig.batcher.failed(BatchFailed(batch.head.seq, Errno.EIO, "x"), 0.0)
    while rig.step() is not None:
        pass
    rig.batcher.deliver()
    assert rig.batcher.n_jobs == 0
    ended = rig.batcher.take_ended()
    assert sorted(j.number for j in ended) == sorted(j.number for j in jobs)
    for job, result in zip(jobs, rig.results.values(), strict=True):
        assert job.cancelled or result is not None
    rig.close()
