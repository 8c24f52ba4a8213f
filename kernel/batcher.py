"""Level 2: fuses the pending work of all programs into batches for one worker. Pure.

One batcher per worker. `submit` queues a job; `plan` makes the next batch when the worker is idle; `done`,
`failed` and `lost` take what became of it. At most one batch is in flight. Rows that continue a generation go
first, then prompts in the order they came, cut into chunks so that a step computes no more than the token
budget: a long prompt delays the others by a step and not by its length.

Every row holds a kvfs lease while its batch is in flight, given back exactly once; every job holds its file's
claim from submission to end. A job that finds no free page fails with ENOSPC and harms nobody. A batch that the
worker refuses is tried again row by row, so that the row at fault fails alone.
"""

from array import array
from collections.abc import Callable, Iterable
from functools import partial

from gpuworker.wire import Batch, BatchDone, BatchFailed, BatchHead, Row
from kernel.jobs import Job, Step
from kvfs.fs import Kvfs
from kvfs.lease import Lease
from sdk.abi.errors import DeviceLost, Errno, SyscallError

LOGITS_BYTES_MAX = 32 << 20  # raw logits of one batch


class WorkerFault(Exception):
    """A worker broke the protocol: nothing it says can be trusted any more."""


class Sent:
    """One row of the batch in flight."""

    __slots__ = ("job", "lease", "settled", "step")

    def __init__(self, job: Job, step: Step, lease: Lease) -> None:
        self.job = job
        self.step = step
        self.lease = lease
        self.settled = False  # the lease ended before the batch: its job was cancelled


class Batcher:
    """The work of one worker."""

    def __init__(self, fs: Kvfs, *, max_rows: int, max_tokens: int, vocab_size: int) -> None:
        self.fs = fs
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self._row_bytes = vocab_size * 4  # of raw logits
        self._decoding: dict[int, Job] = {}  # in the order they came; they go first
        self._queued: dict[int, Job] = {}  # prompts and preds
        self._in_flight: list[Sent] = []
        self._seq = 0
        self._n_jobs = 0
        self._seq_sent: int | None = None
        self._ended: list[Job] = []
        self._outbox: list[Callable[[], None]] = []

    @property
    def n_jobs(self) -> int:
        """Jobs that have not ended."""
        return len(self._decoding) + len(self._queued)

    @property
    def busy(self) -> bool:
        """Whether a batch is in flight."""
        return self._seq_sent is not None

    def submit(self, job: Job) -> None:
        """Queue a job, which holds its file's claim already unless it only looks at the tail."""
        self._n_jobs += 1
        job.number = self._n_jobs
        (self._decoding if job.n_wanted <= 1 else self._queued)[job.number] = job

    def cancel(self, job: Job, now: float) -> None:
        """Nobody waits for this job any more: its file is free again at once.

        A step in flight is settled before it is answered. A generation's counts as done, a `pred`'s as never asked
        for; both are true for whatever comes later, because a worker runs its batches in order."""
        if job.number not in self._queued and job.number not in self._decoding:
            return
        job.cancelled = True
        for sent in self._in_flight:
            if sent.job is job:
                sent.settled = True
                job.computed(sent.step)
                if job.keeps_partial or job.claim is None:
                    self.fs.commit(sent.lease, now)
                else:
                    self.fs.abandon(sent.lease)
        self._forget(job, now, keep=job.keeps_partial)

    def take_ended(self) -> list[Job]:
        """The jobs that have ended since the last look."""
        ended, self._ended = self._ended, []
        return ended

    def deliver(self) -> None:
        """Tell those who wait. Apart from all else, because whoever is told may come straight back with a call."""
        outbox, self._outbox = self._outbox, []
        for tell in outbox:
            tell()

    # --- planning ---

    def plan(self, now: float) -> Batch | None:
        """The next batch, or None while one is in flight or nothing is to do."""
        if self.busy:
            return None
        budget, logits_bytes = self.max_tokens, 0
        for job in self._candidates():
            if budget <= 0 or len(self._in_flight) == self.max_rows:
                break
            if self._in_flight and (job.alone or self._in_flight[0].job.alone):
                continue
            step = job.next_step(min(budget, max(1, job.n_wanted)))
            n_bytes = sum(ask.logits for ask in step.asks) * self._row_bytes
            if self._in_flight and logits_bytes + n_bytes > LOGITS_BYTES_MAX:
                continue
            try:
                lease = self._lease(job, step)
            except SyscallError as e:
                self._end(job, now, e)
                continue
            budget -= max(1, len(step.tokens))
            logits_bytes += n_bytes
            self._in_flight.append(Sent(job, step, lease))
        if not self._in_flight:
            return None
        self._seq += 1
        self._seq_sent = self._seq
        return self._encode()

    def _candidates(self) -> Iterable[Job]:
        return [*self._decoding.values(), *self._queued.values()]

    def _lease(self, job: Job, step: Step) -> Lease:
        if job.claim is None or not step.tokens:
            return self.fs.lease_tail(job.claim or job.file)
        return self.fs.lease(job.claim, step.tokens, step.positions, n_again=step.n_again)

    def _encode(self) -> Batch:
        tokens, positions, pages, history = array("I"), array("I"), array("I"), array("I")
        rows, copies = [], []
        for sent in self._in_flight:
            lease = sent.lease
            tokens.extend(lease.tokens)
            positions.extend(lease.positions)
            pages.extend(lease.pages)
            history.extend(sent.step.history)
            copies.extend(lease.copies)
            rows.append(Row(sent.job.number, lease.n_before, lease.n_new, len(lease.pages), sent.step.asks))
        return Batch(BatchHead(self._seq, copies, rows), tokens, positions, pages, history)

    # --- what became of it ---

    def done(self, batch: BatchDone, now: float) -> None:
        """The worker computed the batch. Raises WorkerFault when the answer is not to the batch in flight."""
        sent = self._take(batch.head.seq)
        if [r.job for r in batch.head.rows] != [s.job.number for s in sent] or any(
            len(r.answers) != len(s.step.asks) for r, s in zip(batch.head.rows, sent, strict=True)
        ):
            self._in_flight, self._seq_sent = sent, batch.head.seq
            raise WorkerFault("the worker answered other rows than it was sent")
        logits = memoryview(batch.logits)
        for s, row in zip(sent, batch.head.rows, strict=True):
            n_logits = sum(a.has_logits for a in row.answers) * self._row_bytes
            mine, logits = logits[:n_logits], logits[n_logits:]
            if s.settled:
                continue
            self.fs.commit(s.lease, now)
            s.job.alone = False
            raw = [bytes(mine[i : i + self._row_bytes]) for i in range(0, n_logits, self._row_bytes)]
            over = s.job.took(s.step, row.answers, raw)
            if s.job.truncate_to is not None:
                assert s.job.claim is not None
                self.fs.truncate_claimed(s.job.claim, s.job.truncate_to, now)
                s.job.truncate_to = None
            self._outbox.append(s.job.tell)
            if over:
                self._end(s.job, now, None)
            elif s.job.number in self._queued and s.job.keeps_partial and s.job.n_wanted <= 1:
                self._decoding[s.job.number] = self._queued.pop(s.job.number)

    def failed(self, failure: BatchFailed, now: float) -> None:
        """The worker refused the batch: each row is tried again by itself, and then fails alone."""
        sent = self._take(failure.seq)
        for s in sent:
            if s.settled:
                self.fs.disown(s.lease)
                continue
            self.fs.abandon(s.lease)
            if len(sent) == 1:
                errno = failure.errno if failure.errno in (Errno.ENOSPC, Errno.EINVAL) else Errno.EIO
                self._end(s.job, now, SyscallError.make(errno, f"the worker refused the step: {failure.detail}"))
            else:
                s.job.alone = True

    def lost(self, detail: str, now: float) -> None:
        """The worker is gone with all its pages: every job fails with EIO. The caller removes the device next."""
        for s in self._in_flight:
            if not s.settled:
                self.fs.abandon(s.lease, device_lost=True)
        self._in_flight, self._seq_sent = [], None
        for job in list(self._candidates()):
            self._end(job, now, DeviceLost(detail))

    def _take(self, seq: int) -> list[Sent]:
        if seq != self._seq_sent:
            raise WorkerFault(f"the worker answered batch {seq}, but {self._seq_sent} is in flight")
        sent, self._in_flight, self._seq_sent = self._in_flight, [], None
        return sent

    # --- ends ---

    def _end(self, job: Job, now: float, error: SyscallError | None) -> None:
        """Finish or fail a job that is not in flight, its file given back first."""
        self._forget(job, now, keep=error is None or job.keeps_partial)
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
