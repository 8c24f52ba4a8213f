"""A batcher with a real null worker behind it, in one thread and in steps: for tests of all that it drives."""

from collections import deque

from gpuworker import nulltext
from gpuworker.backend import StepError
from gpuworker.executor import Executor
from gpuworker.null import NullBackend
from gpuworker.wire import BatchDone, BatchDoneHead
from kernel.batcher import Batcher
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
from sdk.abi.values import Decoding, Sampling, Want

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


def swap_out(rig, inode, n_kept):
    """All of a file but its first pages goes to main memory."""
    move = rig.fs.swap_out([inode.ino], rig.now, {inode.ino: n_kept})
    rig.fs.commit_move(move, rig.now)
