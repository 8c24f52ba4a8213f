"""Memory pressure on one worker: who finds no room, and what is done about it. Pure.

A file is its tokens, and its KV can always be computed again from them; so there is always room, at a price. The
batcher tells what it could not place (`wants_room`), and whose file is in main memory (`wants_in`). `end` answers
with moves, oldest want first:

1. Idle files go first, that no call works on, in the order of `kernel/eviction.py`: what nobody has open, then what
   its program will want latest, where that costs least to get back. Pinned pages stay.
2. Then an older program takes the pages of a younger one, whose calls pause; never the reverse. So the oldest
   always gets on, and no two wait for each other (wound-wait: Rosenkrantz et al., 1978). `kernel/victims.py` chooses.
3. Whatever leaves is moved to main memory, or dropped and computed again later: `kernel/demotion.py` says which.
4. A file that could not have its pages even on an empty worker fails with ENOSPC.

While an older want is open, younger jobs get only what it leaves free. Files that left come back when their job is
next and there is room; while nobody waits for room, others come back unasked (`kernel/returns.py`).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from kernel.costs import StepCosts
from kernel.counters import Counters
from kernel.demotion import Demotion
from kernel.eviction import Scene
from kernel.holders import Age, Holder, Holders, age_of, tenant_of
from kernel.jobs import Job
from kernel.relief import Relief
from kernel.reservations import Reservations
from kernel.returns import Returns
from kernel.shortage import no_room
from kernel.victims import Victims
from kvfs.fs import Kvfs
from kvfs.inode import Inode
from kvfs.moves import Move, MoveKind
from kvfs.tiers import FileFacts
from sdk.abi.errors import Busy, NoSpace

MODES = ("auto", "swap", "recompute")


class Want(NamedTuple):
    """What a job could not get."""

    age: Age
    job: Job
    n_asked: int  # pages that it would take
    n_pages: int  # that have to be free for it
    comes_in: bool  # its file's pages, from main memory


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
        shares: Mapping[str, float],
        hold_s: float,
    ) -> None:
        """`holder`: the process of a pid; `mode`: of preemption; `shares` are weights of tenants by name, 1 for all
        others; `hold_s` see `kernel/eviction.py`."""
        self.device = device
        self._fs = fs
        self._pool = fs.pools[device]
        self._costs = costs
        self._counters = counters
        self._holders = Holders(holder)
        self._reservations = Reservations(self._holders)
        self._victims = Victims(fs, device, costs, self._holders, shares, hold_s)
        self._demotion = Demotion(fs, device, costs, counters, self._holders, self._victims, mode)
        self._returns = Returns(fs, device, costs, self._holders, self._victims, self._demotion)
        self._wants: list[Want] = []
        self._open: list[Want] = []  # of the last plan, not satisfied; oldest first
        self._reserved = 0  # pages that those are waiting for

    # --- asked while a batch is planned ---

    @property
    def tight(self) -> bool:
        """Whether somebody is waiting for pages."""
        return bool(self._open)

    @property
    def due(self) -> float:
        """When a file should come back in although nobody asks."""
        return self._returns.due

    def look_soon(self) -> None:
        """Somebody has asked for a file to come back."""
        self._returns.due = -math.inf

    def begin(self) -> None:
        """A batch is about to be planned."""
        self._wants = []
        self._returns.due = math.inf

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
        if self._pool.n_free - self._reservations.promised(job) >= self._need(job, job.n_wanted):
            return True
        self.wants_room(job, job.n_wanted)
        return False

    def afford(self, job: Job, n_tokens: int) -> None:
        """Raises QuotaExceeded when a job's process would hold more pages than its limit."""
        if job.account.limits.pages is not None:
            self._reservations.afford(job, self._need(job, n_tokens))

    def account_of(self, inode: Inode) -> Any:
        """Of the program that has a file open, or None."""
        return self._holders.account_of(inode)

    def wants_room(self, job: Job, n_tokens: int, *, refused: bool = False) -> None:
        """Pages for so many tokens more are not there; `refused`: a lease was tried."""
        n_asked = n_pages = self._need(job, n_tokens)
        if refused:
            n_pages = max(n_pages, self._pool.n_free + 1)  # a shared page has to be copied, too
        self._wants.append(Want(age_of(job), job, n_asked, n_pages, comes_in=False))

    def wants_in(self, job: Job) -> None:
        n_pages = self._fs.n_host_pages(job.claim or job.file)
        self._wants.append(Want(age_of(job), job, n_pages, n_pages, comes_in=True))

    def _need(self, job: Job, n_tokens: int) -> int:
        """Pages that a job's file has to get for so many tokens more."""
        return job.n_pages_wanted(n_tokens, self._pool.page_size)

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
        if not self._open:
            self._returns.prefetch(now, relief)
            self._returns.bring_back(now, relief)
        return relief

    def settle(self, moves: list[Move], now: float, seconds: float) -> None:
        """The moves of a batch are done, in so many seconds."""
        n_pages, counters = 0, self._counters
        for move in moves:
            self._holders.book(move)
            self._fs.commit_move(move, now)
            n = len(move.pairs)
            n_pages += n
            if move.kind is MoveKind.OUT:
                counters.n_pages_out += n
                counters.n_swaps_out += 1
            else:
                counters.n_pages_in += n
                counters.n_swaps_in += 1
        self._costs.moved(n_pages, seconds)

    def _comes_in(self, job: Job, now: float, relief: Relief) -> bool:
        if not self._fs.n_host_pages(job.claim or job.file):  # room for an older want was made there, just now
            return True
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
        at_work: dict[int, list[Job]] = {}
        for job in jobs:
            for ino in job.inos:
                at_work.setdefault(ino, []).append(job)
        scene = self._victims.scene(tenant_of(want.job), now, {*want.job.inos, *at_work})
        wanted = self._victims.choose(want.age, want.job.inos, facts, at_work, need, scene)
        for job in [job for v in wanted for job in at_work.get(v.facts.ino, ()) if not job.preempted]:
            job.preempted = True
            self._counters.n_preempted += 1
        victims = self._victims.useful([v for v in wanted if not v.facts.n_leases], scene)
        has_gone = bool(victims) and self._demotion.evict(victims, facts, scene, want.age, relief)
        waits = relief.moves or self._fs.is_receiving(self.device) or any(j.preempted and j.sent for j in jobs)
        if idle and not has_gone and not waits:
            self._give_up(want, facts, scene, relief)

    def _give_up(self, want: Want, facts: list[FileFacts], scene: Scene, relief: Relief) -> None:
        self._open.remove(want)
        error = no_room(self._pool, facts, scene, n_asked=want.n_asked, n_needed=want.n_pages)
        relief.failed.append((want.job, error))

    def drop_for(self, job: Job, n_pages: int, jobs: Iterable[Job], now: float) -> None:
        """Make `n_pages` free at once for K/V that a job gets from disk, if nobody waits for room and that can be done
        without moving anything: by dropping what nobody has open and is on disk or cheap to compute."""
        if not self._open:
            facts, need = self._fs.placed(self.device), n_pages - self._pool.n_free
            busy = {ino for other in (job, *jobs) for ino in other.inos}
            self._demotion.drop_cached(facts, need, self._victims.scene(tenant_of(job), now, busy))
