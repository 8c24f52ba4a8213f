"""What programs ask for their files' pages: how much a pin may hold, and bringing back what should be there.

A tenant may pin its share of what may be pinned on a device at all (`--max-pinned-share`): by its weight among the
tenants that run programs or have pins there. More than that is clipped, from the end of the file. Because of that
quota a pin is never broken, by whomever else: whoever needs room finds it in what is not pinned, and a call that would
need more than that is told so (`ENOSPC`).

The files that are to come back are looked at when somebody asks, and now and then until they are there. Those that
lost their device are placed on another here; those that are on disk are loaded as soon as there is room for them
(`fetch`); room, and all else, is `kernel/memory.py`'s. So advice never takes pages from a file that is open. Made by
`kernel/core.py`, called by `kernel/sys_advice.py`. Never add here which files leave.
"""

import asyncio
import math
from collections.abc import Callable, Mapping

from kernel.fleet import Fleet
from kernel.scheduler import Scheduler
from kvfs.access import KERNEL
from kvfs.inode import Inode
from kvfs.openfile import OpenFile
from kvfs.pages import PagePool
from kvfs.pins import is_there, n_pages_of
from sdk.abi.values import Advice, Advised, Outcome

LOOK_S = 0.1  # between two looks at what has not come back yet


class Advisor:
    """Of one fleet."""

    def __init__(self, fleet: Fleet, scheduler: Scheduler, shares: Mapping[str, float]) -> None:
        """`shares` are weights of tenants by name; 1 for all others."""
        self._fleet = fleet
        self._fs = fleet.fs
        self._tenants = scheduler.tenants
        self._shares = shares
        self._asked = asyncio.Event()
        self.fetch: Callable[[Inode, int], bool] | None = None  # of so many tokens: see `Loading.fetch`

    # --- what is asked ---

    def pin(self, file: OpenFile, tenant: str, ttl: float | None) -> Advised:
        """Keep a file's pages on its device for `ttl` seconds; None: while it is open; 0: not any more. What is refused
        changes nothing: an earlier pin stays."""
        fs, inode, now = self._fs, file.live(), self._fleet.now()
        if ttl == 0.0:
            fs.unpin(file, tenant)
            return Advised(Outcome.ACCEPTED)
        if not inode.tokens:
            return refused("this file is empty: pin it when it has tokens")
        pool = self._place(file)
        if pool is None:
            return refused("no worker is there to keep it")
        n_wanted = n_pages_of(inode)
        n_pages = min(n_wanted, fs.pins.room(inode, tenant, self._share(pool, tenant), now))
        if n_pages < 1:
            n_held = fs.pins.n_pinned(pool, now).get(tenant, 0)
            return refused(
                f"{tenant!r} has pinned {n_held} pages of {pool.name} and may pin no more now: unpin others, try again "
                "later, or ask the operator to raise --max-pinned-share"
            )
        until_s = math.inf if ttl is None else now + ttl
        fs.pin(file, tenant, n_pages, until_s)
        self._asked.set()
        until = None if ttl is None else until_s
        n_tokens = min(n_pages * pool.page_size, len(inode.tokens))
        detail = f"{n_wanted} pages are wanted, and {n_pages} are left of the quota" if n_pages < n_wanted else ""
        if is_there(inode, n_tokens) and not inode.moving:
            return Advised(Outcome.CLIPPED if detail else Outcome.ACCEPTED, n_pages, until, detail)
        self._begin(inode, n_tokens, pool)
        on_its_way = "its pages are brought back first"
        return Advised(Outcome.DEFERRED, n_pages, until, f"{detail}; {on_its_way}" if detail else on_its_way)

    def advise(self, file: OpenFile, tenant: str, advice: Advice) -> Advised:
        """Bring a file's pages back before somebody asks, or let it be the first to leave."""
        fs, inode, now = self._fs, file.live(), self._fleet.now()
        if advice is Advice.WILLNEED:
            pool = self._place(file) if inode.tokens else None
            if pool is None:
                return refused("no worker is there to bring it to" if inode.tokens else "this file is empty")
            n_pages = n_pages_of(inode)
            if n_pages > pool.n_pages:
                return refused(f"this file has {n_pages} pages, and {pool.name} has {pool.n_pages} in all: truncate it")
            fs.advise(file, advice, now)
            if is_there(inode, len(inode.tokens)) and not inode.moving:
                return Advised(Outcome.ACCEPTED, n_pages)
            self._begin(inode, len(inode.tokens), pool)
            return Advised(Outcome.DEFERRED, n_pages, detail="its pages come back as soon as there is room")
        if inode.tenant != tenant:
            return refused("this file belongs to somebody else, who decides how long it is needed")
        if {*inode.pids} - {file.pid, KERNEL.pid}:
            return refused("another program has this file open: try again when it has closed it")
        if fs.pins.until(inode, now)[0]:
            return refused("this file is pinned: unpin it first")
        fs.advise(file, advice, now)
        if inode.pool is not None:
            self._look_soon(inode.pool)
        return Advised(Outcome.ACCEPTED, len(inode.table) - inode.n_host)

    def _share(self, pool: PagePool, tenant: str) -> float:
        """Of what may be pinned on a device, how much is for this tenant."""
        running = {name for name, t in self._tenants.items() if t.n_processes}
        there = running | set(self._fs.pins.n_pinned(pool, self._fleet.now())) | {tenant}
        weights = {name: self._shares.get(name, 1.0) for name in sorted(there)}
        return weights[tenant] / sum(weights.values())

    # --- bringing it back ---

    def _begin(self, inode: Inode, n_tokens: int, pool: PagePool) -> None:
        if self.fetch is not None and self.fetch(inode, n_tokens):
            self._fs.pins.awaited.add(inode.ino)
        else:
            self._fs.pins.awaited.discard(inode.ino)
        self._look_soon(pool)

    def _place(self, file: OpenFile) -> PagePool | None:
        """The device of a file; one that has none gets one, if any is there."""
        if file.inode.pool is None and (name := self._best()) is not None:
            self._fs.place(file, name)
        return file.inode.pool

    def _best(self) -> str | None:
        return self._fleet.workers.place({a.worker.name: self._fleet.load(a) for a in self._fleet.all_attached()})

    def _look_soon(self, pool: PagePool) -> None:
        self._asked.set()
        for attached in self._fleet.all_attached():
            if attached.worker.name == pool.name:
                attached.batcher.memory.look_soon()
                self._fleet.pump_soon(attached)

    def look(self) -> None:
        """See to what should be on a device and is not."""
        if self._fs.pins.are_quiet:
            self._asked.clear()
            return
        now = self._fleet.now()
        for inode, *_ in self._fs.wanted(now):
            if inode.pool is None and not inode.n_leases and not inode.moving and (name := self._best()) is not None:
                self._fs.place_ino(inode.ino, name)
        for inode, n_tokens, *_ in self._fs.wanted(now):
            if inode.pool is not None:
                self._begin(inode, n_tokens, inode.pool)

    async def look_forever(self) -> None:
        """Until cancelled, while there is something to look at."""
        while True:
            await self._asked.wait()
            await asyncio.sleep(LOOK_S)
            self.look()


def refused(why: str) -> Advised:
    return Advised(Outcome.REFUSED, detail=why)
