"""Jobs that no worker has: they wait for one to come, or for their files to arrive. Pure.

Each holds its file's claim as before. It is taken when there is a worker for it, cancelled, or given up in the end,
and whichever is first ends its stay here. Called by `kernel/fleet.py`.
"""

import math

from kernel.jobs import Job
from kvfs.fs import Kvfs


class Orphans:
    """Of one fleet."""

    def __init__(self, fs: Kvfs) -> None:
        self._fs = fs
        self._until: dict[Job, float] = {}

    def __contains__(self, job: Job) -> bool:
        return job in self._until

    def __len__(self) -> int:
        return len(self._until)

    def add(self, job: Job, until: float) -> None:
        """Keep a job that fails at that time; inf for one whose file is on its way."""
        self._until[job] = until

    def take(self, job: Job) -> bool:
        """There is a worker for it. Whether it is still here."""
        return self._until.pop(job, None) is not None

    def waiting(self) -> list[Job]:
        """Those who wait for a worker, in the order they came."""
        return [job for job, until in self._until.items() if not math.isinf(until)]

    def late(self, now: float) -> list[Job]:
        """Those who have waited for long enough."""
        return [job for job, until in self._until.items() if until <= now]

    def drop(self, job: Job, now: float) -> None:
        """It has come to its end here: give its file back."""
        del self._until[job]
        if job.claim is not None:
            if not job.keeps_partial:
                self._fs.truncate_claimed(job.claim, job.n_file, now)
            self._fs.release(job.claim, now)
            job.claim = None
