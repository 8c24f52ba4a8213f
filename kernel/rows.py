"""One row of the next batch: a job's step with the lease of its pages, or tokens computed again that a file has lost.
Pure.

Called by `kernel/batcher.py` for each job that it would like to have in a batch. What a job cannot get it is told to
`kernel/memory.py`, and has no row this time. Never add here whom to ask, or what becomes of a row.
"""

from kernel.costs import StepCosts
from kernel.edits import EditJob
from kernel.flight import InFlight
from kernel.jobs import Job, Sent, Step
from kernel.memory import Memory
from kvfs.fs import Kvfs
from kvfs.inode import Residency
from kvfs.lease import Lease
from kvfs.pins import Wish
from sdk.abi.errors import Busy, NoSpace, QuotaExceeded, SyscallError
from sdk.abi.visible import hides

SLOWER = 1.2  # a step may take so much longer for files that no call asks for


class Rows:
    """Makes the rows of one worker's batches."""

    def __init__(self, fs: Kvfs, memory: Memory, costs: StepCosts) -> None:
        self.fs = fs
        self.memory = memory
        self._costs = costs
        self._rebuilding: list[Sent] = []  # rows without a job, in flight

    def make(self, job: Job, n_tokens: int) -> Sent | None:
        """The job's row, of at most so many tokens; None when it cannot have one now. Raises QuotaExceeded, or what a
        file says that somebody else has cut meanwhile."""
        if isinstance(job, EditJob):
            return self._edit(job, n_tokens)
        if job.preempted or self.memory.tight:
            if not self.memory.admits(job, min(n_tokens, job.n_wanted)):
                return None
        elif not job.sent and job.n_wanted > 1 and not self.memory.fits(job):
            return None
        if job.account is not None and job.account.is_limited:
            job.account.afford(min(n_tokens, job.n_wanted) + sum(s.lease.n_new for s in job.sent))
            self.memory.afford(job, min(n_tokens, job.n_wanted))
        step = job.next_step(n_tokens)
        try:
            sent = Sent(job, step, self._lease(job, step))
            job.sent.append(sent)
            return sent
        except NoSpace:
            job.retract(step)
            self.memory.wants_room(job, len(step.tokens), refused=True)
            return None
        except Busy:
            job.retract(step)
            return self._bring_back(job, n_tokens)
        except SyscallError:
            job.retract(step)
            raise

    def _edit(self, job: EditJob, n_tokens: int) -> Sent | None:
        """The row of an edit, for which all its sources have to be there; or one that brings the next of them back."""
        is_short, is_limited = job.preempted or self.memory.tight, job.account is not None and job.account.is_limited
        if is_short or is_limited:
            self.fs.size_edit(job.edit)
        if is_short and not self.memory.admits(job, n_tokens):
            return None
        if is_limited:
            self.memory.afford(job, n_tokens)
        try:
            sent = Sent(job, job.next_step(n_tokens), self.fs.lease_edit(job.edit))
        except NoSpace:
            self.memory.wants_room(job, 0, refused=True)
        except Busy:
            if job.waits_for_source():
                return self._bring_back(job, n_tokens)
        else:
            job.sent.append(sent)
            return sent
        return None

    def _lease(self, job: Job, step: Step) -> Lease:
        if job.claim is None or not step.tokens:
            return self.fs.lease_tail(job.claim or job.file)
        if step.n_again or step.chained or step.positions is not None:
            lease = self.fs.lease(job.claim, step.tokens, step.positions, n_again=step.n_again, chained=step.chained)
        else:
            lease = self.fs.lease(job.claim, step.tokens)
        if step.visible:
            lease.masked = hides(step.visible, lease.n_before, lease.n_new)
        return lease

    def _bring_back(self, job: Job, n_tokens: int) -> Sent | None:
        """A row that computes again what the job's file has lost; None while it is on its way, or has to wait."""
        file = job.claim or job.file
        where = self.fs.residency(file)
        if where is Residency.SWAPPED:
            self.memory.wants_in(job)
        if where is not Residency.PARTIAL or self._rebuilds(job.file.inode.family):
            return None  # where a relative is computed again, the beginning will be there to be shared
        if self.fs.device_of(file) is None:
            self.fs.place(file, self.memory.device)  # it was dropped
        try:
            self.fs.adopt(file)
            lease = self.fs.lease_rebuild(file, n_tokens)
        except NoSpace:
            self.memory.wants_room(job, min(n_tokens, self.fs.length(file)), refused=True)
            return None
        except Busy:
            return None  # another job's row does it
        sent = Sent(None, None, lease)
        sent.account = job.account
        self._rebuilding.append(sent)
        return sent

    def restore(self, batch: InFlight, wishes: list[Wish], max_rows: int, max_tokens: int) -> None:
        """Add rows for files that are to come back although no call asks for them, so that the batch does not take
        much longer for it."""
        if batch.rows:
            beside = self._costs.n_beside(len(batch.rows), batch.n_tokens, SLOWER)
            max_tokens = min(max_tokens, batch.n_tokens + int(min(beside, max_tokens)))
        for inode, n_tokens, *_ in wishes:
            n = min(n_tokens - inode.n_kv, max_tokens - batch.n_tokens)
            if n < 1 or len(batch.rows) >= max_rows or self._rebuilds(inode.family):
                continue
            try:
                lease = self.fs.lease_rebuild_ino(inode.ino, n)
            except (NoSpace, Busy, QuotaExceeded):
                continue  # another time
            sent = Sent(None, None, lease)
            sent.account = self.memory.account_of(inode)
            self._rebuilding.append(sent)
            batch.rows.append(sent)
            batch.n_tokens += lease.n_new

    def _rebuilds(self, family: int) -> bool:
        """Whether a row in flight, or in the batch that is being planned, computes again a file of this family."""
        return any(sent.lease.inode.family == family for sent in self._rebuilding)

    def rebuilt(self, sent: Sent) -> None:
        """A row without a job has come to its end."""
        self._rebuilding.remove(sent)
