"""Who has files open, as memory pressure sees them: how old they are, and when they will be back. Pure.

A *holder* is a process; the kernel's own handles have none, and count as older than everybody. Asked by the deciders
about memory (`kernel/memory.py` and what it calls). Never add here what follows for a file.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

from kernel.jobs import Job
from kvfs.inode import Inode
from kvfs.moves import Move, MoveKind
from kvfs.tiers import FileFacts

OLDEST = (-math.inf,)  # age of the kernel's own

Age = tuple[float, ...]  # smaller is older


class Holder(Protocol):
    """A process, as somebody who has files open."""

    @property
    def age(self) -> Age:
        """Priority class, then when its program began."""

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""

    @property
    def account(self) -> Any:
        """Where its use of memory is booked."""

    @property
    def n_pages(self) -> int:
        """Pages that its open files have."""

    def returns_at(self, now: float) -> float | None:
        """When it is expected back from what it waits for outside of the model; None when it is not away."""


class Holders:
    """All of them, by the pids that files know."""

    def __init__(self, holder: Callable[[int], Holder | None]) -> None:
        """`holder`: the process of a pid, None when there is none."""
        self.find = holder

    def age(self, pid: int) -> Age:
        holder = self.find(pid)
        return OLDEST if holder is None else holder.age

    def of(self, job: Job) -> Holder | None:
        """The process that a job is for, among those that have its file open."""
        found = (self.find(pid) for pid in job.file.inode.pids)
        return next((h for h in found if h is not None and h.account is job.account), None)

    def account_of(self, inode: Inode) -> Any:
        """Of a program that has a file open, or None."""
        return next((h.account for pid in inode.pids if (h := self.find(pid)) is not None), None)

    def returns_at(self, f: FileFacts, now: float) -> float | None:
        """When the first of a file's programs that are away is expected back; None when none is."""
        known = [at for pid in f.pids if (h := self.find(pid)) is not None and (at := h.returns_at(now)) is not None]
        return min(known, default=None)

    def book(self, move: Move) -> None:
        """A move is done: book the tokens that have left the device to those who have them open."""
        if move.kind is not MoveKind.OUT:
            return
        moved, size = set(move.entries_from), move.pool_from.page_size
        for inode in move.members.values():
            n_tokens = sum(min(size, inode.n_kv - i * size) for i, entry in enumerate(inode.table) if entry in moved)
            for pid in set(inode.pids):
                if (holder := self.find(pid)) is not None:
                    holder.account.n_swapped_tokens += n_tokens


def age_of(job: Job) -> Age:
    """Priority class, then when the program began; then the job's number, so that no two are the same age."""
    return OLDEST if job.account is None else (*job.account.age, job.number)


def tenant_of(job: Job) -> str:
    """Whose cache may make room for it; nobody's for the kernel's own."""
    return "" if job.account is None else job.account.tenant.name
