"""One row of the next batch: a job's step with the lease of its pages, or tokens computed again that a file has lost.
Pure.

Called by `kernel/batcher.py` for each job that it would like to have in a batch. What a job cannot get it is told to
`kernel/memory.py`, and has no row this time. Never add here whom to ask, or what becomes of a row.
"""

from kernel.jobs import Job, Sent, Step
from kernel.memory import Memory
from kvfs.fs import Kvfs
from kvfs.inode import Residency
from kvfs.lease import Lease
from sdk.abi.errors import Busy, NoSpace, SyscallError


class Rows:
    """Makes the rows of one worker's batches."""

    def __init__(self, fs: Kvfs, memory: Memory) -> None:
        self.fs = fs
        self.memory = memory
        self._rebuilding: list[Sent] = []  # rows without a job, in flight

    def make(self, job: Job, n_tokens: int) -> Sent | None:
        """The job's row, of at most so many tokens; None when it cannot have one now. Raises QuotaExceeded, or what a
        file says that somebody else has cut meanwhile."""
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
        except NoSpace as e:
            job.retract(step)
            self.memory.wants_room(job, len(step.tokens), str(e))
            return None
        except Busy:
            job.retract(step)
            return self._bring_back(job, n_tokens)
        except SyscallError:
            job.retract(step)
            raise

    def _lease(self, job: Job, step: Step) -> Lease:
        if job.claim is None or not step.tokens:
            return self.fs.lease_tail(job.claim or job.file)
        if step.n_again or step.chained or step.positions is not None:
            return self.fs.lease(job.claim, step.tokens, step.positions, n_again=step.n_again, chained=step.chained)
        return self.fs.lease(job.claim, step.tokens)

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
        except NoSpace as e:
            self.memory.wants_room(job, min(n_tokens, self.fs.length(file)), str(e))
            return None
        except Busy:
            return None  # another job's row does it
        sent = Sent(None, None, lease)
        sent.account = job.account
        self._rebuilding.append(sent)
        return sent

    def _rebuilds(self, family: int) -> bool:
        """Whether a row in flight, or in the batch that is being planned, computes again a file of this family."""
        return any(sent.lease.inode.family == family for sent in self._rebuilding)

    def rebuilt(self, sent: Sent) -> None:
        """A row without a job has come to its end."""
        self._rebuilding.remove(sent)
