"""Moves files from one worker to another: when a worker drains, and when one has far more to do than another.

A family of files moves together, so that the pages they share go over once. Its jobs pause when their steps in
flight are answered, the pages are fetched from one worker and stored on the other, and the jobs go on there. Pages in
main memory go along, and whatever finds no room on the other device goes to main memory there: a file keeps its K/V
as long as either tier has room for it, which an edited file needs more than any other (ADR 18). What still cannot be
moved, or is lost with a worker on the way, is computed again from its tokens. The rim's side: what is written where is
`kvfs/moves.py`'s to say.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from time import perf_counter

from kernel.attachment import Attached, AttachError, WorkerLost
from kernel.fleet import Fleet
from kernel.jobs import Job
from kernel.workers import State
from kvfs.moves import Migration
from sdk.abi.errors import SyscallError

log = logging.getLogger(__name__)

CHUNK_BYTES = 16 << 20  # of pages in one message
REBALANCE = (2, 4)  # a worker with more than twice as many jobs as another, and four, gives a family away


class Mover:
    """Of one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._fs = fleet.fs
        self._moving: set[int] = set()  # files

    # --- when ---

    async def drain(self, name: str) -> None:
        """Move all files off a worker, then let it go. Its programs go on. Raises AttachError."""
        fleet = self._fleet
        source = fleet.attached(name)
        if self._target(source) is None:
            raise AttachError(f"{name} is the only worker: attach another first, or detach it without --drain")
        if source.worker.state is State.READY:
            source.worker.move("drain")
        log.info("worker %s drains", name)
        try:
            await self._empty(source)
        finally:
            if source.worker.state is State.DRAINING:  # it could not be, or nobody waits for it any more
                source.worker.move("ready")
        await fleet.detach(name)

    async def _empty(self, source: Attached) -> None:
        """Move families off a worker until none is left. Raises AttachError."""
        name = source.worker.name
        while (families := self._families(source)) or source.batcher.n_jobs:
            for inos in families:
                target = self._target(source)
                if target is None:
                    raise AttachError(f"{name} cannot drain: the other workers are gone")
                await self.move(inos, source, target)
            if source.worker.state is State.LOST:
                raise AttachError(f"worker {name} was lost while it drained; its programs go on elsewhere")
            if not families:
                await source.changed()

    async def rebalance(self) -> None:
        """Move one family from the busiest worker to the idlest, if that is worth it."""
        ready = [a for a in self._fleet.all_attached() if a.worker.state is State.READY]
        if len(ready) < 2 or self._moving:
            return
        busiest = max(ready, key=lambda a: a.batcher.n_jobs)
        idlest = min(ready, key=lambda a: a.batcher.n_jobs)
        factor, least = REBALANCE
        if busiest.batcher.n_jobs <= factor * idlest.batcher.n_jobs + least:
            return
        at_work = {job.file.inode.ino for job in busiest.batcher.jobs()}
        families = [inos for inos in self._families(busiest) if inos & at_work]
        n_pages = {f.ino: f.n_pages for f in self._fs.placed(busiest.worker.name)}
        if families:
            await self.move(min(families, key=lambda inos: sum(n_pages[i] for i in inos)), busiest, idlest)

    def _families(self, source: Attached) -> list[set[int]]:
        """The files on a worker that are not being moved, by family."""
        families: dict[int, set[int]] = {}
        if source.worker.state is State.LOST:
            return []
        for f in self._fs.placed(source.worker.name):
            if f.ino not in self._moving:
                families.setdefault(self._fs.files[f.ino].family, set()).add(f.ino)
        return list(families.values())

    def _target(self, source: Attached) -> Attached | None:
        """The ready worker with the most free pages."""
        others = [a for a in self._fleet.all_attached() if a is not source and a.worker.state is State.READY]
        devices = self._fs.devices()
        return max(others, key=lambda a: devices[a.worker.name].n_free, default=None)

    # --- how ---

    async def move(self, inos: set[int], source: Attached, target: Attached) -> None:
        """Move files and their jobs. Where that fails they are computed again instead."""
        fleet = self._fleet
        self._moving |= inos
        jobs: list[Job] = []
        try:
            while (released := source.batcher.release(inos)) is None:
                await source.changed()
            jobs = released
            fleet.hold(jobs)
            await self._move_pages(self._held(inos, source), inos, source, target)
        except WorkerLost as e:
            log.warning("files could not be moved from %s to %s: %s", source.worker.name, target.worker.name, e)
        finally:
            self._moving -= inos
            source.batcher.resume(inos)
            fleet.unhold(jobs)
            if source.worker.state is not State.LOST:  # asked for meanwhile, and not begun
                late = self._late(inos, source)
                fleet.hold(late)
                fleet.unhold(late)
                fleet.pump_soon(source)  # for those that stay after all

    def _late(self, inos: set[int], source: Attached) -> list[Job]:
        """The jobs on these files that have come to the old worker; but not where a file stayed and is at work."""
        late: list[Job] = []
        for ino in inos:
            released = source.batcher.release({ino})
            if released is None:
                source.batcher.resume({ino})
            else:
                late += released
        return late

    def _held(self, inos: set[int], source: Attached) -> list[int]:
        """Those of the files that are still there and have pages; the others need no worker until they have."""
        if source.worker.state is State.LOST:
            return []
        facts = [f for f in self._fs.placed(source.worker.name) if f.ino in inos and not f.moving and not f.n_leases]
        self._fs.drop([f.ino for f in facts if not f.n_pages + f.n_host_pages], self._fleet.now())
        return [f.ino for f in facts if f.n_pages + f.n_host_pages]

    def _begin(self, inos: list[int], source: Attached, target: Attached) -> Migration | None:
        """The migration of these files, or of those that are edited where there is no room for all. What finds none is
        dropped."""
        fs, fleet = self._fs, self._fleet
        edited = [ino for ino in inos if fs.files[ino].edited is not None]
        for going, left in ((inos, [ino for ino in inos if ino not in edited]), (edited, edited)):
            try:
                if going:
                    return fs.migrate(going, target.worker.name, fleet.now())
            except SyscallError as e:
                log.info("%d files of %s do not move: %s", len(going), source.worker.name, e)
            fleet.counters.n_pages_dropped += fs.drop(left, fleet.now())
        return None

    async def _move_pages(self, inos: list[int], moved: set[int], source: Attached, target: Attached) -> None:
        """`moved` gets the forks that are made of them meanwhile, since they go along."""
        fs, fleet = self._fs, self._fleet
        if not inos or target.worker.state is not State.READY:  # then they stay, until somebody has another target
            return
        migration = self._begin(inos, source, target)
        if migration is None:
            return
        try:
            for entries_from, entries_to in self._chunks(migration, target):
                began = perf_counter()
                contents = await source.fetch(entries_from)
                await target.store(entries_to, contents)
                if fleet.trace is not None:
                    ends, n_bytes = (source.worker.name, target.worker.name), len(contents)
                    fleet.trace.migrated(*ends, began, perf_counter(), len(entries_to), n_bytes)
            if not migration.is_out:
                raise WorkerLost("one of the two was lost when all pages had been stored")
        except SyscallError as e:
            fs.abandon_migration(migration)
            log.warning("a worker refused to move pages: %s", e)
            there = [ino for ino in inos if ino in fs.files]  # some may have been closed meanwhile
            fleet.counters.n_pages_dropped += fs.drop(there, fleet.now())
        except BaseException:
            fs.abandon_migration(migration)
            raise
        else:
            moved.update(migration.members)
            fs.commit_migration(migration, fleet.now())
            fleet.counters.n_pages_migrated += len(migration.entries_to)

    def _chunks(self, migration: Migration, target: Attached) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """The entries to fetch and to store, some MiB at a time."""
        assert target.worker.welcome is not None
        n = max(1, CHUNK_BYTES // target.worker.welcome.page_bytes)
        for i in range(0, len(migration.entries_from), n):
            yield migration.entries_from[i : i + n], migration.entries_to[i : i + n]


async def rebalance_forever(mover: Mover, period_s: float) -> None:
    """Look after the balance of a fleet until cancelled."""
    while True:
        await asyncio.sleep(period_s)
        await mover.rebalance()
