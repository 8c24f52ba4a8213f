"""Rare paths: what must be seen now and then in a run of many seeds, or the simulator tests less than it seems to.

An `Observer` sees the messages and, after each pass, who has jobs, and counts in `World.sometimes`. `EXPECTED` says
what must be seen in `N_SEEDS_FOR_ALL` seeds with all faults. The kernel's own counters count too.

It also holds the kernel to this: nothing may be heard of an attachment that has ended.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from gpuworker import wire
from kernel.jobs import Job
from kernel.process import Process
from kvfs.pages import PagePool
from kvfs.pins import Pin, n_present
from tests.sim.transport import SimLink

if TYPE_CHECKING:
    from tests.sim.world import World

N_SEEDS_FOR_ALL = 1000

EXPECTED = (
    "a call is cancelled while its batch is in flight",
    "a call is cancelled while its file moves",
    "a copy-on-write is sent behind a running batch",
    "a file is forked while a call on it has to make room",
    "a kernel says hello again",
    "a late result is dropped",
    "a pinned file comes back",
    "a pinned file is unlinked",
    "a program is killed while its batch is in flight",
    "a row is chained",
    "a step is refused",
    "a stranger is told to say hello",
    "a tenant pins as much as it may",
    "a void batch is refused untried",
    "a worker refuses to send or to store pages",
    "a worker gives up a silent kernel",
    "a worker is attached under load",
    "a worker is detached while it works",
    "a worker is drained while it works",
    "a worker is lost with a batch in flight",
    "a worker is lost with nothing to do",
    "a worker is lost with two batches in flight",
    "no worker is left, and calls wait",
    "pages are fetched",
    "pages are stored",
    "pages move in beside a step",
    "pages move out beside a step",
    "the result of an old epoch is thrown away",
    "work of an old epoch is dropped",
    "counted: n_evicted_at_work",
    "counted: n_evicted_away",
    "counted: n_evicted_cached",
    "counted: n_evicted_idle",
    "counted: n_evicted_unneeded",
    "counted: n_oom_kills",
    "counted: n_pages_dropped",
    "counted: n_pages_in",
    "counted: n_pages_migrated",
    "counted: n_pages_out",
    "counted: n_preempted",
    "counted: n_recomputed_tokens",
    "counted: n_retried_batches",
    "counted: n_surplus_tokens",
    "counted: n_workers_lost",
)


def missing(seen: Mapping[str, int]) -> list[str]:
    """Those that were never seen."""
    return [name for name in EXPECTED if not seen.get(name)]


class Observer:
    """A `transport.Watch`, and the eyes of one world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._in_flight: dict[SimLink, dict[int, list[int]]] = {}  # batches and their jobs
        self._jobs: dict[Job, None] = {}
        self._n_files = 0
        self._pins: dict[Pin, tuple[PagePool | None, int]] = {}  # with where it is, and how many pages are there
        self._n_retried = 0

    # --- messages ---

    def sent(self, link: SimLink, message: wire.FromKernel) -> None:
        saw = self._world.saw
        if isinstance(message, wire.Fetch):
            saw("pages are fetched")
            welcome = self._world.kernel.fleet.attached(link.address).worker.welcome
            if welcome is not None and max(message.pages) >= welcome.n_pages:
                saw("pages in main memory are fetched")
        elif isinstance(message, wire.Store):
            saw("pages are stored")
        elif isinstance(message, wire.Batch):
            head = message.head
            ahead = self._in_flight.setdefault(link, {})
            if ahead and head.copies:
                saw("a copy-on-write is sent behind a running batch")
            if any(row.chained for row in head.rows):
                saw("a row is chained")
            if head.rows and head.moves_out:
                saw("pages move out beside a step")
            if head.rows and head.moves_in:
                saw("pages move in beside a step")
            ahead[head.seq] = [row.job for row in head.rows]

    def received(self, link: SimLink, message: wire.FromWorker) -> None:
        attached = self._world.kernel.fleet._attached.get(link.address)
        if attached is None or attached.link is not link:
            self._world.complain(f"the kernel hears {type(message).__name__} of an attachment that has ended")
        if isinstance(message, wire.PagesFailed):
            self._world.saw("a worker refuses to send or to store pages")
        if isinstance(message, wire.BatchDone | wire.BatchFailed):
            seq = message.head.seq if isinstance(message, wire.BatchDone) else message.seq
            self._in_flight[link].pop(seq, None)
            if isinstance(message, wire.BatchFailed) and not message.void:
                self._world.saw("a step is refused")

    def late(self, link: SimLink, message: wire.FromWorker) -> None:
        if isinstance(message, wire.BatchDone | wire.BatchFailed | wire.Fetched | wire.Stored):
            self._world.saw("a late result is dropped")

    def closed(self, link: SimLink) -> None:
        n = len(self._in_flight.pop(link, ()))
        if not link.lingered:
            how = ("nothing to do", "a batch in flight", "two batches in flight")[min(n, 2)]
            self._world.saw(f"a worker is lost with {how}")

    # --- state ---

    def after_pass(self) -> None:
        """Look who has come and gone."""
        kernel = self._world.kernel
        jobs = kernel.fleet._jobs
        for job in self._jobs:
            if job not in jobs and job.cancelled:
                self._cancelled(job)
        if jobs and not kernel.fleet._attached:
            self._world.saw("no worker is left, and calls wait")
        n_files = kernel.fs._last_ino
        if n_files > self._n_files and any(job.preempted for job in jobs):
            self._world.saw("a file is forked while a call on it has to make room")
        self._n_files = n_files
        self._jobs = dict.fromkeys(jobs)
        self._look_at_pins()

    def _look_at_pins(self) -> None:
        """Pinned pages stay, unless their device goes, a step is taken back, or more is pinned than may be: then older
        pins, whose files have come from elsewhere, go first."""
        fs, now = self._world.kernel.fs, self._world.loop.time()
        kept = {ino: n for name in fs.pools for ino, n in fs.pinned(name, now).items()}
        n_retried, before = self._world.kernel.counters.n_retried_batches, self._pins
        self._pins = {
            pin: (
                pin.inode.pool,
                before.get(pin, (None, 0))[1]  # those of a file that was on its way when it was pinned may go on
                if pin.inode.moving
                else min(n_present(pin), kept.get(pin.inode.ino, 0)),
            )
            for pin in fs.pins.pins
        }
        if any(
            pin.is_named and not pin.inode.n_links and pin.until_s > now for pin in before.keys() - self._pins.keys()
        ):
            self._world.saw("a pinned file is unlinked")
        for pin, (pool, n) in self._pins.items():
            pool_before, n_before = before.get(pin, (pool, 0))
            if n > n_before and pin in before:
                self._world.saw("a pinned file comes back")
            has_room = pool is not None and sum(fs.pins.n_pinned(pool, now).values()) <= fs.pins.limit(pool)
            same = pool is pool_before and n_retried == self._n_retried
            if same and has_room and n < min(n_before, pin.n_held):
                self._world.complain(f"{n_before - n} pinned pages of file #{pin.inode.ino} have left {pool}")
        self._n_retried = n_retried
        for pool in fs.pools.values():
            held, limit = sum(fs.pins.n_pinned(pool, now).values()), fs.pins.limit(pool)
            if held and held == limit:
                self._world.saw("a tenant pins as much as it may")

    def _cancelled(self, job: Job) -> None:
        if any(job.number in numbers for batches in self._in_flight.values() for numbers in batches.values()):
            self._world.saw("a call is cancelled while its batch is in flight")
        if job.file.inode.moving:
            self._world.saw("a call is cancelled while its file moves")

    def is_in_flight(self, process: Process) -> bool:
        """Whether a batch has a row of this process."""
        return any(job.sent and job.file.pid == process.pid for job in self._world.kernel.fleet._jobs)

    def n_jobs_on(self, address: str) -> int:
        """Calls at work on a worker."""
        attached = self._world.kernel.fleet._attached.get(address)
        return 0 if attached is None else sum(a is attached for a in self._world.kernel.fleet._jobs.values())

    def at_end(self) -> None:
        """What the kernel has counted itself."""
        for name, n in msgspec.structs.asdict(self._world.kernel.counters).items():
            if n and isinstance(n, int):
                self._world.sometimes[f"counted: {name}"] += n
