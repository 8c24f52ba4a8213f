"""The whole of kvfs against a model, a dict of token lists, with simulated devices that execute leases and moves.

After each step every file that is read through its page table equals the model: now, and again when the device
has worked off all it was sent, since a batch that was abandoned may still run. A second device beside each, its
*shadow*, runs everything the moment it is leased: what it has lost of a tail may be lost, and what it still has, no
batch in flight writes over. So it tells exactly which tails are valid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kvfs.fs import Kvfs
from kvfs.fsck import check, counts
from kvfs.inode import Residency
from kvfs.lease import Claim, LeaseState
from kvfs.moves import Migration, Move, MoveKind, Transfer
from kvfs.openfile import OpenFile
from kvfs.table import is_host
from sdk.abi.errors import (
    AccessDenied,
    Busy,
    FileExists,
    FileNotFound,
    InvalidArgument,
    NoSpace,
    SyscallError,
)
from sdk.abi.values import OpenMode

PAGE_SIZE = 3
N_FILES = 8
N_PAGES = 9
N_HOST_PAGES = 5
PATHS = ["/a", "/b", "/c"]
Slot = tuple[int, int]  # a token and its position
PICK = st.integers(0, 1000)
CHOSEN = st.sets(st.integers(-2, 2), min_size=1)  # files, by their place in some list
FEW = st.sampled_from([1, 1, 1, 2, 2, 3, 4, 7, 12])


@dataclass(eq=False)
class File:
    """What the model knows of a file."""

    slots: list[Slot] = field(default_factory=list)
    origins: list[frozenset[Any]] = field(default_factory=list)  # of each token with KV: the flights it is there by
    tail_gone: bool = False  # until the next commit
    device: str | None = None
    n_links: int = 0
    n_open: int = 0
    n_leases: int = 0
    claimed: bool = False
    family: object = field(default_factory=object)
    rebuild: Any = None  # the flight that computes its tokens again
    transfer: Transfer | None = None

    @property
    def is_held(self) -> bool:
        return bool(self.n_links + self.n_open + self.n_leases or self.claimed)

    @property
    def is_whole(self) -> bool:
        return len(self.origins) == len(self.slots)

    def lose(self, n_kv: int) -> None:
        del self.origins[n_kv:]
        self.rebuild = None
        self.tail_gone = True


class KvfsMachine(RuleBasedStateMachine):
    simulated: SimpleNamespace
    undo: Callable[[Kvfs], None]

    def __init__(self) -> None:
        super().__init__()
        self.fs = Kvfs()
        self.now = 0.0
        self.next_token = 0
        self.devices: dict[str, Any] = {}
        self.shadows: dict[str, Any] = {}
        self.files: dict[int, File] = {}
        self.names: dict[str, File] = {}
        self.handles: list[tuple[OpenFile, File]] = []
        self.claims: list[tuple[Claim, File]] = []
        self.flights: list[Any] = []  # out
        self.early: list[Any] = []  # committed before their batch has run
        self.shifts: list[Any] = []  # moves that are out
        self.shipments: list[Any] = []  # migrations that are out
        self.orphans: list[Callable[[], None]] = []  # how to abandon what remove_device ended
        self.add_device("w0")

    @initialize(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=3), path=st.sampled_from(PATHS))
    def some_files(self, lengths: list[int], path: str) -> None:
        """To begin with something, or most runs would hardly come to a batch."""
        for i, n in enumerate(lengths):
            self.create(path if i == 0 else None, device="w0")
            self.claim(i)
            self.lease(i, n, None, False, False)
            self.commit(0, False, False)
            self.release(0)

    # --- what the machine is made of ---

    def attempt(self, expected: type[SyscallError] | None, call: Callable[[], object]) -> bool:
        """Do it, or see it refused as expected with nothing changed. True when done."""
        self.now += 1
        if expected is None:
            call()
            return True
        before = self.snapshot()
        with pytest.raises(expected):
            call()
        assert self.snapshot() == before
        return False

    def snapshot(self) -> object:
        files = [
            (f.stat(), f.tokens.tolist(), f.table.tolist(), f.n_kv, f.tail_valid, f.claimed, f.n_leases, f.moving)
            for f in self.fs.files.values()
        ]
        pools = [(list(p.refs), sorted(p.extents()), p.usage(), list(p.host.free)) for p in self.fs.pools.values()]
        return files, pools, counts(self.fs), [path for path, _ in self.fs.names.walk(self.fs.names.root)]

    def reap(self, file: File) -> None:
        if not file.is_held:
            self.files = {ino: f for ino, f in self.files.items() if f is not file}

    def opened(self, f: OpenFile, file: File) -> None:
        self.files[f.inode.ino] = file
        file.n_open += 1
        self.handles.append((f, file))

    def no_vacancy(self, path: str | None) -> type[SyscallError] | None:
        return FileExists if path in self.names else None

    def no_file(self, path: str) -> type[SyscallError] | None:
        return None if path in self.names else FileNotFound

    def table(self, file: File) -> list[int]:
        return next(self.fs.files[ino].table.tolist() for ino, f in self.files.items() if f is file)

    def residency(self, file: File) -> Residency:
        if file.transfer is not None:
            return Residency.MOVING
        if any(map(is_host, self.table(file))):
            return Residency.SWAPPED
        return Residency.RESIDENT if file.is_whole else Residency.PARTIAL

    def has_tail(self, file: File) -> bool:
        if not file.slots or not file.is_whole or file.tail_gone or file.device is None:
            return False
        return bool(self.shadows[file.device].tail(self.table(file), len(file.slots)) == file.slots)

    def holders(self, entry: int, device: str | None) -> list[File]:
        """Files whose tables have a page."""
        return [f for f in self.files.values() if f.device == device and entry in self.table(f)]

    # --- devices ---

    @rule(name=st.sampled_from(["w0", "w1"]), dice=st.integers(0, 3))
    def devices_come_and_go(self, name: str, dice: int) -> None:
        if name not in self.devices:
            self.add_device(name)
        elif dice == 0:
            self.remove_device(name)
        else:
            self.attempt(FileExists, lambda: self.fs.add_device(name, n_pages=1, page_size=1))

    def add_device(self, name: str) -> None:
        self.fs.add_device(name, n_pages=N_PAGES, page_size=PAGE_SIZE, n_host_pages=N_HOST_PAGES)
        self.devices[name] = self.simulated.Device(N_PAGES, PAGE_SIZE, N_HOST_PAGES)
        self.shadows[name] = self.simulated.Device(N_PAGES, PAGE_SIZE, N_HOST_PAGES)

    def remove_device(self, name: str) -> None:
        self.fs.remove_device(name, now=self.now)
        del self.devices[name], self.shadows[name]
        for flight in [flight for flight in self.flights if flight.lease.device == name]:
            assert flight.lease.state is LeaseState.LOST
            self.orphans.append(lambda lease=flight.lease: self.fs.abandon(lease))  # type: ignore[misc]
            flight.file.n_leases -= 1
            self.flights.remove(flight)
        self.early = [flight for flight in self.early if flight.lease.device != name]
        for move in [shift.transfer for shift in self.shifts if shift.transfer.device == name]:
            self.orphans.append(lambda move=move: self.fs.abandon_move(move))  # type: ignore[misc]
            self.ended(move)
        for m in [s.transfer for s in self.shipments if name in (s.transfer.device_from, s.transfer.device_to)]:
            self.orphans.append(lambda m=m: self.fs.abandon_migration(m))  # type: ignore[misc]
            self.ended(m)
        for file in list(self.files.values()):
            if file.device == name:
                file.device = None
                file.lose(0)
            self.reap(file)

    def ended(self, transfer: Transfer) -> None:
        self.shifts = [shift for shift in self.shifts if shift.transfer is not transfer]
        self.shipments = [shipment for shipment in self.shipments if shipment.transfer is not transfer]
        for file in self.files.values():
            if file.transfer is transfer:
                file.transfer = None

    @precondition(lambda self: self.orphans)
    @rule()
    def abandon_orphan(self) -> None:
        self.orphans.pop()()

    # --- names ---

    @precondition(lambda self: len(self.files) < N_FILES)
    @rule(path=st.sampled_from([None, None, *PATHS]), device=st.sampled_from(["w0", "w0", "w1", None]))
    def create(self, path: str | None, device: str | None) -> None:
        device = device if device in self.devices else None

        def create() -> None:
            f = self.fs.create(path, owner="ann", now=self.now, device=device)
            self.opened(f, File(device=device))
            self.named(path, f)

        self.attempt(self.no_vacancy(path), create)

    def named(self, path: str | None, f: OpenFile) -> None:
        if path is not None:
            self.names[path] = self.files[f.inode.ino]
            self.names[path].n_links += 1

    def open(self, path: str, mode: OpenMode) -> None:
        def open_() -> None:
            f = self.fs.open(path, mode, owner="ann", now=self.now)
            self.opened(f, self.names[path])

        self.attempt(self.no_file(path), open_)

    @rule(
        call=st.sampled_from(["open", "open", "unlink", "link", "rename"]),
        old=st.sampled_from(PATHS),
        new=st.sampled_from(PATHS),
        mode=st.sampled_from(OpenMode),
    )
    def use_names(self, call: str, old: str, new: str, mode: OpenMode) -> None:
        error = self.no_file(old)
        if call == "open":
            if len(self.handles) < 2 * N_FILES:
                self.open(old, mode)
        elif call == "unlink":
            if self.attempt(error, lambda: self.fs.unlink(old, self.now)):
                self.unnamed(old)
        elif call == "link":
            if self.attempt(error or self.no_vacancy(new), lambda: self.fs.link(old, new, self.now)):
                self.names[new] = self.names[old]
                self.names[new].n_links += 1
        elif self.attempt(error, lambda: self.fs.rename(old, new, self.now)):
            if self.names[old] is self.names.get(new):
                return
            if new in self.names:
                self.unnamed(new)
            self.names[new] = self.names.pop(old)

    def unnamed(self, path: str) -> None:
        file = self.names.pop(path)
        file.n_links -= 1
        self.reap(file)

    # --- handles ---

    @precondition(lambda self: len(self.handles) > 2)
    @rule(i=PICK)
    def close(self, i: int) -> None:
        f, file = self.handles.pop(i % len(self.handles))
        self.fs.close(f, self.now)
        file.n_open -= 1
        self.reap(file)

    @precondition(lambda self: self.handles and len(self.files) < N_FILES)
    @rule(i=PICK, paths=st.lists(st.sampled_from([None, None, None, *PATHS]), min_size=1, max_size=3))
    def fork_some(self, i: int, paths: list[str | None]) -> None:
        for path in paths:
            self.fork(i, path)

    def fork(self, i: int, path: str | None) -> None:
        f, file = self.handles[i % len(self.handles)]

        def fork() -> None:
            child = self.fs.fork(f, path, owner="ann", now=self.now)
            copy = File(list(file.slots), list(file.origins), file.tail_gone, file.device)
            copy.family, copy.transfer = file.family, file.transfer
            self.opened(child, copy)
            self.named(path, child)

        self.attempt(self.no_vacancy(path), fork)

    def placeable(self) -> list[tuple[OpenFile, File]]:
        return [(f, x) for f, x in self.handles if not x.origins and not x.n_leases and x.transfer is None]

    @precondition(lambda self: self.placeable() and self.devices)
    @rule(i=PICK, j=PICK)
    def place(self, i: int, j: int) -> None:
        f, file = self.placeable()[i % len(self.placeable())]
        file.device = sorted(self.devices)[j % len(self.devices)]
        self.fs.place(f, file.device)

    @precondition(lambda self: self.handles)
    @rule(i=PICK, n=PICK, call=st.sampled_from(["truncate", "truncate", "claim", "release"]))
    def truncate_or_claim(self, i: int, n: int, call: str) -> None:
        if call == "claim":
            self.claim(i)
        elif call == "release" and self.idle_claims():
            self.release(i)
        elif n % 2 and self.idle_claims():
            self.truncate_claimed(i, n // 2)
        else:
            self.truncate(i, n // 2)

    def truncate(self, i: int, n: int) -> None:
        f, file = self.handles[i % len(self.handles)]
        error = AccessDenied if f.mode is OpenMode.READ else Busy if file.claimed else None
        self.truncate_by(lambda n: self.fs.truncate(f, n, self.now), file, n, error)

    def truncate_claimed(self, i: int, n: int) -> None:
        claim, file = self.idle_claim(i)
        self.truncate_by(lambda n: self.fs.truncate_claimed(claim, n, self.now), file, n, None)

    def truncate_by(self, call: Callable[[int], None], file: File, n: int, error: type[SyscallError] | None) -> None:
        n = len(file.slots) + 1 - n % (len(file.slots) + 3)  # mostly a little, and now and then more than there is
        error = error or (None if 0 <= n <= len(file.slots) else InvalidArgument)
        if self.attempt(error, lambda: call(n)):
            if n < len(file.slots):
                file.tail_gone = True
            del file.slots[n:], file.origins[n:]
            if file.rebuild is not None and n < file.rebuild.lease.n_end:
                file.rebuild = None

    # --- writing ---

    def claim(self, i: int) -> None:
        f, file = self.handles[i % len(self.handles)]
        error = AccessDenied if f.mode is OpenMode.READ else Busy if file.claimed else None

        def claim() -> None:
            self.claims.append((self.fs.claim(f), file))
            file.claimed = True

        self.attempt(error, claim)

    def idle_claims(self) -> list[tuple[Claim, File]]:
        return [(claim, file) for claim, file in self.claims if not claim.leases]

    def idle_claim(self, i: int) -> tuple[Claim, File]:
        return self.idle_claims()[i % len(self.idle_claims())]

    def release(self, i: int) -> None:
        claim, file = self.idle_claim(i)
        self.claims.remove((claim, file))
        self.fs.release(claim, self.now)
        file.claimed = False
        self.reap(file)

    def unclaimed(self) -> list[int]:
        """Handles through which a file could be written."""
        return [i for i, (f, x) in enumerate(self.handles) if f.mode is OpenMode.WRITE and not x.claimed and x.is_whole]

    def half_busy(self) -> list[tuple[Claim, File]]:
        return [(claim, file) for claim, file in self.claims if len(claim.leases) == 1]

    @precondition(lambda self: self.idle_claims() or self.unclaimed())
    @rule(i=PICK, n=FEW, at=st.none() | st.integers(0, 2**32 - 100), again=st.booleans(), chained=st.booleans())
    def lease(self, i: int, n: int, at: int | None, again: bool, chained: bool) -> None:
        if (i % 3 and self.unclaimed()) or not self.idle_claims():
            self.claim(self.unclaimed()[i % len(self.unclaimed())])
            i = len(self.idle_claims()) - 1
        claim, file = self.idle_claim(i)
        again = again and bool(file.slots) and not chained
        self.append(claim, file, file.slots, 1 if chained else n, at, int(again), chained)

    @precondition(lambda self: self.half_busy())
    @rule(i=PICK, n=FEW, at=st.none() | st.integers(0, 2**32 - 100), chained=st.booleans())
    def lease_ahead(self, i: int, n: int, at: int | None, chained: bool) -> None:
        """One batch behind the running one."""
        self.send()
        claim, file = self.half_busy()[i % len(self.half_busy())]
        (first,) = (flight for flight in self.flights if flight.lease is claim.leases[0])
        self.append(claim, file, first.history, 1 if chained else n, at, 0, chained)

    def append(
        self, claim: Claim, file: File, base: list[Slot], n: int, at: int | None, n_again: int, chained: bool
    ) -> None:
        n_before = len(base) - n_again
        first = at if at is not None else base[-1][1] + 1 if base else 0
        new = base[n_before:] + [(self.next_token + k, first + k) for k in range(n - n_again)]
        tokens, positions = [slot[0] for slot in new], [slot[1] for slot in new]
        table = claim.leases[-1].pages.tolist() if claim.leases else self.table(file)
        copies = n_before < len(table) * PAGE_SIZE and self.is_shared(table[-1], file)
        error: type[SyscallError] | None = None
        if self.residency(file) is not Residency.RESIDENT:
            error = Busy
        elif file.device is None:
            error = InvalidArgument
        elif (n_before + n + PAGE_SIZE - 1) // PAGE_SIZE - len(table) + copies > self.fs.pools[file.device].n_free:
            error = NoSpace
        had_tail = not claim.leases and self.has_tail(file) and not n_again

        def lease() -> None:
            given = [0] if chained else tokens
            lease = self.fs.lease(claim, given, None if at is None else positions, n_again=n_again, chained=chained)
            assert (lease.tokens.tolist(), lease.positions.tolist()) == (given, positions)
            assert (lease.n_before, bool(lease.copies), lease.chained) == (n_before, copies, chained)
            self.took_off(lease, file, base[:n_before] + new, had_tail=had_tail)

        if self.attempt(error, lease):
            self.next_token += n

    def is_shared(self, page: int, file: File) -> bool:
        """Whether somebody else holds the page that a write begins in."""
        others = [f for f in self.holders(page, file.device) if f is not file]
        return bool(others) or any(page in pages for pages in self.in_use(file.device))

    def in_use(self, device: str | None) -> list[Sequence[int]]:
        """Pages that batches read tails from, and that are being moved."""
        read = [x.lease.pages for x in self.flights if not x.lease.n_new and x.lease.device == device]
        moving = [x.transfer for x in (*self.shifts, *self.shipments)]
        return read + [t.entries_from for t in moving if t.pool_from.name == device]

    def took_off(self, lease: Any, file: File, history: list[Slot], *, had_tail: bool) -> Any:
        flight = self.simulated.Flight(lease, file, history, had_tail, lease.pages.tolist())
        file.n_leases += 1
        self.flights.append(flight)
        self.shadows[lease.device].run([flight])
        return flight

    @precondition(lambda self: self.handles)
    @rule(i=PICK)
    def lease_tail(self, i: int) -> None:
        f, file = self.handles[i % len(self.handles)]
        error: type[SyscallError] | None = None
        if self.residency(file) is not Residency.RESIDENT:
            error = Busy
        elif not self.has_tail(file):
            error = Busy if file.claimed and file.slots else InvalidArgument
        self.attempt(error, lambda: self.took_off(self.fs.lease_tail(f), file, list(file.slots), had_tail=True))

    # --- computing again ---

    def broken(self) -> list[tuple[OpenFile, File]]:
        return [(f, file) for f, file in self.handles if not file.is_whole]

    @precondition(lambda self: self.broken())
    @rule(i=PICK, n=FEW, adopt=st.booleans())
    def rebuild(self, i: int, n: int, adopt: bool) -> None:
        f, file = self.broken()[i % len(self.broken())]
        if file.device is None and file.transfer is None and not file.n_leases and self.devices:
            file.device = sorted(self.devices)[i % len(self.devices)]
            self.fs.place(f, file.device)
        error: type[SyscallError] | None = None
        if self.residency(file) is not Residency.PARTIAL or file.n_leases:
            error = Busy
        elif file.device is None:
            error = InvalidArgument
        if adopt:
            self.attempt(error, lambda: self.adopt(f, file))
        n_before = len(file.origins)
        n_end = min(n_before + n, len(file.slots))
        table = self.table(file)
        copies = n_before < len(table) * PAGE_SIZE and self.is_shared(table[-1], file)
        if error is None:
            assert file.device is not None
            if (n_end + PAGE_SIZE - 1) // PAGE_SIZE - len(table) + copies > self.fs.pools[file.device].n_free:
                error = NoSpace

        def rebuild() -> None:
            lease = self.fs.lease_rebuild(f, n)
            assert (lease.n_before, lease.n_end, bool(lease.copies)) == (n_before, n_end, copies)
            assert list(zip(lease.tokens, lease.positions, strict=True)) == file.slots[n_before:n_end]
            file.rebuild = self.took_off(lease, file, file.slots[:n_end], had_tail=False)
            self.send()  # as it is done, or who cuts the file now could have its pages in the same batch

        self.attempt(error, rebuild)

    def adopt(self, f: OpenFile, file: File) -> None:
        best, n_best = file, len(file.origins) // PAGE_SIZE
        for other in self.files.values():
            if other is file or (other.family, other.device, other.transfer) != (file.family, file.device, None):
                continue
            n = 0
            table = self.table(other)
            n_max = min(len(other.origins), len(file.slots) - 1) // PAGE_SIZE
            while n < n_max and not is_host(table[n]):
                if other.slots[: (n + 1) * PAGE_SIZE] != file.slots[: (n + 1) * PAGE_SIZE]:
                    break
                n += 1
            if n > n_best:
                best, n_best = other, n
        n_kv = self.fs.adopt(f)
        assert n_kv == (len(file.origins) if best is file else n_best * PAGE_SIZE)
        if best is not file:
            assert self.table(file) == self.table(best)[:n_best]
            file.origins = best.origins[:n_kv]

    # --- what becomes of batches ---

    @rule(i=PICK, backwards=st.booleans())
    def device_goes_on(self, i: int, backwards: bool) -> None:
        """What is leased and not sent becomes a batch for each device; or a device runs its next batch."""
        busy = [device for _, device in sorted(self.devices.items()) if device.batches]
        if busy and i % 2:
            self.run_next(busy[i // 2 % len(busy)], backwards)
        else:
            self.send()

    def run_next(self, device: Any, backwards: bool = False) -> None:
        device.run_next(backwards=backwards)
        self.early = [flight for flight in self.early if not flight.has_run]

    def send(self) -> None:
        for name, device in self.devices.items():
            batch = [f for f in self.flights if not f.is_sent and f.lease.device == name]
            batch += [s for s in self.shifts if not s.is_sent and s.transfer.device == name]
            for item in batch:
                item.is_sent = True
            if batch:
                device.batches.append(batch)

    def run_until(self, item: Any, device: Any, backwards: bool = False) -> None:
        self.send()
        while not item.has_run:
            self.run_next(device, backwards)

    @precondition(lambda self: self.flights)
    @rule(i=PICK, early=st.booleans(), backwards=st.booleans())
    def commit(self, i: int, early: bool, backwards: bool) -> None:
        flight = self.flights[i % len(self.flights)]
        lease, file = flight.lease, flight.file
        if lease.claim is not None:
            (flight,) = (f for f in self.flights if f.lease is lease.claim.leases[0])
            lease = flight.lease
        if not early:
            self.run_until(flight, self.devices[lease.device], backwards)
        elif not flight.has_run:
            self.send()
            self.early.append(flight)
        if lease.chained:
            self.fs.resolve(lease, flight.history[-1][0])
        self.flights.remove(flight)
        self.fs.commit(lease, self.now)
        file.n_leases -= 1
        if lease.claim is not None:
            file.slots = list(flight.history)
        if lease.claim is not None or (lease.n_new and file.rebuild is flight):
            self.computed(flight)
        self.reap(file)

    def computed(self, flight: Any) -> None:
        """The file has the flight's pages."""
        lease, file = flight.lease, flight.file
        first = lease.n_before // PAGE_SIZE * PAGE_SIZE if lease.copies else lease.n_before
        kept = file.origins[: lease.n_before]
        file.origins = [o | {flight} if i >= first else o for i, o in enumerate(kept)]
        file.origins += [frozenset([flight])] * lease.n_new
        if lease.n_again and not lease.copies:  # then the token counts as missing, for all who have it there
            for other in self.holders(lease.pages[lease.n_before // PAGE_SIZE], file.device):
                if len(other.origins) > lease.n_before:
                    other.origins[lease.n_before] |= {flight}
        file.rebuild = None
        file.tail_gone = False

    @precondition(lambda self: self.flights)
    @rule(i=PICK, fails=st.sampled_from(["", "early", "late"]))
    def abandon(self, i: int, fails: str) -> None:
        """A batch that is not sent goes without the row; one that is may run all the same, or fail on the way."""
        flight = self.flights[i % len(self.flights)]
        if flight.lease.claim is not None:
            (flight,) = (f for f in self.flights if f.lease is flight.lease.claim.leases[-1])
        flight.fails = fails
        self.end_flight(flight)

    def end_flight(self, flight: Any) -> None:
        flight.is_wanted = False
        self.flights.remove(flight)
        self.fs.abandon(flight.lease)
        flight.file.n_leases -= 1
        if flight.file.rebuild is flight:
            flight.file.rebuild = None
        self.reap(flight.file)

    @precondition(lambda self: any(device.batches for device in self.devices.values()))
    @rule(i=PICK, fails=st.sampled_from(["early", "late"]), disown_first=st.booleans())
    def batch_fails(self, i: int, fails: str, disown_first: bool) -> None:
        """The oldest batch of a device fails, and all that were sent behind it are void."""
        self.send()
        device = [d for _, d in sorted(self.devices.items()) if d.batches][i % 2 - 1]
        void = [item for batch in reversed(device.batches) for item in reversed(batch)]
        failed = [item for item in void if item in self.early]
        for item in device.batches[0]:
            item.fails = fails
        device.run([item for item in device.batches[0] if not isinstance(item, self.simulated.Shipment)])
        still = [[x for x in batch if isinstance(x, self.simulated.Shipment)] for batch in device.batches]
        device.batches = [batch for batch in still if batch]
        if disown_first:
            self.disown(failed)
        for item in void:
            if item in self.flights:
                self.end_flight(item)
            elif item in self.shifts:
                self.fs.abandon_move(item.transfer)
                self.ended(item.transfer)
        if not disown_first:
            self.disown(failed)
        self.early = [flight for flight in self.early if flight not in failed]
        for file in self.files.values():
            missing = [k for k, origin in enumerate(file.origins) if origin & set(failed)]
            if missing:
                file.lose(missing[0])

    def disown(self, failed: Sequence[Any]) -> None:
        for flight in failed:
            self.fs.disown(flight.lease)

    # --- moves ---

    def movable(self, name: str) -> list[int]:
        """Numbers of the files on a device that nothing in flight has."""
        found = [ino for ino, f in self.files.items() if f.device == name and not f.n_leases and f.transfer is None]
        return sorted(found)

    @precondition(lambda self: self.devices)
    @rule(i=PICK, chosen=CHOSEN, at_once=st.booleans())
    def swap_out(self, i: int, chosen: set[int], at_once: bool) -> None:
        name = sorted(self.devices)[i % len(self.devices)]
        inos = self.choose(chosen, self.movable(name))
        files = [self.files[ino] for ino in inos]
        pages = set()
        for page in {entry for file in files for entry in self.table(file) if not is_host(entry)}:
            others = [f for f in self.holders(page, name) if f not in files]
            stuck = [
                f for f in others if f.n_leases or f.transfer is not None or self.residency(f) is Residency.RESIDENT
            ]
            if not stuck and not any(page in table for table in self.in_use(name)):
                pages.add(page)
        assert self.fs.reclaimable(inos) == len(pages)
        if not pages:
            assert self.fs.swap_out(inos, self.now) is None
            return
        error = NoSpace if len(pages) > self.fs.pools[name].host.n_free else None

        def swap_out() -> None:
            move = self.fs.swap_out(inos, self.now)
            assert move is not None
            assert (move.kind, move.device, {page for page, _ in move.pairs}) == (MoveKind.OUT, name, pages)
            self.shifted(move)

        if self.attempt(error, swap_out) and at_once:
            self.end_move(len(self.shifts) - 1, True, "")

    def choose(self, chosen: set[int], inos: list[int]) -> list[int]:
        return [ino for k, ino in enumerate(inos) if k in chosen or k - len(inos) in chosen]

    def shifted(self, move: Move) -> None:
        shift = self.simulated.Shift(move)
        self.shifts.append(shift)
        self.shadows[move.device].run([shift])
        for entry in move.entries_from:
            for file in self.holders(entry, move.device):
                file.transfer = move

    def swapped(self) -> list[tuple[OpenFile, File]]:
        return [(f, file) for f, file in self.handles if any(map(is_host, self.table(file)))]

    @precondition(lambda self: self.swapped())
    @rule(i=PICK, at_once=st.booleans())
    def swap_in(self, i: int, at_once: bool) -> None:
        f, file = self.swapped()[i % len(self.swapped())]
        assert file.device is not None
        entries = [entry for entry in self.table(file) if is_host(entry)]
        sharers = [x for entry in entries for x in self.holders(entry, file.device)]
        error: type[SyscallError] | None = None
        if any(x.transfer is not None for x in [file, *sharers]):
            error = Busy
        elif len(entries) > self.fs.pools[file.device].n_free:
            error = NoSpace

        def swap_in() -> None:
            move = self.fs.swap_in(f, self.now) if i % 2 else self.fs.swap_in_ino(f.inode.ino, self.now)
            assert (move.kind, len(move.pairs)) == (MoveKind.IN, len(entries))
            self.shifted(move)

        if self.attempt(error, swap_in) and at_once:
            self.end_move(len(self.shifts) - 1, True, "")

    @precondition(lambda self: self.shifts)
    @rule(i=PICK, commit=st.booleans(), fails=st.sampled_from(["", "early"]))
    def end_move(self, i: int, commit: bool, fails: str) -> None:
        shift = self.shifts[i % len(self.shifts)]
        if commit:
            self.run_until(shift, self.devices[shift.transfer.device])
            self.fs.commit_move(shift.transfer, self.now)
        else:
            shift.fails = fails
            self.fs.abandon_move(shift.transfer)
        self.ended(shift.transfer)

    @precondition(lambda self: len(self.devices) == 2)
    @rule(i=PICK, chosen=CHOSEN, at_once=st.booleans())
    def migrate(self, i: int, chosen: set[int], at_once: bool) -> None:
        here, there = ("w0", "w1") if i % 2 else ("w1", "w0")
        inos = [ino for ino in self.movable(here) if not any(map(is_host, self.table(self.files[ino])))]
        inos = self.choose(chosen, inos)
        if not inos:
            return
        pages = {entry for ino in inos for entry in self.table(self.files[ino])}
        error = NoSpace if len(pages) > self.fs.pools[there].n_free else None

        def migrate() -> None:
            m = self.fs.migrate(inos, there, self.now)
            assert (m.device_from, m.device_to, set(m.pages_from)) == (here, there, pages)
            assert len(m.pages_from) == len(m.pages_to) == len(pages)
            for ino in inos:
                self.files[ino].transfer = m
            self.send()
            shipment = self.simulated.Shipment(m)
            self.shipments.append(shipment)
            self.devices[here].batches.append([shipment])
            shadow = self.simulated.Shipment(m)
            self.shadows[here].run([shadow])
            shadow.stores = True
            self.shadows[there].run([shadow])

        if self.attempt(error, migrate) and at_once:
            self.end_migration(len(self.shipments) - 1, True, True)

    @precondition(lambda self: self.shipments)
    @rule(i=PICK, commit=st.booleans(), stored=st.booleans())
    def end_migration(self, i: int, commit: bool, stored: bool) -> None:
        shipment = self.shipments[i % len(self.shipments)]
        m: Migration = shipment.transfer
        if commit or stored:
            self.run_until(shipment, self.devices[m.device_from])
            shipment.stores, shipment.has_run = True, False
            self.devices[m.device_to].batches.append([shipment])
        if commit:
            self.run_until(shipment, self.devices[m.device_to])
            self.fs.commit_migration(m, self.now)
            for file in self.files.values():
                if file.transfer is m:
                    file.device = m.device_to
        else:
            self.fs.abandon_migration(m)
        self.ended(m)

    def with_kv(self) -> list[int]:
        return sorted(ino for ino, f in self.files.items() if f.origins and not f.n_leases)

    @precondition(lambda self: self.with_kv())
    @rule(chosen=CHOSEN, is_moving=st.booleans())
    def drop(self, chosen: set[int], is_moving: bool) -> None:
        inos = [ino for ino in self.with_kv() if is_moving == (self.files[ino].transfer is not None)]
        inos = self.choose(chosen, inos)
        n_free = sum(pool.n_free for pool in self.fs.pools.values())
        assert self.fs.drop(inos, self.now) == sum(pool.n_free for pool in self.fs.pools.values()) - n_free
        for ino in inos:
            self.files[ino].device = self.files[ino].transfer = None
            self.files[ino].lose(0)

    # --- what must hold ---

    @invariant()
    def nothing_is_broken(self) -> None:
        assert check(self.fs) == []
        n_transfers = len(self.shifts) + len(self.shipments)
        n = (len(self.files), 0, len(self.handles), len(self.claims), len(self.flights), n_transfers)
        assert counts(self.fs)[2:] == n

    @invariant()
    def files_are_as_the_model_says(self) -> None:
        assert self.fs.files.keys() == self.files.keys()
        later = {name: device.ahead() for name, device in self.devices.items()}
        for ino, file in self.files.items():
            inode = self.fs.files[ino]
            assert list(zip(inode.tokens, inode.positions, strict=True)) == file.slots
            assert (inode.n_kv, inode.residency) == (len(file.origins), self.residency(file))
            assert (inode.pool.name if inode.pool else None) == file.device
            assert inode.tail_valid == self.has_tail(file)
            file.tail_gone = not inode.tail_valid
            if file.device is None:
                continue
            devices = [later[file.device], self.shadows[file.device]]
            if not any(origin & set(self.early) for origin in file.origins):
                devices.append(self.devices[file.device])
            for device in devices:
                table = inode.table.tolist()
                assert device.read(table, inode.n_kv) == file.slots[: inode.n_kv]
                if inode.tail_valid:
                    assert device.tail(table, len(file.slots)) == file.slots

    @invariant()
    def names_are_as_the_model_says(self) -> None:
        found = {path: self.files[node.ino] for path, node in self.fs.names.walk(self.fs.names.root)}
        assert found == self.names

    def teardown(self) -> None:
        type(self).undo(self.fs)


@pytest.fixture
def machine(simulated: SimpleNamespace, undo: Callable[[Kvfs], None]) -> type[KvfsMachine]:
    KvfsMachine.simulated, KvfsMachine.undo = simulated, staticmethod(undo)
    return KvfsMachine


def test_every_file_is_what_was_written_to_it(machine: type[KvfsMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=150, stateful_step_count=60, deadline=None))
