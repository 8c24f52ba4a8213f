"""Whose pages leave first: the order of eviction. Pure, and asked only when somebody finds no room.

Idle files leave in this order, and pinned pages never:

    1. UNNEEDED   somebody said so, and nobody has used them since
    2. CACHED     nobody has them open: files that are kept by their name alone
    3. AWAY       their programs wait for tools, people or messages, and are expected back at some time
    4. IDLE       the others that no call works on

Within each, what saves least goes first: the time it takes to get a file's pages back, by page and by second that
they will rest unused,

    profit = min(compute again, swap in, load from disk) / (pages · seconds until it is wanted)

which is the profit of LNC-R (Scheuermann, Shim and Vingralek: WATCHMAN, VLDB 1996, with K = 1). How long a file will
rest is known of programs that are away; any other rests as long again as it has. So a file that is safe on disk, or
cheap to compute, goes before an equal one that is not; and of equal ones the one that is wanted latest.

**Tenants.** A tenant's *cache* on a device is the pages of its CACHED files that were used in the last `hold_s`
seconds, each counted once, and what is pinned of its others; its *share* is the device's pages by its weight among the
tenants that have pages there or want some. For the want of a tenant all its own files may go; and of another tenant's
cache what is beyond that one's share, to the page; never more. So what a tenant uses and keeps within its share is
there, or is not, whatever others do; and whoever stays within its own share finds room, since all others' caches
together leave it that. Of AWAY and IDLE files those of tenants that have more pages than their share, or want them, go
first: what programs within theirs have open stays while the others have anything idle.

Called by `kernel/victims.py` and `kernel/demotion.py`. Never add here: what becomes of a victim, or pausing work in
progress.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from math import floor
from typing import NamedTuple

from kernel.costs import StepCosts
from kvfs.tiers import FileFacts

EPSILON_S = 1e-3  # nothing is wanted sooner than that


class Standing(IntEnum):
    """Smaller leaves first."""

    UNNEEDED = 0
    CACHED = 1
    AWAY = 2
    IDLE = 3
    AT_WORK = 4  # a younger program's, which has to pause: not ordered here


class Victim(NamedTuple):
    """A file that can make room."""

    facts: FileFacts
    standing: Standing
    n_kept: int  # leading pages on the device that stay
    profit: float

    @property
    def n_freed(self) -> int:
        """At most, since others may share them."""
        return self.facts.n_pages - self.n_kept


class Scene(NamedTuple):
    """What is to be known beside the facts of the files."""

    now: float
    n_pages: int  # of the device
    tenant: str  # who wants room
    shares: Mapping[str, float]  # weights of tenants; 1 for all others
    hold_s: float  # for so long since its last use a file counts as its tenant's cache
    pinned: Mapping[int, int]  # leading pages on the device that stay, by file
    unneeded: frozenset[int] | set[int]
    busy: Iterable[int]  # files that a call works on, or that are not to be touched for another reason
    returns_at: Callable[[FileFacts], float | None]  # when its program is expected back; None: it is not away
    n_distinct: Callable[[Sequence[int]], int]  # pages of some files, each once
    costs: StepCosts


def order(files: Sequence[FileFacts], scene: Scene) -> list[Victim]:
    """Those that can make room for a tenant, first victim first."""
    shares = _shares(files, scene)
    surplus, beyond = _surplus(files, scene, shares), _beyond(files, scene, shares)
    busy = set(scene.busy)
    ranked: list[tuple[tuple[float, ...], Victim]] = []
    for f in files:
        n_kept = scene.pinned.get(f.ino, 0)
        if f.ino in busy or f.n_pages <= n_kept or f.n_leases or f.moving or f.claimed:
            continue
        at = scene.returns_at(f) if f.pids else None
        rest_s = max((scene.now - f.used_s if at is None else at - scene.now), EPSILON_S)
        standing = _standing(f, scene, is_away=at is not None)
        profit = back_s(f, scene.costs) / (f.n_pages * rest_s)
        is_open = standing > Standing.CACHED
        within = is_open and f.tenant not in beyond
        ranked.append(((is_open, within, standing, profit, -rest_s), Victim(f, standing, n_kept, profit)))
    ranked.sort(key=lambda pair: pair[0])
    return [v for _, victim in ranked if (v := _cut(victim, surplus, scene)) is not None]


def _standing(f: FileFacts, scene: Scene, *, is_away: bool) -> Standing:
    if f.ino in scene.unneeded:
        return Standing.UNNEEDED
    if not f.pids:
        return Standing.CACHED
    return Standing.AWAY if is_away else Standing.IDLE


def back_s(f: FileFacts, costs: StepCosts) -> float:
    """The least time in which a file's pages would be back. From disk it is free, as far as anybody here is concerned;
    what is edited cannot be computed again as it was."""
    swap_s = 2 * f.n_pages * costs.page_s
    return swap_s if f.edited else min(swap_s, (f.n_kv - min(f.n_kv, f.n_durable)) * costs.token_s)


def _shares(files: Sequence[FileFacts], scene: Scene) -> dict[str, int]:
    """The device's pages by tenant; nothing where there is one tenant alone."""
    tenants = {f.tenant for f in files if f.n_pages} | {scene.tenant}
    if len(tenants) == 1:
        return {}
    weights = {tenant: scene.shares.get(tenant, 1.0) for tenant in sorted(tenants)}
    whole = sum(weights.values())
    return {tenant: floor(scene.n_pages * weight / whole) for tenant, weight in weights.items()}


def _beyond(files: Sequence[FileFacts], scene: Scene, shares: dict[str, int]) -> set[str]:
    """The tenants that have more pages than their share, or will have, since they want some."""
    if not shares:
        return set()
    there: dict[str, list[int]] = {scene.tenant: []}
    for f in files:
        if f.n_pages:
            there.setdefault(f.tenant, []).append(f.ino)
    return {t for t, inos in there.items() if scene.n_distinct(inos) + (t == scene.tenant) > shares[t]}


def _surplus(files: Sequence[FileFacts], scene: Scene, shares: dict[str, int]) -> dict[str, int]:
    """Pages by which each tenant's cache is beyond its share."""
    if not shares:
        return {}
    cached: dict[str, list[int]] = {}
    pinned: dict[str, int] = {}
    for f in files:
        if _is_held(f, scene):
            cached.setdefault(f.tenant, []).append(f.ino)
        elif n_pinned := scene.pinned.get(f.ino, 0):
            pinned[f.tenant] = pinned.get(f.tenant, 0) + n_pinned
    return {
        tenant: scene.n_distinct(cached.get(tenant, [])) + pinned.get(tenant, 0) - share
        for tenant, share in shares.items()
    }


def _is_held(f: FileFacts, scene: Scene) -> bool:
    """Whether a file is part of its tenant's cache."""
    return f.n_pages > 0 and not f.pids and scene.now - f.used_s < scene.hold_s


def _cut(victim: Victim, surplus: dict[str, int], scene: Scene) -> Victim | None:
    """The victim, as far as the one who wants room may take it; what is taken is no surplus any more."""
    f = victim.facts
    if f.tenant == scene.tenant or not _is_held(f, scene):
        return victim
    left = surplus.get(f.tenant, 0)
    surplus[f.tenant] = left - victim.n_freed
    if victim.standing is Standing.UNNEEDED:
        return victim
    return victim._replace(n_kept=max(victim.n_kept, f.n_pages - left)) if left > 0 else None
