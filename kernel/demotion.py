"""What becomes of those who have to go: moved to main memory, or dropped and got back in another way. Pure.

What is on disk, or cheaper to compute again than to move, is dropped. Where main memory is full, what nobody has open
is dropped there first; then those who leave are, an edited file only where nothing else can be (ADR 18). What is beyond
its owner's quota of main memory is dropped. With `--preemption-mode swap` nothing else that a program has open is: the
OOM killer ends the youngest program that holds pages, and says why, if it is younger than the one that wants some.

Called by `kernel/memory.py` and `kernel/returns.py`. Never add here who has to go (`kernel/victims.py`).
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial

from kernel import eviction
from kernel.costs import StepCosts
from kernel.counters import Counters
from kernel.eviction import Scene, Standing, Victim
from kernel.holders import Age, Holders
from kernel.relief import Relief
from kernel.victims import Victims, inos, kept
from kvfs.fs import Kvfs
from kvfs.tiers import FileFacts
from sdk.abi.errors import NoSpace


class Demotion:
    """Of the files on one device."""

    def __init__(
        self, fs: Kvfs, device: str, costs: StepCosts, counters: Counters, holders: Holders, victims: Victims, mode: str
    ) -> None:
        """`mode`: of preemption, see `kernel/config.py`."""
        self._fs = fs
        self._pool = fs.pools[device]
        self._costs = costs
        self._counters = counters
        self._holders = holders
        self._victims = victims
        self._mode = mode

    def evict(self, victims: list[Victim], facts: list[FileFacts], scene: Scene, age: Age, relief: Relief) -> bool:
        """Move files away for somebody of that age, or drop what is cheaper to get back in another way; whether that,
        or the end of a program, brings pages."""
        keep, now = kept(victims, scene), scene.now
        for v in victims:
            self._counters.evicted(v.standing.name.lower())
        dropped = [v for v in victims if self._mode != "swap" and self.drop_is_cheaper(v)]
        moved = [v for v in victims if v not in dropped]
        beyond = self._beyond_quota(moved)
        dropped += beyond
        moved = [v for v in moved if v not in beyond]
        if moved:
            self._make_host_room(moved, facts, scene)
            try:
                move = self._fs.swap_out(inos(moved), now, keep)
                if move is not None:
                    relief.moves.append(move)
            except NoSpace:
                if self._mode != "swap":
                    dropped += self._but_edited(moved, dropped, relief, keep, now)
                elif not (unheld := [v for v in moved if not any(map(self._holders.find, v.facts.pids))]):
                    return self._kill(moved, age, relief)
                else:  # names that nobody has open: whoever opens one next can wait
                    dropped += unheld
        if dropped:
            n_free = self._pool.n_free
            self._counters.n_pages_dropped += self._fs.drop(inos(dropped), now, keep)
            relief.freed = relief.freed or self._pool.n_free > n_free
        return True

    def _beyond_quota(self, victims: list[Victim]) -> list[Victim]:
        """Those whose owners may have no more pages in main memory."""
        n_more: Counter[str] = Counter()
        beyond: list[Victim] = []
        for v in victims:
            inode = self._fs.files[v.facts.ino]
            if inode.bill.has_host_room(n_more[inode.owner] + v.facts.n_pages):
                n_more[inode.owner] += v.facts.n_pages
            else:
                beyond.append(v)
        return beyond

    def _make_host_room(self, victims: list[Victim], facts: list[FileFacts], scene: Scene) -> None:
        """Drop files that nobody has open from main memory, where that is full and they are worth less than what is
        to be moved there."""
        host, need = self._pool.host, self._victims.reclaimable(victims, scene)
        if host.n_free >= need or not host.n_pages:
            return
        stays = {*inos(victims), *scene.pinned}  # the latter have pages on the device, and would lose them too
        there = [f._replace(n_pages=f.n_host_pages) for f in facts if f.ino not in stays]
        scene = scene._replace(n_pages=host.n_pages, pinned={}, n_distinct=partial(self._fs.n_distinct, in_host=True))
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

    def drop_is_cheaper(self, v: Victim) -> bool:
        """Whether its K/V is better given up than moved: it is back as soon in another way."""
        f = v.facts
        if f.n_durable >= f.n_kv and v.standing is not Standing.AT_WORK:
            return True  # it is read from disk when a call comes that needs it
        if f.edited:
            return False  # it would not be what it was
        if self._mode == "recompute":
            return True
        return f.n_kv * self._costs.token_s < 2 * f.n_pages * self._costs.page_s

    def _kill(self, victims: list[Victim], age: Age, relief: Relief) -> bool:
        """The OOM killer: the youngest program among those who would have to make room, if it is younger than who wants
        that; whether there was one."""
        facts = [v.facts for v in victims]
        pids = [pid for f in facts for pid in f.pids if self._holders.find(pid) is not None]
        pid = max(pids, key=self._holders.age)
        if self._holders.age(pid) < age:
            return False
        n_pages = sum(f.n_pages for f in facts if pid in f.pids)
        why = "are needed by an older program, and main memory has no room for them"
        relief.killed.append((pid, f"out of memory: its {n_pages} pages {why}"))
        self._counters.n_oom_kills += 1
        return True

    def drop_cached(self, facts: list[FileFacts], need: int, scene: Scene) -> None:
        """Make `need` pages free at once, if dropping what nobody has open and is better dropped than moved will do."""
        if self._mode == "swap":
            return
        chosen = [v for v in self._victims.cached(facts, scene) if self.drop_is_cheaper(v)]
        victims = self._victims.enough(chosen, need, scene)
        if self._victims.reclaimable(victims, scene) >= need:
            self._counters.n_pages_dropped += self._fs.drop(inos(victims), scene.now, kept(victims, scene))
