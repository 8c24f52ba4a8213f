"""Limits of pages, and what they promise: a program that says how many it needs at most (`limits(pages=...)`) gets no
more, and finds those that it has yet to get. Pure.

Asked by `kernel/memory.py`. Never add here who makes room.
"""

from typing import Any

from kernel.holders import Holder, Holders
from kernel.jobs import Job
from sdk.abi.errors import QuotaExceeded


class Reservations:
    """Of the programs that have computed on one worker."""

    def __init__(self, holders: Holders) -> None:
        self._holders = holders
        self._declared: dict[Any, Holder] = {}  # accounts with a limit of pages

    def afford(self, job: Job, n_more: int) -> None:
        """Raises QuotaExceeded when a job's process would hold more pages than its limit with `n_more`."""
        limit = job.account.limits.pages
        holder = self._holders.of(job)
        if limit is None or holder is None:
            return
        self._declared[job.account] = holder
        n_pages = holder.n_pages + n_more
        if n_pages > limit:
            raise QuotaExceeded(f"the limit is {limit} pages, and {n_pages} are needed: close or truncate files")

    def promised(self, job: Job) -> int:
        """Pages that other processes with a limit may still come to hold."""
        if not self._declared:
            return 0
        at_work = {account: h for account, h in self._declared.items() if h.is_running}
        self._declared = at_work
        held = {account: h.n_pages for account, h in at_work.items() if account is not job.account}
        return sum(max(0, account.limits.pages - n) for account, n in held.items())
