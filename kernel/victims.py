"""Who has to go, so that somebody finds room: as many as are needed, of those that may be chosen. Pure.

First come idle files, in the order of `kernel/eviction.py`, then those that younger programs work on. Only files that
bring a page by leaving are taken: of a prefix whose forks stay nothing does. Called by `kernel/memory.py` and
`kernel/returns.py`. Never add here what becomes of them (`kernel/demotion.py`).
"""

from collections.abc import Collection, Iterable, Mapping

from kernel import eviction
from kernel.costs import StepCosts
from kernel.eviction import Scene, Standing, Victim
from kernel.holders import Age, Holders, age_of
from kernel.jobs import Job
from kvfs.fs import Kvfs
from kvfs.tiers import FileFacts

SPARE = 64  # of the pages of a device, one in so many is made free besides, where files that nobody has open go


class Victims:
    """Of one device."""

    def __init__(
        self, fs: Kvfs, device: str, costs: StepCosts, holders: Holders, shares: Mapping[str, float], hold_s: float
    ) -> None:
        """`shares` are weights of tenants by name, 1 for all others; `hold_s` see `kernel/eviction.py`."""
        self._fs = fs
        self._device = device
        self._pool = fs.pools[device]
        self._costs = costs
        self._holders = holders
        self._shares = shares
        self._hold_s = hold_s

    def scene(self, tenant: str, now: float, busy: set[int]) -> Scene:
        """What there is to know beside the files, for a want of this tenant; `busy` ones are not touched."""
        fs, device = self._fs, self._device
        return Scene(
            now=now,
            n_pages=self._pool.n_pages,
            tenant=tenant,
            shares=self._shares,
            hold_s=self._hold_s,
            pinned=fs.pinned(device, now),
            unneeded=fs.unneeded(device),
            busy=busy,
            returns_at=lambda f: self._holders.returns_at(f, now),
            n_distinct=fs.n_distinct,
            costs=self._costs,
        )

    def cached(self, facts: list[FileFacts], scene: Scene) -> list[Victim]:
        """Those that nobody has open, first one first."""
        return [v for v in eviction.order(facts, scene) if v.standing <= Standing.CACHED]

    def choose(
        self,
        age: Age,
        own: Collection[int],
        facts: list[FileFacts],
        at_work: dict[int, list[Job]],
        need: int,
        scene: Scene,
    ) -> list[Victim]:
        """Those that leave so that `need` pages are free for a program of that age, whose files are `own`; all that may
        be taken if they do not suffice. `at_work`: the jobs on each file."""
        idle = eviction.order(facts, scene)
        chosen = self.enough([*idle, *_younger(age, own, facts, at_work, scene)], need, scene)
        return chosen + self._spare(idle[len(chosen) :])

    def enough(self, candidates: list[Victim], need: int, scene: Scene) -> list[Victim]:
        """So many of them, in their order, that `need` pages will be free when they have left; all if it is never."""
        taken: list[Victim] = []
        expected = 0
        for v in candidates:
            if expected >= need and self.reclaimable(taken, scene) >= need:
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

    def reclaimable(self, victims: list[Victim], scene: Scene) -> int:
        """Pages of the device that will be free when all these have left."""
        return self._fs.reclaimable(inos(victims), kept(victims, scene))

    def useful(self, victims: list[Victim], scene: Scene) -> list[Victim]:
        """Those that bring a page: the others would lose what they share, and nobody would gain by it."""
        useful = set(self._fs.leaving(inos(victims), kept(victims, scene)))
        return [v for v in victims if v.facts.ino in useful]


def _younger(
    age: Age, own: Collection[int], facts: list[FileFacts], at_work: dict[int, list[Job]], scene: Scene
) -> list[Victim]:
    """The files that younger programs work on, youngest first."""
    found = [f for f in facts if f.ino in at_work and f.ino not in own and f.n_pages and not f.moving]
    found = [f for f in found if min(age_of(j) for j in at_work[f.ino]) > age]
    found.sort(key=lambda f: max(age_of(j) for j in at_work[f.ino]), reverse=True)
    victims = [Victim(f, Standing.AT_WORK, scene.pinned.get(f.ino, 0), 0.0) for f in found]
    return [v for v in victims if v.n_freed > 0]


def inos(victims: Iterable[Victim]) -> list[int]:
    return [v.facts.ino for v in victims]


def kept(victims: Iterable[Victim], scene: Scene) -> dict[int, int]:
    """Leading pages that stay, as kvfs wants to know it: of these files, and of their relatives that are pinned."""
    return {**scene.pinned, **{v.facts.ino: v.n_kept for v in victims}}
