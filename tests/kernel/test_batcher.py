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
from kvfs.access import OPERATOR, Who
from kvfs.fs import Kvfs
from sdk.abi.errors import Errno, SyscallError
from sdk.abi.values import Advice, Decoding, Sampling, Want

LANGUAGE = Language(nulltext.assets(512))
STEP_S = 0.01


class Tenant:
    """Whose an account is."""

    def __init__(self, name):
        self.name = name
        self.vt = 0.0


class Account:
    """Whose a job is; `number` is its age too."""

    def __init__(self, number, tenant):
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
        self.tenants = {}
        self.new_worker()

    def new_worker(self):
        self.n_workers += 1
        self.name = f"d{self.n_workers}"
        self.fs.add_device(self.name, **self.device)
        self.backend = Failing(verify=True, **self.device)
        self.executor = Executor(self.backend)
        costs = StepCosts()
        self.memory = Memory(
            self.fs, self.name, costs, self.counters, self.holder, mode=self.mode, shares={}, hold_s=600.0
        )
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
        file = self.fs.create(None, who=Who("o", pid=pid), now=self.now, device=self.name)
        self.files.append(file)
        return file

    def submit(self, job, pid, claim=True):
        job.n_file = self.fs.length(job.file)
        name = job.file.inode.tenant
        tenant = self.tenants.setdefault(name, Tenant(name))
        job.account = self.accounts.setdefault(pid, Account(pid, tenant))
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


# --- who has to make room, and who comes back unasked -----------------------------------------------------------


def cached(rig, path, n_tokens, who=OPERATOR):
    """A file that nobody has open."""
    file = rig.fs.create(path, who=who, now=rig.now, device=rig.name)
    rig.pred(n_tokens, file=file, pid=99)
    rig.finish()
    rig.fs.close(file, rig.now)
    return rig.fs.names.find(path, OPERATOR, rig.now)


def forget(rig, *paths):
    for path in paths:
        rig.fs.unlink(path, who=OPERATOR, now=rig.now)


def test_what_nobody_has_open_makes_room_before_what_programs_have():
    rig = Rig(n_pages=12)
    idle = rig.pred(16, pid=1)
    rig.finish()
    rig.returns = {1: rig.now + 50.0}
    kept = cached(rig, "/a", 16)
    rig.now += 1.0
    assert (kept.n_host, rig.counters.n_pages_out) == (0, 0), "without pressure nothing moves"
    rig.pred(20, pid=2)
    rig.finish()
    assert kept.n_host
    assert (idle.file.inode.n_host, rig.counters.n_evicted_cached, rig.counters.n_evicted_away) == (0, 1, 0)
    forget(rig, "/a")
    rig.close()


@pytest.mark.parametrize("mode", ["auto", "swap", "recompute"])
def test_pinned_pages_stay_whoever_wants_them(mode):
    rig = Rig(n_pages=16, mode=mode)
    file = rig.pred(32, pid=2).file
    rig.finish()
    rig.fs.pin(file, "t", 6, 100.0)
    rig.pred(36, pid=1)
    rig.finish()
    assert (file.inode.n_kv - file.inode.n_host * 4) // 4 == 6
    assert rig.counters.n_evicted_idle == 1
    rig.pred(44, pid=1)
    rig.finish()
    assert rig.results[2].errno == Errno.ENOSPC
    assert "6 pages are pinned" in str(rig.results[2])
    rig.now = 101.0
    rig.pred(44, pid=1)
    rig.finish()
    assert isinstance(rig.results[3], list)
    rig.close()


def test_a_younger_program_at_work_keeps_what_is_pinned():
    rig = Rig(n_pages=16, max_rows=8)
    young = rig.generate("b" * 16, 30, pid=2)
    rig.step()
    rig.fs.pin(young.file, "t", 4, math.inf)
    rig.generate("a" * 24, 20, pid=1)
    for _ in range(200):
        rig.step()
        assert young.file.inode.n_kv - 4 * young.file.inode.n_host >= 16
    rig.finish()
    assert [len(r.tokens) for r in rig.results.values()] == [30, 20]
    assert rig.counters.n_preempted > 0
    rig.close()


def test_what_is_needed_comes_back_when_there_is_room_and_not_before():
    rig = Rig(n_pages=12)
    away = rig.pred(20, pid=1)
    rig.finish()
    other = rig.pred(40, pid=2)
    rig.finish()
    assert away.file.inode.n_host
    rig.fs.advise(away.file, Advice.WILLNEED, rig.now)
    rig.memory.look_soon()
    assert rig.plan() is None, "somebody has the pages"
    rig.fs.truncate(other.file, 0, rig.now)
    rig.memory.look_soon()
    rig.step()
    assert not away.file.inode.n_host
    rig.close()


def test_a_dropped_file_is_computed_beside_others_in_small_parts():
    rig = Rig(max_tokens=64, n_pages=128)
    file = rig.pred(60, pid=1).file
    rig.finish()
    for n in (1, 40):
        rig.pred(n, pid=2)
        rig.finish()
    rig.batcher.costs.token_s = 0.001
    rig.fs.drop([file.inode.ino], rig.now)
    rig.fs.place(file, rig.name)
    rig.fs.advise(file, Advice.WILLNEED, rig.now)
    rig.generate("x", 30, pid=3)
    batch = rig.plan()
    added = [r.n_new for r in batch.head.rows if not r.job]
    assert len(added) == 1
    assert 0 < added[0] < 10
    rig.finish()
    rig.step()
    assert rig.fs.tail_valid(file), "when nobody else computes it is done at once"
    assert rig.accounts[1].n_recomputed_tokens == 60, "whoever has it open pays"
    rig.close()


def test_advice_may_take_what_nobody_has_open_and_no_more():
    rig = Rig(n_pages=12)
    away = rig.pred(20, pid=1)
    rig.finish()
    rig.pred(28, pid=2)
    rig.finish()
    kept = cached(rig, "/a", 16)
    assert away.file.inode.n_host
    rig.fs.advise(away.file, Advice.WILLNEED, rig.now)
    for _ in range(3):
        rig.memory.look_soon()
        rig.step()
    assert kept.n_host
    assert not away.file.inode.n_host
    forget(rig, "/a")
    rig.close()


def test_a_file_that_cannot_be_computed_is_given_up():
    rig = Rig()
    file = rig.pred(20, pid=1).file
    rig.finish()
    rig.fs.drop([file.inode.ino], rig.now)
    rig.fs.place(file, rig.name)
    rig.fs.pin(file, "t", 5, math.inf)
    rig.fs.advise(file, Advice.WILLNEED, rig.now)
    rig.backend.refuse = lambda batch: Errno.EIO
    rig.memory.look_soon()
    rig.step()
    assert rig.fs.wanted(rig.now) == []
    rig.backend.refuse = lambda batch: None
    rig.close()


def test_a_little_more_is_made_free_than_is_asked_for():
    rig = Rig(n_pages=128)
    paths = [f"/{i}" for i in range(122)]
    for path in paths:
        cached(rig, path, 4)
    rig.pred(40, pid=1)
    rig.finish()
    assert rig.counters.n_evicted_cached == 4 + 2
    forget(rig, *paths)
    rig.close()


def test_what_is_not_needed_leaves_first():
    rig = Rig(n_pages=14)
    first, second = rig.pred(16, pid=1), rig.pred(16, pid=2)
    rig.finish()
    rig.now += 1.0
    rig.fs.lease_tail(second.file)
    rig.fs.commit(next(iter(rig.fs.leases)), rig.now)
    rig.fs.advise(second.file, Advice.DONTNEED, rig.now)
    rig.pred(28, pid=3)
    rig.finish()
    assert (bool(first.file.inode.n_host), bool(second.file.inode.n_host)) == (False, True)
    assert rig.counters.n_evicted_unneeded == 1
    rig.close()


def test_what_is_safe_on_disk_is_dropped_and_not_moved():
    rig = Rig(n_pages=12)
    rig.fs.n_durable = lambda inode: 20
    file = rig.pred(20, pid=1).file
    rig.finish()
    rig.pred(36, pid=2)
    rig.finish()
    assert (file.inode.n_kv, rig.counters.n_pages_dropped, rig.counters.n_pages_out) == (0, 5, 0)
    rig.close()


def test_full_main_memory_is_made_room_in_before_a_program_loses_its_kv():
    rig = Rig(n_pages=12, n_host_pages=8)
    kept = cached(rig, "/a", 24)
    rig.now += 5.0
    one = rig.pred(28, pid=1)
    rig.finish()
    assert kept.n_host
    rig.returns = {1: rig.now + 50.0}
    rig.pred(36, pid=2)
    rig.finish()
    assert (kept.n_kv, kept.n_host) == (0, 0)
    assert one.file.inode.n_host == 7
    assert rig.counters.n_recomputed_tokens == 0
    forget(rig, "/a")
    rig.close()


def test_one_tenant_cannot_flush_anothers_cache():
    rig = Rig(n_pages=20)
    ann, bob = Who("ann", tenant="ann", root=True), Who("bob", tenant="bob", root=True)
    hers = [cached(rig, "/a", 32, ann), cached(rig, "/b", 16, ann)]
    file = rig.fs.create(None, who=bob, now=rig.now, device=rig.name)
    for n_tokens in (32, 8):
        rig.pred(n_tokens, file=file, pid=1)
        rig.finish()
    there = [inode.n_kv // 4 - inode.n_host for inode in hers]
    assert sum(there) == 10, "her share of 20 pages; two of her twelve were beyond it"
    rig.pred(1, file=file, pid=1)
    rig.finish()
    assert rig.results[4].errno == Errno.ENOSPC
    assert [inode.n_kv // 4 - inode.n_host for inode in hers] == there
    forget(rig, "/a")
    rig.pred(1, file=file, pid=1)
    rig.finish()
    assert isinstance(rig.results[5], list)
    forget(rig, "/b")
    rig.fs.close(file, rig.now)
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
