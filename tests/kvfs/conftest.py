"""A file system that is checked after every test: all invariants, and nothing left when all is given back.
And a device that executes leases as a worker would."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from kvfs.fs import Kvfs
from kvfs.fsck import Counts, check, counts
from kvfs.lease import Lease
from kvfs.openfile import OpenFile

Slot = tuple[int, int]  # a token and its position


def give_everything_back(fs: Kvfs) -> None:
    for lease in list(fs.leases):
        fs.abandon(lease)
    for claim in list(fs.claims):
        fs.release(claim, 0.0)
    for f in list(fs.open_files):
        fs.close(f, 0.0)
    for path, _ in reversed(list(fs.names.walk(fs.names.root))):
        fs.unlink(path, 0.0)


@pytest.fixture
def fs() -> Iterator[Kvfs]:
    """One device `w0`: 32 pages of 4 tokens."""
    fs = Kvfs()
    fs.add_device("w0", n_pages=32, page_size=4)
    yield fs
    assert check(fs) == []
    give_everything_back(fs)
    assert check(fs) == []
    assert counts(fs) == Counts(0, 0, 0, 0, 0, 0)


Append = Callable[[OpenFile, int], None]


@pytest.fixture
def append(fs: Kvfs) -> Append:
    """`append(f, n)`: one call that appends n tokens, numbered by their place in the file, in one batch."""

    def append(f: OpenFile, n: int) -> None:
        if fs.device_of(f) is None:
            fs.place(f, "w0")
        claim = fs.claim(f)
        n_before = fs.length(f)
        fs.commit(fs.lease(claim, range(n_before, n_before + n)), 1.0)
        fs.release(claim, 1.0)

    return append


@pytest.fixture
def make(fs: Kvfs, append: Append) -> Callable[[int], OpenFile]:
    """`make(n)`: an anonymous file of n tokens on `w0`."""

    def make(n: int) -> OpenFile:
        f = fs.create(None, owner="ann", now=0.0, device="w0")
        if n:
            append(f, n)
        return f

    return make


@dataclass(eq=False)
class Flight:
    """A lease that was taken, on its way through the device."""

    lease: Lease
    file: object  # what a test keeps with it
    history: list[Slot]  # of the file, with what the lease appends
    had_tail: bool
    table: list[int]
    is_sent: bool = False
    has_run: bool = False
    fails: str = ""  # "": it runs; "early": not even its copies; "late": after its copies


class Device:
    """A worker's pages of slots, each with a tail, and the batches on their way to it.

    It does what a worker does: a batch's copies first, then its rows in any order, batches in the order they were
    sent; a row may fail, before the copies or after them. A page's tail is the whole history that a hidden state
    depends on, so that a tail with the wrong tokens below it is seen.
    """

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.slots: list[list[Slot | None]] = [[None] * page_size for _ in range(n_pages)]
        self.tails: list[list[Slot | None] | None] = [None] * n_pages
        self.batches: list[list[Flight]] = []

    def ahead(self) -> "Device":
        """The device when all it was sent has run."""
        later = Device(len(self.slots), self.page_size)
        later.slots = [list(page) for page in self.slots]
        later.tails = list(self.tails)
        for batch in self.batches:
            later.run(batch)
        return later

    def read(self, table: list[int], n_tokens: int) -> list[Slot | None]:
        return [self.slots[table[i // self.page_size]][i % self.page_size] for i in range(n_tokens)]

    def tail(self, table: list[int], n_tokens: int) -> list[Slot | None] | None:
        return self.tails[table[(n_tokens - 1) // self.page_size]]

    def run_next(self, *, backwards: bool = False) -> None:
        """Run the batch that was sent first."""
        batch = self.batches.pop(0)
        self.run(batch, backwards=backwards)
        for flight in batch:
            flight.has_run = True

    def run(self, batch: list[Flight], *, backwards: bool = False) -> None:
        for flight in batch:
            if flight.fails != "early":
                for source, destination in flight.lease.copies:
                    self.slots[destination] = list(self.slots[source])
                    self.tails[destination] = self.tails[source]
        for flight in reversed(batch) if backwards else batch:
            if not flight.fails:
                self._run_row(flight)

    def _run_row(self, flight: Flight) -> None:
        n_before, table = flight.lease.n_before, flight.lease.pages.tolist()
        assert table == flight.table, "a page table changed under its lease"
        assert self.read(table, n_before) == flight.history[:n_before]
        if flight.had_tail:
            assert self.tail(table, n_before) == flight.history[:n_before]
        for i in range(n_before, len(flight.history)):
            page = table[i // self.page_size]
            self.slots[page][i % self.page_size] = flight.history[i]
            self.tails[page] = list(flight.history[: i + 1])


@pytest.fixture
def device_type() -> type[Device]:
    return Device


@pytest.fixture
def flight_type() -> type[Flight]:
    return Flight
