"""Level 2: fuses the pending work of all programs into batches for one worker. Pure.

One batcher per worker. `submit` queues a job; `plan` makes the next batch; `done` and `failed` take what became of
it; `evacuate` takes back the jobs of a worker that is gone. Up to two batches are in flight: the running one, and
one ahead of it, sent late and only when that pays (`kernel/pacing.py`). Rows that continue a generation go first,
then prompts in the order they came, cut into chunks so that a step computes no more than the token budget: a long
prompt delays the others by a step and not by its length. Whose turn it is, when not all fit, `kernel/turns.py` says.

Every row holds a kvfs lease while its batch is in flight, given back exactly once; every job holds its file's
claim from submission to end. A file whose KV is not on the device is computed again from its tokens, or moved back
in (`kernel/memory.py`), before its job goes on; a job that finds no free page waits until there is room. A batch
that the worker refuses is taken back and batches are half as large for a while, until the row at fault fails alone;
what was sent behind it is void and taken back too.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from gpuworker.wire import Batch, BatchDone, BatchFailed
from kernel.caps import Caps
from kernel.costs import StepCosts
from kernel.counters import Counters
from kernel.flight import InFlight
from kernel.jobs import Job, Sent
from kernel.memory import Memory
from kernel.pacing import Firing, Pace
from kernel.rows import Rows
from kernel.shares import Grants
from kernel.turns import Order, Turns
from kvfs.fs import Kvfs
from sdk.abi.errors import Errno, SyscallError

LOGITS_BYTES_MAX = 32 << 20  # raw logits of one batch
RETRY_S = 0.01  # programs may close files at any time, and nobody says so
CLOCK_S = 1e-6  # timers may be early by so much
N_AHEAD = 2  # batches in flight
N_PLANS = 3  # tries, where nothing fits before something is dropped


class WorkerFault(Exception):
    """A worker broke the protocol: nothing it says can be trusted any more."""


class Batcher:
    """The work of one worker."""

    def __init__(
        self,
        fs: Kvfs,
        *,
        max_rows: int,
        max_tokens: int,
        vocab_size: int,
        memory: Memory,
        costs: StepCosts,
        firing: Firing,
        order: Order,
        counters: Counters,
    ) -> None:
        self.fs = fs
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self.memory = memory
        self.costs = costs
        self.pace = Pace()
        self._firing = firing
        self._counters, self._latencies = counters, counters.latencies
        self._row_bytes = vocab_size * 4  # of raw logits
        self._decoding: dict[int, Job] = {}  # in the order they came; they go first
        self._queued: dict[int, Job] = {}  # prompts and preds
        self._flight: deque[InFlight] = deque()
        self._caps = Caps(max_rows, max_tokens)
        self._turns = Turns(order, costs, max_rows, max_tokens)
        self._retry_at = 0.0  # somebody waits for pages, and nothing is in flight that could bring some
        self._rows = Rows(fs, memory, costs)
        self._seq = 0
        self._n_jobs = 0
        self._n_failed = 0
        self._ended: list[Job] = []
        self._outbox: list[Callable[[], None]] = []
        self._killed: list[tuple[int, str]] = []

    @property
    def n_jobs(self) -> int:
        """Jobs that have not ended."""
        return len(self._decoding) + len(self._queued)

    @property
    def newest(self) -> InFlight:
        """The batch that was sent last."""
        return self._flight[-1]

    @property
    def busy(self) -> bool:
        """Whether a batch is in flight."""
        return bool(self._flight)

    @property
    def running_since(self) -> float | None:
        """When the worker began with the batch that it has now; None while it is idle."""
        return self._flight[0].started if self._flight else None

    @property
    def expected_s(self) -> float:
        """How long that batch should take."""
        running = self._flight[0]
        return self.costs.predict(len(running.rows), running.n_tokens) + len(running.moves) * self.costs.page_s

    def jobs(self) -> Iterator[Job]:
        """All that have not ended."""
        yield from self._decoding.values()
        yield from self._queued.values()

    def submit(self, job: Job, now: float) -> None:
        """Queue a job, which holds its file's claim already unless it only looks at the tail."""
        self._n_jobs += 1
        job.number = self._n_jobs
        job.since = now
        job.paused = job.preempted = False
        self._retry_at = 0.0
        self._latencies.asked(job.times, now)
        self._firing.arrived(now)
        (self._decoding if job.n_wanted <= 1 else self._queued)[job.number] = job

    def cancel(self, job: Job, now: float) -> None:
        """Nobody waits for this job any more: its file is free again at once.

        Steps in flight are settled before they are answered. A generation's count as done, but for one that feeds a
        draw which nobody will see; a `pred`'s as never asked for. Both are true for whatever comes later, because a
        worker runs its batches in order."""
        if self._queued.get(job.number) is not job and self._decoding.get(job.number) is not job:
            return
        job.cancelled = True
        keep = job.keeps_partial
        can_undo = job.claim is not None or job.undoes_steps
        while job.sent and can_undo and not (keep and job.sent[-1].is_known):
            self._take_back(job)
        for sent in job.sent:
            sent.settled = True
            self._commit(sent, now, 0.0)
        job.sent.clear()
        self._counters.n_aborted += 1
        self._forget(job, now, keep=keep)

    def take_ended(self) -> list[Job]:
        """The jobs that have ended since the last look."""
        ended, self._ended = self._ended, []
        return ended

    def take_killed(self) -> list[tuple[int, str]]:
        """Pids that have to end for want of memory, with the reasons, since the last look."""
        killed, self._killed = self._killed, []
        return killed

    def deliver(self) -> None:
        """Tell those who wait. Apart from all else, because whoever is told may come straight back with a call."""
        outbox, self._outbox = self._outbox, []
        for tell in outbox:
            tell()

    # --- when ---

    def due(self, now: float) -> float:
        """When `plan` should be asked next, if nothing happens before: now or earlier for at once, inf for never."""
        if len(self._flight) >= N_AHEAD:
            return math.inf
        if not self._flight:
            if not self.n_jobs:
                return self.memory.due
            if self._retry_at > now:
                return self._retry_at
            if not self._firing.waits:
                return now
            since = min(job.since for job in self.jobs())
            return self._firing.at(self.n_jobs, since, self.costs.predict(self.n_jobs, self.n_jobs))
        running = self._flight[0]
        step_s = self.expected_s
        n_host = sum(1 for s in running.rows if s.job is not None and s.job.host_decides and not s.job.ready)
        if running.dead or self._caps.are_lowered or not self.pace.worth_ahead(len(running.rows), n_host, step_s):
            return math.inf
        return self.pace.ahead_at(running.started, step_s)

    # --- planning ---

    def plan(self, now: float) -> Batch | None:
        """The next batch, or None while it is too early or nothing is to do."""
        if self.due(now) > now + CLOCK_S:
            return None
        batch = InFlight(self._seq + 1)
        for _ in range(N_PLANS):
            self.memory.begin()
            self._fill(batch, now)
            relief = self.memory.end(now, list(self.jobs()), idle=not self._flight and not batch.rows)
            batch.moves += relief.moves
            self._killed += relief.killed
            for job, error in relief.failed:
                self._end(job, now, error)
            self._rows.restore(batch, relief.restore, self._caps.n_rows, self._caps.n_tokens)
            if batch.rows or not (relief.freed or relief.failed):
                break
        if not batch.rows and not batch.moves:
            self._retry_at = now + RETRY_S if self.memory.tight else 0.0
            return None
        if not self._flight:
            batch.started = now
            self.pace.sent(now)
        self._seq += 1
        self._flight.append(batch)
        self._counters.n_batches += 1
        self._counters.n_rows += len(batch.rows)
        return batch.encode(self._n_failed)

    def _fill(self, batch: InFlight, now: float) -> None:
        """Give a batch its rows. If none of those whose turn it is can have one, anybody else may."""
        ready = [job for job in self.jobs() if job.ready and not job.paused]
        grants = self._turns.grants(ready, self._decoding, now)
        self._add(batch, grants, now)
        if not batch.rows and len(grants) < len(ready):
            asked = {job for job, _ in grants}
            self._add(batch, [(job, self.max_tokens) for job in ready if job not in asked], now)

    def _add(self, batch: InFlight, grants: Grants, now: float) -> None:
        logits_bytes, caps = 0, self._caps
        for job, n_tokens in grants:
            if len(batch.rows) >= caps.n_rows or batch.n_tokens >= caps.n_tokens:
                break
            try:
                sent = self._rows.make(job, min(n_tokens, caps.n_tokens - batch.n_tokens))
            except SyscallError as e:
                if not job.sent:
                    self._end(job, now, e)
                continue
            if sent is None:
                continue
            n_bytes = 0
            if job.host_decides and sent.step is not None:  # nobody else asks for logits
                n_bytes = sum(ask.logits for ask in sent.step.asks) * self._row_bytes
            if n_bytes:
                if batch.rows and logits_bytes + n_bytes > LOGITS_BYTES_MAX:
                    self._take_back(job)
                    continue
                logits_bytes += n_bytes
            batch.n_tokens += sent.lease.n_new or 1
            batch.rows.append(sent)
            if sent.job is not None and sent.job.times.began < 0:
                self._latencies.began(sent.job.times, now)

    # --- what became of it ---

    def done(self, answer: BatchDone, now: float) -> None:
        """The worker computed a batch. Raises WorkerFault when the answer is not to the oldest in flight."""
        batch = self._oldest(answer.head.seq)
        head = answer.head
        if not batch.is_answered_by(head.rows):
            raise WorkerFault("the worker answered other rows than it was sent")
        self.memory.settle(batch.moves, now, head.move_s)
        self._next_runs(now)
        if not batch.has_edits:
            self.costs.step(len(batch.rows), batch.n_tokens, head.step_s)
        self._caps.lift()
        share_s = head.step_s / max(1, batch.n_tokens)
        logits = memoryview(answer.logits)
        more = False
        for s, row in zip(batch.rows, head.rows, strict=True):
            raw: list[bytes] = []
            if len(logits):
                n_bytes = sum(a.has_logits for a in row.answers) * self._row_bytes
                raw = [bytes(logits[i : i + self._row_bytes]) for i in range(0, n_bytes, self._row_bytes)]
                logits = logits[n_bytes:]
            if s.settled:
                continue
            more = True
            self._commit(s, now, share_s)
            if s.job is not None:
                self._took(s, row.answers, raw, now)
        self._counters.computed(len(batch.rows), batch.n_tokens, head.step_s, now)
        self.pace.done(now, idle=not self._flight, more=more)

    def _took(self, s: Sent, answers: list, raw: list[bytes], now: float) -> None:  # type: ignore[type-arg]
        """A job's oldest step was computed."""
        job = s.job
        assert job is not None
        assert s.step is not None
        job.sent.pop(0)
        if answers and not job.host_decides and job.finish_reason is None:
            self._latencies.drew(job.times, now)
        job.took(s.step, answers, raw)
        if job.sent:
            if job.surplus:
                self._drop_surplus(job)
            elif not job.sent[0].is_known:
                token = answers[-1].sample
                assert token is not None
                self.fs.resolve(job.sent[0].lease, token)
        if job.truncate_to is not None:
            assert job.claim is not None
            self.fs.truncate_claimed(job.claim, job.truncate_to, now)
            job.truncate_to = None
        self._outbox.append(job.tell)
        if job.over:
            self._end(job, now, None)
        elif job.number in self._queued and job.keeps_partial and job.n_wanted <= 1:
            self._decoding[job.number] = self._queued.pop(job.number)

    def _commit(self, s: Sent, now: float, share_s: float) -> None:
        """A row was computed: its tokens are part of the file, and its program pays."""
        was_edited = s.job is None and s.lease.inode.edited is not None
        self.fs.commit(s.lease, now)
        job, step, counters = s.job, s.step, self._counters
        if job is None or step is None:
            self._rows.rebuilt(s)
            counters.n_edits_recomputed += was_edited and s.lease.inode.edited is None
            counters.n_recomputed_tokens += s.lease.n_new
            if s.account is not None:
                s.account.n_recomputed_tokens += s.lease.n_new
            return
        n = len(step.tokens)
        counters.n_edits += job.undoes_steps
        if s.settled:
            job.computed(step)
        if job.account is None:
            return  # the kernel's own
        if job.host_decides or step.mark is True:
            counters.n_prompt_tokens += n
            job.account.charge(n, 0, share_s * max(1, n))
        else:
            counters.n_generated_tokens += n
            job.account.charge(0, n, share_s * max(1, n))

    def _drop_surplus(self, job: Job) -> None:
        """A step in flight feeds a token that is no part of the result: its batch may run, nobody looks."""
        sent = job.sent.pop()
        sent.settled = True
        self.fs.abandon(sent.lease)
        self._counters.n_surplus_tokens += 1

    def _take_back(self, job: Job) -> None:
        """A job's newest step is not to count, though its batch may run."""
        sent = job.sent.pop()
        sent.settled = True
        assert sent.step is not None
        self.fs.abandon(sent.lease)
        job.retract(sent.step)

    def failed(self, failure: BatchFailed, now: float) -> None:
        """The worker refused a batch, which is taken back with whatever was sent behind it (that will be refused too).
        The next ones are smaller (`kernel/caps.py`); where that does not help, the row at fault fails its job."""
        batch = self._oldest(failure.seq)
        if failure.void:
            if not batch.dead:
                raise WorkerFault("the worker refused a batch as void, and nothing before it has failed")
            self._next_runs(now)
            return
        self._n_failed += 1
        self._counters.n_retried_batches += 1
        rows = [s for s in batch.rows if not s.settled]
        for other in reversed(self._flight):
            self._undo(other)
        self._next_runs(now)
        if not self._caps.lower(len(batch.rows), batch.n_tokens, failure.errno) and rows:
            errno = failure.errno if failure.errno in (Errno.ENOSPC, Errno.EINVAL) else Errno.EIO
            error = SyscallError.make(errno, f"the worker refused the step: {failure.detail}")
            inode = rows[0].lease.inode
            if rows[0].job is None:
                self.fs.give_up(inode.ino)
            for job in [rows[0].job] if rows[0].job else [j for j in self.jobs() if j.file.inode is inode]:
                self._end(job, now, error)

    def _next_runs(self, now: float) -> None:
        """The oldest batch in flight is over."""
        self._flight.popleft()
        if self._flight:
            self._flight[0].started = now

    def _undo(self, batch: InFlight) -> None:
        """Take back all of a batch that did not run, or will not count."""
        batch.dead = True
        for s in reversed(batch.rows):
            if s.settled:
                self.fs.disown(s.lease)
            elif s.job is not None:
                self._take_back(s.job)
            else:
                s.settled = True
                self._rows.rebuilt(s)
                self.fs.abandon(s.lease)
        for move in batch.moves:
            self.fs.abandon_move(move)
        batch.moves = []

    def evacuate(self, now: float) -> list[Job]:
        """The worker is gone: take everything back. The jobs, in order; they can be submitted elsewhere."""
        for batch in reversed(self._flight):
            self._undo(batch)
        self._flight.clear()
        jobs = list(self.jobs())
        self._decoding.clear()
        self._queued.clear()
        return jobs

    def release(self, inos: set[int]) -> list[Job] | None:
        """Give up the jobs on these files, for another worker; None while a batch or a move has one of the files."""
        jobs = [job for job in self.jobs() if not inos.isdisjoint(job.inos)]
        for job in jobs:
            job.paused = True
        files = [self.fs.files[ino] for ino in inos if ino in self.fs.files]
        if any(job.sent for job in jobs) or any(inode.n_leases or inode.moving for inode in files):
            return None
        for job in jobs:
            self._decoding.pop(job.number, None)
            self._queued.pop(job.number, None)
        return jobs

    def resume(self, inos: set[int]) -> None:
        """The jobs on these files stay after all."""
        for job in self.jobs():
            if not inos.isdisjoint(job.inos):
                job.paused = False

    def _oldest(self, seq: int) -> InFlight:
        if not self._flight or seq != self._flight[0].seq:
            flying = [batch.seq for batch in self._flight]
            raise WorkerFault(f"the worker answered batch {seq}, and in flight are {flying}")
        return self._flight[0]

    # --- ends ---

    def _end(self, job: Job, now: float, error: SyscallError | None) -> None:
        """Finish or fail a job that is not in flight, its file given back first."""
        self._forget(job, now, keep=error is None or job.keeps_partial)
        self._counters.ended(job.times, job.finish_reason, now, error)
        self._outbox.append(job.finish if error is None else partial(job.fail, error))

    def _forget(self, job: Job, now: float, *, keep: bool) -> None:
        self._queued.pop(job.number, None)
        self._decoding.pop(job.number, None)
        self._ended.append(job)
        if job.claim is not None:
            if not keep:
                self.fs.truncate_claimed(job.claim, job.n_file, now)
            self.fs.release(job.claim, now)
            job.claim = None
