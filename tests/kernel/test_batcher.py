"""The batcher with a real null worker behind it, one call at a time: what goes into a batch, and that whatever
happens to batches, files and memory, every job ends once, with what it would have got in peace."""

import math
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworker import nulltext
from gpuworker.backend import StepError
from gpuworker.executor import Executor
from gpuworker.null import NullBackend
from gpuworker.wire import Answer, BatchDone, BatchDoneHead, BatchFailed, RowDone
from kernel.batcher import Batcher, WorkerFault
from kernel.costs import StepCosts
from kernel.counters import Counters
from kernel.generate import GenerateJob
from kernel.jobs import PredJob
from kernel.language import Language
from kernel.memory import Memory
from kernel.pacing import firing
from kvfs import fsck
from kvfs.fs import Kvfs
from sdk.abi.errors import Errno, SyscallError
from sdk.abi.values import Decoding, Sampling, Want

LANGUAGE = Language(nulltext.assets(512))
STEP_S = 0.01


class Account:
    """Whose a job is; `number` is its age too."""

    def __init__(self, number, tenant="t"):
        self.tenant, self.age = tenant, (0, number)
        self.is_limited, self.is_running = False, True
        self.n_tokens = self.n_swapped_tokens = self.n_recomputed_tokens = 0
        self.account = self

    def charge(self, n_prompt, n_generated, device_s):
        self.n_tokens += n_prompt + n_generated


class Failing(NullBackend):
    """Refuses the batches that it is told to."""

    def __init__(self, **options):
        super().__init__(**options)
        self.refuse = lambda batch: None

    def run(self, batch):
        errno = self.refuse(batch)
        if errno is not None:
            raise StepError(errno, "the test wants it")
        return super().run(batch)


class Rig:
    """A file system, a batcher, a worker, and a clock."""

    def __init__(self, n_pages=64, max_rows=4, max_tokens=32, n_host_pages=64, mode="auto", page_size=4):
        self.fs = Kvfs()
        self.counters = Counters()
        self.options = {"max_rows": max_rows, "max_tokens": max_tokens}
        self.device = {"n_pages": n_pages, "n_host_pages": n_host_pages, "page_size": page_size}
        self.mode = mode
        self.now = 0.0
        self.results = {}
        self.accounts = {}
        self.files = []
        self.jobs = []
        self.n_workers = 0
        self.killed = []
        self.returns = {}  # pid → when it is expected back
        self.new_worker()

    def new_worker(self):
        self.n_workers += 1
        self.name = f"d{self.n_workers}"
        self.fs.add_device(self.name, **self.device)
        self.backend = Failing(verify=True, **self.device)
        self.executor = Executor(self.backend)
        costs = StepCosts()
        self.memory = Memory(self.fs, self.name, costs, self.counters, self.holder, mode=self.mode)
        self.batcher = Batcher(
            self.fs,
            vocab_size=512,
            memory=self.memory,
            costs=costs,
            firing=firing("eager", 1, 1.0),
            order=lambda jobs, now: sorted(jobs, key=lambda j: j.account.age),
            counters=self.counters,
            **self.options,
        )
        self.sent = deque()

    def holder(self, pid):
        account = self.accounts.get(pid)
        if account is None:
            return None
        account.returns_at = lambda now: self.returns.get(pid)
        return account

    # --- what programs do ---

    def file(self, pid=0):
        file = self.fs.create(None, owner="o", now=self.now, device=self.name, pid=pid)
        self.files.append(file)
        return file

    def submit(self, job, pid, claim=True):
        job.n_file = self.fs.length(job.file)
        job.account = self.accounts.setdefault(pid, Account(pid))
        if claim:
            job.claim = self.fs.claim(job.file)
        if self.fs.device_of(job.file) is None:
            self.fs.place(job.file, self.name)
        self.jobs.append(job)
        self.batcher.submit(job, self.now)
        return job

    def keys(self):
        key = len(self.results)
        self.results[key] = None
        return {
            "on_done": lambda r: self.results.__setitem__(key, r),
            "on_fail": lambda e: self.results.__setitem__(key, e),
        }

    def pred(self, n_tokens, want=None, file=None, pid=0):
        file = file or self.file(pid)
        n_file = self.fs.length(file)
        tokens = [65 + (pid + i) % 26 for i in range(n_tokens)]
        at = {"last_token": 0, "last_position": n_file - 1, "seed": 0, "history": list}
        positions = list(range(n_file, n_file + n_tokens))
        return self.submit(PredJob(file, tokens, positions, want or Want(top_k=1), **at, **self.keys()), pid)

    def generate(self, prompt, n, file=None, pid=0, **decoding):
        file = file or self.file(pid)
        n_file = self.fs.length(file)
        job = GenerateJob(
            file,
            LANGUAGE.encode(prompt),
            Decoding(max_tokens=n, sampling=Sampling(temperature=1.0), ignore_eos=True, **decoding),
            language=LANGUAGE,
            eos_tokens=frozenset(),
            n_room=1000,
            next_position=n_file,
            last_token=self.fs.tokens(file)[-1] if n_file else 0,
            seed=pid,
            history=lambda: self.fs.tokens(job.claim or file),
            **self.keys(),
        )
        if not prompt and not self.fs.tail_valid(file):
            job.n_file = n_file
            job.again()
        return self.submit(job, pid)

    # --- what the worker does ---

    def plan(self):
        """Send what is due; the batch, or None."""
        batch = self.batcher.plan(self.now)
        if batch is not None:
            self.sent.append(batch)
        for pid, reason in self.batcher.take_killed():
            self.killed.append((pid, reason))
            for job in [j for j in self.batcher.jobs() if j.account.age[1] == pid]:
                self.batcher.cancel(job, self.now)
                job.fail(SyscallError.make(Errno.EIO, reason))
            for file in [f for f in self.files if f.inode.pids == [pid]]:
                self.files.remove(file)
                self.fs.close(file, self.now)
        self.batcher.deliver()
        return batch

    def run(self):
        """The worker answers the oldest batch."""
        batch = self.sent.popleft()
        answer = self.executor.answer(batch)
        if isinstance(answer, BatchDone):
            head = answer.head
            answer = BatchDone(BatchDoneHead(head.seq, head.rows, head.n_tokens, STEP_S, 1e-4), answer.logits)
            self.batcher.done(answer, self.now)
        else:
            self.batcher.failed(answer, self.now)
        self.batcher.deliver()
        return answer

    def step(self):
        """The time of a step goes by: the batch that ran in it, or None when nothing was to do."""
        batch = self.plan()
        self.now += 0.9 * STEP_S
        self.plan()
        self.now += 0.1 * STEP_S
        if not self.sent:
            return batch
        self.run()
        return batch or True

    def finish(self):
        """Run until every job has ended."""
        for _ in range(1000):
            self.step()
            if not self.batcher.n_jobs and not self.sent:
                return
        raise AssertionError("the batcher makes no progress")

    def lose_worker(self):
        """The worker dies, and another one takes over."""
        jobs = self.batcher.evacuate(self.now)
        self.batcher.deliver()
        self.fs.remove_device(self.name, now=self.now)
        self.new_worker()
        for job in jobs:
            if self.fs.device_of(job.claim or job.file) is None:
                self.fs.place(job.claim or job.file, self.name)
            self.batcher.submit(job, self.now)

    def check(self):
        assert fsck.check(self.fs) == []

    def close(self):
        self.finish()
        for file in self.files:
            self.fs.close(file, self.now)
        usage = self.fs.devices()[self.name]
        assert usage.n_free == usage.n_pages
        assert usage.n_host_free == usage.n_host_pages
        self.check()


def shapes(batch):
    return [(r.job, r.n_before, r.n_new) for r in batch.head.rows]


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


# --- memory -----------------------------------------------------------------------------------------------------


def test_a_file_that_never_fits_is_an_error():
    rig = Rig(n_pages=4)
    rig.pred(40)
    rig.finish()
    assert rig.results[0].errno == Errno.ENOSPC
    rig.close()


@pytest.mark.parametrize("mode", ["auto", "swap", "recompute"])
def test_idle_files_make_room_and_come_back(mode):
    rig = Rig(n_pages=8, mode=mode)
    old = rig.pred(20, pid=1)
    rig.finish()
    rig.pred(20, pid=2)
    rig.finish()
    assert rig.fs.devices()[rig.name].n_free <= 3
    rig.check()
    rig.pred(1, file=old.file, pid=1)
    rig.finish()
    assert all(isinstance(r, list) for r in rig.results.values())
    assert (rig.counters.n_pages_out > 0) == (mode != "recompute")
    assert (rig.counters.n_recomputed_tokens > 0) == (mode == "recompute")
    rig.close()


def test_the_one_that_is_back_latest_goes_first():
    rig = Rig(n_pages=11)
    soon, late = rig.pred(16, pid=1), rig.pred(16, pid=2)
    rig.finish()
    rig.returns = {1: rig.now + 5.0, 2: rig.now + 50.0}
    rig.pred(16, pid=3)
    rig.finish()
    assert soon.file.inode.n_host == 0
    assert late.file.inode.n_host > 0
    rig.close()


def test_pages_are_back_before_their_program_is():
    rig = Rig(n_pages=10)
    away = rig.pred(16, pid=1)
    rig.finish()
    rig.returns = {1: rig.now + 10.0}
    job = rig.pred(30, pid=2)
    rig.finish()
    assert away.file.inode.n_host > 0
    rig.fs.truncate(job.file, 0, rig.now)
    rig.step()
    due = rig.batcher.due(rig.now)
    assert rig.now < due < rig.returns[1]
    rig.now = due
    rig.step()
    assert away.file.inode.n_host == 0
    rig.close()


def test_an_older_program_takes_from_a_younger_and_never_the_reverse():
    rig = Rig(n_pages=12, max_rows=8)
    rig.generate("a" * 16, 30, pid=1)
    rig.generate("b" * 16, 30, pid=2)
    rig.finish()
    assert [len(r.tokens) for r in rig.results.values()] == [30, 30]
    assert rig.counters.n_preempted > 0
    rig.close()


def test_the_oom_killer_says_why():
    rig = Rig(n_pages=12, n_host_pages=2, mode="swap", max_rows=8)
    rig.generate("a" * 16, 24, pid=1)
    rig.generate("b" * 16, 24, pid=2)
    rig.finish()
    assert len(rig.results[0].tokens) == 24
    assert [pid for pid, _ in rig.killed] == [2]
    assert "out of memory" in rig.killed[0][1]
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
            rig.files.append(rig.fs.fork(rig.files[n % len(rig.files)], None, owner="o", now=rig.now, pid=pid))
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
