"""Who comes back to the device although no call asks for it. Pure.

Files in main memory come back shortly before their programs are expected to return. Pinned ones, and those that a
program said it will need, come back as soon as there is room, for which files that nobody has open may go: moved in,
or computed again in rows that the batcher adds.

Asked by `kernel/memory.py`, when nobody waits for room. Never add here what a call needs: that is a want.
"""

import contextlib
import math

from kernel.costs import StepCosts
from kernel.demotion import Demotion
from kernel.holders import Holders
from kernel.relief import Relief
from kernel.victims import Victims
from kvfs.cow import n_pages_for
from kvfs.fs import Kvfs
from sdk.abi.errors import Busy

YOUNGEST = (math.inf,)  # age of advice: no program ends for it
LEAD_S = 0.05  # how long before its program returns a file begins to come back, beside the time of the move


class Returns:
    """To one device."""

    def __init__(
        self, fs: Kvfs, device: str, costs: StepCosts, holders: Holders, victims: Victims, demotion: Demotion
    ) -> None:
        self._fs = fs
        self._device = device
        self._pool = fs.pools[device]
        self._costs = costs
        self._holders = holders
        self._victims = victims
        self._demotion = demotion
        self.due = math.inf  # when to look again although nothing has happened

    def prefetch(self, now: float, relief: Relief) -> None:
        """Bring files in whose programs are about to return, while there is room."""
        if self._pool.host.n_free == self._pool.host.n_pages:
            return
        for f in self._fs.placed(self._device):
            if not f.n_host_pages or f.moving:
                continue
            returns_at = self._holders.returns_at(f, now)
            if returns_at is None:
                continue
            at = returns_at - LEAD_S - f.n_host_pages * self._costs.page_s
            if at > now:
                self.due = min(self.due, at)
            elif self._pool.n_free >= f.n_host_pages:
                with contextlib.suppress(Busy):  # it comes in with a relative
                    relief.moves.append(self._fs.swap_in_ino(f.ino, now))

    def bring_back(self, now: float, relief: Relief) -> None:
        """What is pinned, or was said to be needed."""
        wishes = [wish for wish in self._fs.wanted(now) if wish.inode.pool is self._pool]
        if wishes:
            self.due = now  # look again whenever something has happened
        free = self._pool.n_free
        for wish in wishes:
            inode = wish.inode
            if inode.moving or inode.n_leases:
                continue  # somebody is at it
            n_had = 0 if wish.is_awaited else len(inode.table)  # what is loaded takes the place of that
            n_pages = inode.n_host or n_pages_for(wish.n_tokens, self._pool.page_size) - n_had
            if n_pages > free:
                self._make_way(inode.tenant, n_pages - free, {w.inode.ino for w in wishes}, now, relief)
                return
            free -= n_pages
            if inode.n_host:
                with contextlib.suppress(Busy):  # it comes in with a relative
                    relief.moves.append(self._fs.swap_in_ino(inode.ino, now))
            elif not wish.is_awaited:
                relief.restore.append(wish)

    def _make_way(self, tenant: str, need: int, wanted: set[int], now: float, relief: Relief) -> None:
        """Evict what nobody has open, if that is enough for a file that is to come back."""
        facts = self._fs.placed(self._device)
        scene = self._victims.scene(tenant, now, wanted)
        victims = self._victims.enough(self._victims.cached(facts, scene), need, scene)
        if self._victims.reclaimable(victims, scene) >= need:
            self._demotion.evict(self._victims.useful(victims, scene), facts, scene, YOUNGEST, relief)
