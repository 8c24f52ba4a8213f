"""What programs ask for their files' pages: how much a pin may hold, and bringing back what should be there.

A tenant may pin its share of what may be pinned on a device at all (`--max-pinned-share`): by its weight among the
tenants that run programs or have pins there. More than that is clipped, from the end of the file. Because of that
quota a pin is never broken, by whomever else: whoever needs room finds it in what is not pinned, and a call that would
need more than that is told so (`ENOSPC`).

The files that are to come back are looked at when somebody asks, and now and then until they are there: those that
lost their device are placed on another here, the rest is `kernel/memory.py`'s. Made by `kernel/core.py`, called by
`kernel/sys_advice.py`. Never add here which files leave.
"""

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from kernel.accounts import Account
from kernel.fleet import Fleet
from kernel.jobs import PredJob
from kernel.scheduler import Scheduler
from kvfs.access import KERNEL
from kvfs.inode import Residency
from kvfs.openfile import OpenFile
from kvfs.pages import PagePool
from kvfs.pins import is_there, n_pages_of
from sdk.abi.values import NOTHING, Advice, Advised, OpenMode, Outcome

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

    # --- what is asked ---

    def pin(self, file: OpenFile, account: Account, tenant: str, ttl: float | None) -> Advised:
        """Keep a file's pages on its device for `ttl` seconds; None: while it is open; 0: not any more. `account` is of
        the process that asks."""
        fs, inode, now = self._fs, file.live(), self._fleet.now()
        fs.unpin(file, tenant)
        if ttl == 0.0:
            return Advised(Outcome.ACCEPTED)
        if not inode.tokens:
            return refused("this file is empty: pin it when it has tokens")
        pool = self._place(file)
        if pool is None:
            return refused("no worker is there to keep it")
        n_wanted = n_pages_of(inode)
        room = fs.pins.room(pool, tenant, self._share(pool, tenant), now)
        n_pages = min(n_wanted, room)
        if n_pages < 1:
            return refused(
                f"{tenant!r} may pin no more pages on {pool.name}: unpin others, or raise --max-pinned-share"
            )
        until_s = math.inf if ttl is None else now + ttl
        fs.pin(file, tenant, n_pages, until_s)
        self._asked.set()
        until = None if ttl is None else until_s
        n_tokens = min(n_pages * pool.page_size, len(inode.tokens))
        detail = f"{n_wanted} pages are wanted, and {n_pages} are left of the quota" if n_pages < n_wanted else ""
        if is_there(inode, n_tokens) and not inode.moving:
            return Advised(Outcome.CLIPPED if detail else Outcome.ACCEPTED, n_pages, until, detail)
        self._begin(file, account, pool)
        on_its_way = "its pages are brought back first"
        return Advised(Outcome.DEFERRED, n_pages, until, f"{detail}; {on_its_way}" if detail else on_its_way)

    def advise(self, file: OpenFile, account: Account, tenant: str, advice: Advice) -> Advised:
        """Bring a file's pages back before somebody asks, or let it be the first to leave."""
        fs, inode, now = self._fs, file.live(), self._fleet.now()
        if advice is Advice.WILLNEED:
            pool = self._place(file) if inode.tokens else None
            if pool is None:
                return refused("no worker is there to bring it to" if inode.tokens else "this file is empty")
            fs.advise(file, advice, now)
            n_pages = n_pages_of(inode)
            if is_there(inode, len(inode.tokens)) and not inode.moving:
                return Advised(Outcome.ACCEPTED, n_pages)
            self._begin(file, account, pool)
            return Advised(Outcome.DEFERRED, n_pages, detail="its pages come back as soon as there is room")
        if inode.tenant != tenant or any(pid != file.pid for pid in inode.pids):
            return refused("others use this file, or it is not yours: it stays as long as they need it")
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

    def _begin(self, file: OpenFile, account: Account, pool: PagePool) -> None:
        if not self._from_disk(file, account):
            self._look_soon(pool)

    def _from_disk(self, file: OpenFile, account: Account) -> bool:
        """Whether K/V comes from disk: it does for a call that needs it, so there is one, which asks for nothing."""
        fs, inode = self._fs, file.inode
        if self._fleet.bring is None or fs.n_durable(inode) <= inode.n_kv or inode.residency is not Residency.PARTIAL:
            return False
        if inode.ino in fs.pins.awaited:
            return True
        own = fs.dup(file, OpenMode.READ, who=KERNEL, now=self._fleet.now())

        def over(_: Any) -> None:
            fs.pins.awaited.discard(inode.ino)
            fs.close(own, self._fleet.now())

        look = PredJob(
            own, [], [], NOTHING, last_token=0, last_position=0, seed=0, history=list, on_done=over, on_fail=over
        )
        fs.pins.awaited.add(inode.ino)
        self._fleet.submit(look, account, claim=False, again=False)
        return True

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
        for wish in self._fs.wanted(self._fleet.now()):
            inode = wish.inode
            if inode.pool is None and not inode.n_leases and not inode.moving and (name := self._best()) is not None:
                self._fs.place_ino(inode.ino, name)
            if inode.pool is not None:
                self._look_soon(inode.pool)

    async def look_forever(self) -> None:
        """Until cancelled, while there is something to look at."""
        while True:
            await self._asked.wait()
            await asyncio.sleep(LOOK_S)
            self.look()


def refused(why: str) -> Advised:
    return Advised(Outcome.REFUSED, detail=why)
