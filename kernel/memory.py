"""Memory pressure on one worker: whose pages leave the device when somebody finds no room, and who comes back. Pure.

A file is its tokens, and its KV can always be computed again from them; so there is always room, at a price. The
batcher tells what it could not place (`wants_room`), and whose file is in main memory (`wants_in`). `end` answers
with moves, oldest want first:

1. Idle files go first, that no call works on: those whose program will be back latest, as its earlier waits tell
   (a program in a tool call is the usual one), the others by how long they have been idle already.
2. Then an older program takes the pages of a younger one, whose calls pause; never the reverse. So the oldest
   always gets on, and no two wait for each other (wound-wait: Rosenkrantz et al., 1978).
3. Whatever leaves is moved to main memory, or dropped and computed again later where that is cheaper or main
   memory is full. With `--preemption-mode swap` nothing is dropped: when main memory is full the OOM killer ends
   the youngest program that holds pages, and says why.
4. A file that could not have its pages even on an empty worker fails with ENOSPC.

While an older want is open, younger jobs get only what it leaves free. Files that left come back when their job is
next and there is room, or shortly before their program is expected to return.
"""

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from kernel.costs import StepCosts
from kernel.counters import Counters
from kernel.jobs import Job
from kvfs.fs import Kvfs
from kvfs.moves import Move, MoveKind
from kvfs.tiers import FileFacts
from sdk.abi.errors import Busy, NoSpace, QuotaExceeded, SyscallError

MODES = ("auto", "swap", "recompute")
LEAD_S = 0.05  # how long before its program returns a file begins to come back, beside the time of the move
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


class Want(NamedTuple):
    """What a job could not get."""

    age: Age
    job: Job
    n_pages: int
    comes_in: bool  # its file's pages, from main memory
    why: str


class Relief:
    """What is to be done."""

    def __init__(self) -> None:
        self.moves: list[Move] = []
        self.failed: list[tuple[Job, SyscallError]] = []
        self.killed: list[tuple[int, str]] = []  # processes, with the reason
        self.freed = False  # pages are free at once: it is worth to plan again


class Memory:
    """One worker's pages, under pressure."""

    def __init__(
        self,
        fs: Kvfs,
        device: str,
        costs: StepCosts,
        counters: Counters,
        holder: Callable[[int], Holder | None],
        *,
        mode: str,
    ) -> None:
        self._fs = fs
        self.device = device
        self._pool = fs.pools[device]
        self._costs = costs
        self._counters = counters
        self._holder = holder
        self._mode = mode
        self._wants: list[Want] = []
        self._open: list[Want] = []  # of the last plan, not satisfied; oldest first
        self._reserved = 0  # pages that those are waiting for
        self._declared: dict[Any, Holder] = {}  # accounts with a limit of pages, that have computed here
        self.due = math.inf  # when a file should come back in although nobody asks

    # --- asked while a batch is planned ---

    @property
    def tight(self) -> bool:
        """Whether somebody is waiting for pages."""
        return bool(self._open)

    def begin(self) -> None:
        """A batch is about to be planned."""
        self._wants = []
        self.due = math.inf

    def admits(self, job: Job, n_tokens: int) -> bool:
        """Whether a job may take pages for so many tokens while somebody waits for some."""
        older = [w for w in self._open if w.age < age_of(job) and w.job is not job]
        if older and (job.preempted or self._pool.n_free - self._reserved < self._need(job, n_tokens)):
            return False
        job.preempted = False
        return True

    def fits(self, job: Job) -> bool:
        """Whether all that a job wants to compute next would find pages, so that it does not begin in vain, beside
        what others that have said how many they need at most (`limits`) are still to get."""
        if self._pool.n_free - self._promised(job) >= self._need(job, job.n_wanted):
            return True
        self.wants_room(job, job.n_wanted, "")
        return False

    def afford(self, job: Job, n_tokens: int) -> None:
        """Raises QuotaExceeded when a job's process would hold more pages than its limit."""
        limit = job.account.limits.pages
        holder = self._owner(job)
        if limit is None or holder is None:
            return
        self._declared[job.account] = holder
        n_pages = holder.n_pages + self._need(job, n_tokens)
        if n_pages > limit:
            raise QuotaExceeded(f"the limit is {limit} pages, and {n_pages} are needed: close or truncate files")

    def _owner(self, job: Job) -> Holder | None:
        """The process that a job is for, among those that have its file open."""
        found = (self._holder(pid) for pid in job.file.inode.pids)
        return next((h for h in found if h is not None and h.account is job.account), None)

    def _promised(self, job: Job) -> int:
        """Pages that other processes with a limit may still come to hold."""
        if not self._declared:
            return 0
        at_work = {account: h for account, h in self._declared.items() if h.is_running}
        self._declared = at_work
        held = {account: h.n_pages for account, h in at_work.items() if account is not job.account}
        return sum(max(0, account.limits.pages - n) for account, n in held.items())

    def wants_room(self, job: Job, n_tokens: int, why: str) -> None:
        """Pages for so many tokens more are not there; `why`, where a lease was tried."""
        n_pages = self._need(job, n_tokens)
        if why:
            n_pages = max(n_pages, self._pool.n_free + 1)  # a shared page has to be copied, too
        self._wants.append(Want(age_of(job), job, n_pages, False, why))

    def wants_in(self, job: Job) -> None:
        n_pages = self._fs.n_host_pages(job.claim or job.file)
        self._wants.append(Want(age_of(job), job, n_pages, True, ""))

    def _need(self, job: Job, n_tokens: int) -> int:
        """Pages that a job's file has to get for so many tokens more."""
        inode = job.file.inode
        n_in_flight = sum(s.lease.n_new for s in job.sent)
        return -(-(inode.n_kv + n_in_flight + n_tokens) // self._pool.page_size) - len(inode.table)

    # --- the answer ---

    def end(self, now: float, jobs: list[Job], *, idle: bool) -> Relief:
        """The batch is planned; what is done about those who got nothing. `idle`: nothing at all is in flight."""
        relief = Relief()
        self._open = sorted(self._wants, key=lambda w: w.age)
        self._reserved = 0
        facts: list[FileFacts] | None = None
        for want in list(self._open):
            free = self._pool.n_free - self._reserved
            if want.comes_in and free >= want.n_pages and self._comes_in(want.job, now, relief):
                self._open.remove(want)
                continue
            if not want.comes_in and free >= want.n_pages:
                relief.freed = True  # somebody's end made room since
                self._open.remove(want)
                continue
            self._reserved += want.n_pages
            if want is not self._open[0]:
                continue
            facts = self._fs.placed(self.device)
            self._relieve(want, facts, jobs, now, relief, idle=idle)
        self._prefetch(now, jobs, relief)
        return relief

    def count(self, move: Move) -> None:
        """A move is done: book the tokens that have left the device to those who have them open."""
        if move.kind is not MoveKind.OUT:
            return
        moved = set(move.entries_from)
        for inode in move.members.values():
            n_tokens = sum(entry in moved for entry in inode.table) * self._pool.page_size
            for pid in set(inode.pids):
                if (holder := self._holder(pid)) is not None:
                    holder.account.n_swapped_tokens += n_tokens

    def _comes_in(self, job: Job, now: float, relief: Relief) -> bool:
        try:
            relief.moves.append(self._fs.swap_in(job.claim or job.file, now))
        except NoSpace:
            return False
        except Busy:  # it comes in with a relative
            return True
        job.preempted = False
        return True

    def _relieve(
        self, want: Want, facts: list[FileFacts], jobs: list[Job], now: float, relief: Relief, *, idle: bool
    ) -> None:
        """Make room for the oldest want."""
        need = want.n_pages - self._pool.n_free - sum(f.n_pages for f in facts if f.moving)
        if need <= 0:
            return  # it is on its way
        own = want.job.file.inode.ino
        at_work: dict[int, list[Job]] = {}
        for job in jobs:
            at_work.setdefault(job.file.inode.ino, []).append(job)
        movable = [f for f in facts if f.n_pages and not f.n_leases and not f.moving and f.ino != own]
        chosen = [f for f in movable if f.ino not in at_work and not f.claimed]
        chosen.sort(key=lambda f: self._returns_at(f, now), reverse=True)
        younger = sorted(
            (f for f in facts if f.ino in at_work and f.ino != own and f.n_pages and not f.moving),
            key=lambda f: max(age_of(j) for j in at_work[f.ino]),
            reverse=True,
        )
        younger = [f for f in younger if min(age_of(j) for j in at_work[f.ino]) > want.age]
        victims: list[int] = []
        expected = 0
        for f in [*chosen, *younger]:
            if expected >= need and self._fs.reclaimable(victims) >= need:
                break
            for job in at_work.get(f.ino, ()):
                if not job.preempted:
                    job.preempted = True
                    self._counters.n_preempted += 1
            expected += f.n_pages
            if not f.n_leases:
                victims.append(f.ino)
        if victims:
            self._evict(victims, facts, now, relief)
        elif idle and not relief.moves and not any(j.preempted and j.sent for j in jobs):
            self._give_up(want, relief)

    def _evict(self, victims: list[int], facts: list[FileFacts], now: float, relief: Relief) -> None:
        """Move files away, or drop what is cheaper to compute again."""
        by_ino = {f.ino: f for f in facts}
        dropped = [ino for ino in victims if self._mode != "swap" and self._drop_is_cheaper(by_ino[ino])]
        moved = [ino for ino in victims if ino not in dropped]
        if moved:
            try:
                move = self._fs.swap_out(moved, now)
                if move is not None:
                    relief.moves.append(move)
            except NoSpace as e:
                if self._mode != "swap":
                    dropped += moved
                elif not (unheld := [ino for ino in moved if not any(map(self._holder, by_ino[ino].pids))]):
                    self._kill(moved, by_ino, str(e), relief)
                else:  # names that nobody has open: whoever opens one next can wait
                    dropped += unheld
        if dropped:
            n_pages = self._fs.drop(dropped, now)
            self._counters.n_pages_dropped += n_pages
            relief.freed = relief.freed or n_pages > 0

    def _drop_is_cheaper(self, f: FileFacts) -> bool:
        if self._mode == "recompute":
            return True
        return f.n_kv * self._costs.token_s < 2 * f.n_pages * self._costs.page_s

    def _kill(self, victims: list[int], by_ino: dict[int, FileFacts], why: str, relief: Relief) -> None:
        """The OOM killer: the youngest program among those who would have to make room."""
        pids = [pid for ino in victims for pid in by_ino[ino].pids if self._holder(pid) is not None]
        if pids:
            pid = max(pids, key=lambda pid: self._age(pid))
            n_pages = sum(by_ino[ino].n_pages for ino in victims if pid in by_ino[ino].pids)
            relief.killed.append((pid, f"out of memory: its {n_pages} pages are needed by an older program, and {why}"))
            self._counters.n_oom_kills += 1

    def _give_up(self, want: Want, relief: Relief) -> None:
        self._open.remove(want)
        n_pages, pool = want.n_pages, self._pool
        why = want.why or f"{n_pages} pages are needed, and {pool.n_free} of {pool.n_pages} can be had"
        relief.failed.append((want.job, NoSpace(f"{why}; nothing is left that could be moved away")))

    # --- who comes back ---

    def _returns_at(self, f: FileFacts, now: float) -> float:
        """When a file will be wanted again. One of which nothing is known stays idle as long as it has been."""
        known = [at for pid in f.pids if (h := self._holder(pid)) is not None and (at := h.returns_at(now)) is not None]
        return min(known) if known else now + (now - f.used_s)

    def _prefetch(self, now: float, jobs: Iterable[Job], relief: Relief) -> None:
        """Bring files in whose programs are about to return, while there is room that nobody waits for."""
        if self._open or self._pool.host.n_free == self._pool.host.n_pages:
            return
        for f in self._fs.placed(self.device):
            if not f.n_host_pages or f.moving:
                continue
            known = [
                at for pid in f.pids if (h := self._holder(pid)) is not None and (at := h.returns_at(now)) is not None
            ]
            if not known:
                continue
            at = min(known) - LEAD_S - f.n_host_pages * self._costs.page_s
            if at > now:
                self.due = min(self.due, at)
            elif self._pool.n_free >= f.n_host_pages:
                with contextlib.suppress(Busy):  # it comes in with a relative
                    relief.moves.append(self._fs.swap_in_ino(f.ino, now))

    def _age(self, pid: int) -> Age:
        holder = self._holder(pid)
        return OLDEST if holder is None else holder.age


def age_of(job: Job) -> Age:
    """Priority class, then when the program began; then the job's number, so that no two are the same age."""
    return OLDEST if job.account is None else (*job.account.age, job.number)
