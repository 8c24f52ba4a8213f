"""Memory pressure on one worker: whose pages leave the device when somebody finds no room, and who comes back. Pure.

A file is its tokens, and its KV can always be computed again from them; so there is always room, at a price. The
batcher tells what it could not place (`wants_room`), and whose file is in main memory (`wants_in`). `end` answers
with moves, oldest want first:

1. Idle files go first, that no call works on, in the order of `kernel/eviction.py`: what nobody has open, then what
   its program will want latest, where that costs least to get back. Pinned pages stay.
2. Then an older program takes the pages of a younger one, whose calls pause; never the reverse. So the oldest
   always gets on, and no two wait for each other (wound-wait: Rosenkrantz et al., 1978).
3. Whatever leaves is moved to main memory, or dropped and computed again later where that is cheaper or main
   memory is full; an edited file only where nothing else can be (ADR 18). With `--preemption-mode swap` nothing is
   dropped: when main memory is full the OOM killer ends the youngest program that holds pages, and says why.
4. A file that could not have its pages even on an empty worker fails with ENOSPC.

While an older want is open, younger jobs get only what it leaves free. Files that left come back when their job is
next and there is room, or shortly before their program is expected to return. Pinned ones, and those that a program
said it will need, come back as soon as nobody waits and there is room, for which files that nobody has open may go.
Main memory that is full is made room in the same way: what nobody has open is dropped there before anything else is.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from kernel import eviction
from kernel.costs import StepCosts
from kernel.counters import Counters
from kernel.eviction import Scene, Standing, Victim
from kernel.jobs import Job
from kvfs.fs import Kvfs
from kvfs.inode import Inode
from kvfs.moves import Move, MoveKind
from kvfs.pins import Wish
from kvfs.tiers import FileFacts
from sdk.abi.errors import Busy, NoSpace, QuotaExceeded, SyscallError

MODES = ("auto", "swap", "recompute")
LEAD_S = 0.05  # how long before its program returns a file begins to come back, beside the time of the move
SPARE = 64  # of the pages of a device, one in so many is made free besides, where files that nobody has open go
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
        self.restore: list[Wish] = []  # files to be computed again although no call asks


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
        """`shares` are weights of tenants by name, 1 for all others; `hold_s` see `kernel/eviction.py`."""
        self._fs = fs
        self._shares = shares
        self._hold_s = hold_s
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

    def account_of(self, inode: Inode) -> Any:
        """Of the program that has a file open, or None."""
        return next((h.account for pid in inode.pids if (h := self._holder(pid)) is not None), None)

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
        self._prefetch(now, jobs, relief)
        self._bring_back(now, relief)
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
        scene = self._scene(tenant_of(want.job), now, {*want.job.inos, *at_work})
        chosen = eviction.order(facts, scene)
        wanted = self._enough([*chosen, *self._younger(want, facts, at_work, scene.pinned)], need, scene)
        wanted += self._spare(chosen[len(wanted) :])
        for job in [job for v in wanted for job in at_work.get(v.facts.ino, ()) if not job.preempted]:
            job.preempted = True
            self._counters.n_preempted += 1
        victims = self._useful([v for v in wanted if not v.facts.n_leases], scene)
        if victims:
            self._evict(victims, facts, scene, relief)
        waits = relief.moves or self._fs.is_receiving(self.device) or any(j.preempted and j.sent for j in jobs)
        if idle and not victims and not waits:
            self._give_up(want, facts, scene, relief)

    def _scene(self, tenant: str, now: float, busy: set[int]) -> Scene:
        fs, device = self._fs, self.device
        return Scene(
            now=now,
            n_pages=self._pool.n_pages,
            tenant=tenant,
            shares=self._shares,
            hold_s=self._hold_s,
            pinned=fs.pinned(device, now),
            unneeded=fs.unneeded(device),
            busy=busy,
            returns_at=lambda f: self._returns_at(f, now),
            n_cached=fs.n_distinct,
            costs=self._costs,
        )

    def _younger(
        self, want: Want, facts: list[FileFacts], at_work: dict[int, list[Job]], pinned: Mapping[int, int]
    ) -> list[Victim]:
        """The files that younger programs work on, youngest first."""
        own = want.job.inos
        found = [f for f in facts if f.ino in at_work and f.ino not in own and f.n_pages and not f.moving]
        found = [f for f in found if min(age_of(j) for j in at_work[f.ino]) > want.age]
        found.sort(key=lambda f: max(age_of(j) for j in at_work[f.ino]), reverse=True)
        victims = [Victim(f, Standing.AT_WORK, pinned.get(f.ino, 0), 0.0) for f in found]
        return [v for v in victims if v.n_freed > 0]

    def _enough(self, candidates: list[Victim], need: int, scene: Scene) -> list[Victim]:
        """So many of them, in their order, that `need` pages will be free when they have left; all if it is never."""
        taken: list[Victim] = []
        expected = 0
        for v in candidates:
            if expected >= need and self._reclaimable(taken, scene) >= need:
                break
            taken.append(v)
            expected += v.n_freed
        return taken

    def _spare(self, candidates: list[Victim]) -> list[Victim]:
        """Some more that nobody has open, so that not every page more is asked for one by one."""
        taken: list[Victim] = []
        left = self._pool.n_pages // SPARE
        for v in candidates:
            if v.standing > Standing.CACHED or v.n_freed > left:
                break
            taken.append(v)
            left -= v.n_freed
        return taken

    def _reclaimable(self, victims: list[Victim], scene: Scene) -> int:
        return self._fs.reclaimable([v.facts.ino for v in victims], kept(victims, scene))

    def _useful(self, victims: list[Victim], scene: Scene) -> list[Victim]:
        """Those that bring a page: the others would lose what they share, and nobody would gain by it."""
        useful = set(self._fs.leaving([v.facts.ino for v in victims], kept(victims, scene)))
        return [v for v in victims if v.facts.ino in useful]

    def _evict(self, victims: list[Victim], facts: list[FileFacts], scene: Scene, relief: Relief) -> None:
        """Move files away, or drop what is cheaper to get back in another way."""
        keep, now = kept(victims, scene), scene.now
        for v in victims:
            self._counters.evicted(v.standing.name.lower())
        dropped = [v for v in victims if self._mode != "swap" and self._drop_is_cheaper(v)]
        moved = [v for v in victims if v not in dropped]
        if moved:
            self._make_host_room(moved, facts, scene)
            try:
                move = self._fs.swap_out(inos(moved), now, keep)
                if move is not None:
                    relief.moves.append(move)
            except NoSpace as e:
                if self._mode != "swap":
                    dropped += self._but_edited(moved, dropped, relief, keep, now)
                elif not (unheld := [v for v in moved if not any(map(self._holder, v.facts.pids))]):
                    self._kill(moved, str(e), relief)
                else:  # names that nobody has open: whoever opens one next can wait
                    dropped += unheld
        if dropped:
            n_pages = self._fs.drop(inos(dropped), now, keep)
            self._counters.n_pages_dropped += n_pages
            relief.freed = relief.freed or n_pages > 0

    def _make_host_room(self, victims: list[Victim], facts: list[FileFacts], scene: Scene) -> None:
        """Drop files that nobody has open from main memory, where that is full and they are worth less than what is
        to be moved there."""
        host, need = self._pool.host, self._reclaimable(victims, scene)
        if host.n_free >= need or not host.n_pages:
            return
        stays = {*inos(victims), *scene.pinned}  # the latter have pages on the device, and would lose them too
        there = [f._replace(n_pages=f.n_host_pages) for f in facts if f.ino not in stays]
        scene = scene._replace(n_pages=host.n_pages, pinned={}, n_cached=partial(self._fs.n_distinct, in_host=True))
        worth = max((v.standing, v.profit) for v in victims)
        for v in eviction.order(there, scene):
            if host.n_free >= need or v.standing > Standing.CACHED or (v.standing, v.profit) >= worth:
                return
            if not v.facts.edited or v.facts.n_durable >= v.facts.n_kv:
                self._counters.n_pages_dropped += self._fs.drop([v.facts.ino], scene.now)

    def _but_edited(
        self, moved: list[Victim], dropped: list[Victim], relief: Relief, keep: Mapping[int, int], now: float
    ) -> list[Victim]:
        """Which of these to drop, since main memory cannot take them all. Those that are edited go there by themselves,
        if that can be, and are dropped when nothing else is."""
        edited = [v for v in moved if v.facts.edited]
        others = [v for v in moved if not v.facts.edited]
        if not edited:
            return others
        try:
            move = self._fs.swap_out(inos(edited), now, keep)
        except NoSpace:
            return others if others or dropped else edited
        if move is not None:
            relief.moves.append(move)
        return others

    def _drop_is_cheaper(self, v: Victim) -> bool:
        f = v.facts
        if f.n_durable >= f.n_kv and v.standing is not Standing.AT_WORK:
            return True  # it is read from disk when a call comes that needs it
        if f.edited:
            return False  # it would not be what it was
        if self._mode == "recompute":
            return True
        return f.n_kv * self._costs.token_s < 2 * f.n_pages * self._costs.page_s

    def _kill(self, victims: list[Victim], why: str, relief: Relief) -> None:
        """The OOM killer: the youngest program among those who would have to make room."""
        facts = [v.facts for v in victims]
        pids = [pid for f in facts for pid in f.pids if self._holder(pid) is not None]
        if pids:
            pid = max(pids, key=lambda pid: self._age(pid))
            n_pages = sum(f.n_pages for f in facts if pid in f.pids)
            relief.killed.append((pid, f"out of memory: its {n_pages} pages are needed by an older program, and {why}"))
            self._counters.n_oom_kills += 1

    def _give_up(self, want: Want, facts: list[FileFacts], scene: Scene, relief: Relief) -> None:
        self._open.remove(want)
        n_pages, pool = want.n_pages, self._pool
        why = want.why or f"{n_pages} pages are needed, and {pool.n_free} of {pool.n_pages} can be had"
        n_pinned = sum(scene.pinned.values())
        n_others = sum(f.n_pages for f in facts if not f.pids and f.tenant != scene.tenant)
        left = f"; {n_pinned} pages are pinned" * (n_pinned > 0) + f"; {n_others} are other tenants'" * (n_others > 0)
        relief.failed.append((want.job, NoSpace(f"{why}; nothing is left that could be moved away{left}")))

    # --- who comes back ---

    def _returns_at(self, f: FileFacts, now: float) -> float | None:
        """When the first of its programs that are away is expected back; None when none is."""
        known = [at for pid in f.pids if (h := self._holder(pid)) is not None and (at := h.returns_at(now)) is not None]
        return min(known, default=None)

    def look_soon(self) -> None:
        """Somebody has asked for a file to come back."""
        self.due = -math.inf

    def _bring_back(self, now: float, relief: Relief) -> None:
        """What is pinned, or was said to be needed, while nobody waits for room."""
        wishes = [wish for wish in self._fs.wanted(now) if wish.inode.pool is self._pool] if not self._open else []
        if wishes:
            self.due = now  # look again whenever something has happened
        free = self._pool.n_free
        for inode, n_tokens, is_pinned in wishes:
            if inode.moving or inode.n_leases:
                continue  # somebody is at it
            n_pages = inode.n_host or -(-n_tokens // self._pool.page_size) - len(inode.table)
            if n_pages > free:
                self._make_way(inode.tenant, n_pages - free, {w.inode.ino for w in wishes}, now, relief)
                return
            free -= n_pages
            if not inode.n_host:
                relief.restore.append(Wish(inode, n_tokens, is_pinned))
                continue
            with contextlib.suppress(Busy):  # it comes in with a relative
                relief.moves.append(self._fs.swap_in_ino(inode.ino, now))

    def _make_way(self, tenant: str, need: int, wanted: set[int], now: float, relief: Relief) -> None:
        """Evict what nobody has open, if that is enough for a file that is to come back."""
        facts = self._fs.placed(self.device)
        scene = self._scene(tenant, now, wanted)
        victims = self._enough([v for v in eviction.order(facts, scene) if v.standing <= Standing.CACHED], need, scene)
        if self._reclaimable(victims, scene) >= need:
            self._evict(self._useful(victims, scene), facts, scene, relief)

    def drop_for(self, job: Job, n_pages: int, jobs: Iterable[Job], now: float) -> None:
        """Make `n_pages` free at once for K/V that a job gets from disk, if nobody waits for room and that can be done
        without moving anything: by dropping what nobody has open and is on disk or cheap to compute."""
        facts, need = self._fs.placed(self.device), n_pages - self._pool.n_free
        scene = self._scene(tenant_of(job), now, {ino for other in (job, *jobs) for ino in other.inos})
        chosen = [v for v in eviction.order(facts, scene) if v.standing <= Standing.CACHED and self._drop_is_cheaper(v)]
        victims = self._enough(chosen, need, scene)
        if not self._open and self._mode != "swap" and self._reclaimable(victims, scene) >= need:
            self._counters.n_pages_dropped += self._fs.drop(inos(victims), now, kept(victims, scene))

    def _prefetch(self, now: float, jobs: Iterable[Job], relief: Relief) -> None:
        """Bring files in whose programs are about to return, while there is room that nobody waits for."""
        if self._open or self._pool.host.n_free == self._pool.host.n_pages:
            return
        for f in self._fs.placed(self.device):
            if not f.n_host_pages or f.moving:
                continue
            returns_at = self._returns_at(f, now)
            if returns_at is None:
                continue
            at = returns_at - LEAD_S - f.n_host_pages * self._costs.page_s
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


def tenant_of(job: Job) -> str:
    """Whose cache may make room for it; nobody's for the kernel's own."""
    return "" if job.account is None else job.account.tenant.name


def inos(victims: Iterable[Victim]) -> list[int]:
    return [v.facts.ino for v in victims]


def kept(victims: Iterable[Victim], scene: Scene) -> dict[int, int]:
    """Leading pages that stay, as kvfs wants to know it: of these files, and of their relatives that are pinned."""
    return {**scene.pinned, **{v.facts.ino: v.n_kept for v in victims}}
