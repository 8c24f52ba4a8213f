"""A file system that is checked after every test: all invariants, and nothing left when all is given back.
And a device that executes leases as a worker would."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from kvfs.access import OPERATOR, Who
from kvfs.editing import EditLease
from kvfs.fs import Kvfs
from kvfs.fsck import Counts, check, counts
from kvfs.lease import Lease
from kvfs.moves import Migration, Move, Transfer
from kvfs.openfile import OpenFile
from kvfs.table import HOST, page_number

Slot = tuple[int, int]  # a token and its position
NOTHING = Counts(0, 0, 0, 0, 0, 0, 0, 0)


def give_everything_back(fs: Kvfs) -> None:
    for transfer in list(fs.transfers):
        if isinstance(transfer, Migration):
            fs.abandon_migration(transfer)
        elif isinstance(transfer, Move):
            fs.abandon_move(transfer)
    for claim in list(fs.claims):
        for lease in claim.leases[::-1]:
            fs.abandon(lease)
        fs.release(claim, 0.0)
    for lease in list(fs.leases):
        fs.abandon(lease)
    for f in list(fs.open_files):
        fs.close(f, 0.0)
    for path, _ in reversed(list(fs.names.walk(fs.names.root))):
        fs.unlink(path, who=OPERATOR, now=0.0)
    assert check(fs) == []
    assert counts(fs) == NOTHING
    assert not fs.families.members


@pytest.fixture
def fs() -> Iterator[Kvfs]:
    """One device `w0`: 32 pages of 4 tokens, and 8 in host memory."""
    fs = Kvfs()
    fs.add_device("w0", n_pages=32, page_size=4, n_host_pages=8)
    yield fs
    assert check(fs) == []
    give_everything_back(fs)


@pytest.fixture
def undo() -> Callable[[Kvfs], None]:
    """For tests with a file system of their own."""
    return give_everything_back


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
        f = fs.create(None, who=Who("ann", root=True), now=0.0, device="w0")
        if n:
            append(f, n)
        return f

    return make


@dataclass
class Page:
    """What a page contains. A tail is the whole history that a hidden state depends on, so that one with the wrong
    tokens below it is seen."""

    slots: list[Slot | None]
    tails: list[list[Slot] | None] = field(default_factory=lambda: [None, None])

    def copy(self) -> "Page":
        return Page(list(self.slots), list(self.tails))


@dataclass(eq=False)
class Flight:
    """A lease that was taken, on its way through the device."""

    lease: Lease
    file: object  # what a test keeps with it
    history: list[Slot]  # of the file, with what the lease computes
    had_tail: bool
    table: list[int]
    is_sent: bool = False
    has_run: bool = False
    is_wanted: bool = True  # not abandoned
    fails: str = ""  # "": it runs; "early": not even its copies; "late": its copies, and rubbish in its own slots
    n_more: int = 0  # pages that it brings to its owner


@dataclass(eq=False)
class Shift:
    """A move between tiers on its way through the device."""

    transfer: Transfer
    is_sent: bool = False
    has_run: bool = False
    fails: str = ""


@dataclass(eq=False)
class Cut:
    """An edit on its way through the device."""

    lease: EditLease
    has_run: bool = False


@dataclass(eq=False)
class Shipment:
    """The contents of pages on their way between devices: what is fetched from one is stored in the other."""

    transfer: Transfer
    stores: bool = False
    contents: list[Page] = field(default_factory=list)
    has_run: bool = False  # of the half that is on its way


class Device:
    """A worker's pages of both tiers by their entries, and the batches on their way to it.

    It does what a worker does: a batch's copies and moves first, then its rows in any order, batches in the order
    they were sent; a row may fail, before the copies or after them.
    """

    def __init__(self, n_pages: int, page_size: int, n_host_pages: int) -> None:
        self.page_size = page_size
        entries = [*range(n_pages), *range(HOST, HOST + n_host_pages)]
        self.pages = {entry: Page([None] * page_size) for entry in entries}
        self.batches: list[list[Flight | Shift | Shipment | Cut]] = []

    def ahead(self) -> "Device":
        """The device when all it was sent has run."""
        later = Device(0, self.page_size, 0)
        later.pages = {entry: page.copy() for entry, page in self.pages.items()}
        for batch in self.batches:
            later.run(batch)
        return later

    def read(self, table: list[int], n_tokens: int) -> list[Slot | None]:
        return [self.pages[table[i // self.page_size]].slots[i % self.page_size] for i in range(n_tokens)]

    def tail(self, table: list[int], n_tokens: int) -> list[Slot] | None:
        return self.pages[table[(n_tokens - 1) // self.page_size]].tails[n_tokens & 1]

    def run_next(self, *, backwards: bool = False) -> None:
        """Run the batch that was sent first."""
        batch = self.batches.pop(0)
        self.run(batch, backwards=backwards)
        for item in batch:
            item.has_run = True

    def run(self, batch: list[Flight | Shift | Shipment | Cut], *, backwards: bool = False) -> None:
        for item in batch:
            if isinstance(item, Shipment):
                self._ship(item)
            elif isinstance(item, Cut):
                self._cut(item)
            elif item.fails != "early":
                self._copy(item)
        for item in reversed(batch) if backwards else batch:
            if isinstance(item, Flight) and item.fails != "early":
                self._run_row(item)

    def _copy(self, item: Flight | Shift) -> None:
        if isinstance(item, Flight):
            pairs = item.lease.copies
        else:
            pairs = list(zip(item.transfer.entries_from, item.transfer.entries_to, strict=True))
        for source, destination in pairs:
            self.pages[destination] = self.pages[source].copy()

    def _cut(self, cut: Cut) -> None:
        for source, first, page, first_to, n, turn in cut.lease.runs:
            for i in range(n):
                slot = self.pages[source].slots[first + i]
                assert slot is not None
                self.pages[page].slots[first_to + i] = slot[0], slot[1] + turn

    def _ship(self, shipment: Shipment) -> None:
        if shipment.stores:
            for entry, page in zip(shipment.transfer.entries_to, shipment.contents, strict=True):
                self.pages[entry] = page.copy()
        else:
            shipment.contents = [self.pages[entry].copy() for entry in shipment.transfer.entries_from]

    def _run_row(self, flight: Flight) -> None:
        lease, table = flight.lease, flight.lease.pages.tolist()
        assert table == flight.table, "a page table changed under its lease"
        assert max(table) == max(map(page_number, table)), "a batch uses a page in host memory"
        if flight.is_wanted:
            assert self.read(table, lease.n_before) == flight.history[: lease.n_before]
            assert not flight.had_tail or self.tail(table, lease.n_before) == flight.history[: lease.n_before]
        n_same = lease.n_again if flight.fails else 0  # written again, which does no harm
        for i in range(lease.n_before + n_same, len(flight.history)):
            page = self.pages[table[i // self.page_size]]
            page.slots[i % self.page_size] = None if flight.fails else flight.history[i]
        if lease.n_new > n_same:
            self.pages[table[-1]].tails[len(flight.history) & 1] = None if flight.fails else flight.history


@pytest.fixture
def simulated() -> SimpleNamespace:
    """The classes of a simulated device."""
    return SimpleNamespace(Device=Device, Flight=Flight, Shift=Shift, Shipment=Shipment, Cut=Cut)
