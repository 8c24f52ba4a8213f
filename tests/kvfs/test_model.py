"""The whole of kvfs against a model, a dict of token lists, with a simulated device that executes leases.

After each step every file that is read through its page table equals the model: now, and again when the device
has worked off all it was sent, since a batch that was abandoned may still run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
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
from kvfs.fsck import Counts, check, counts
from kvfs.lease import Claim, Lease, LeaseState
from kvfs.openfile import OpenFile
from sdk.abi.errors import (
    AccessDenied,
    Busy,
    DeviceLost,
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
PATHS = ["/a", "/b", "/c"]
Slot = tuple[int, int]  # a token and its position
PICK = st.integers(0, 1000)
FEW = st.sampled_from([1, 1, 2, 3, 4, 7, 12])


@dataclass(eq=False)
class File:
    """What the model knows of a file."""

    slots: list[Slot] = field(default_factory=list)
    tail: bool = False
    lost: bool = False
    device: str | None = None
    n_links: int = 0
    n_open: int = 0
    n_leases: int = 0
    claimed: bool = False

    @property
    def is_held(self) -> bool:
        return bool(self.n_links + self.n_open + self.n_leases or self.claimed)


class KvfsMachine(RuleBasedStateMachine):
    device_type: Any
    flight_type: Any

    def __init__(self) -> None:
        super().__init__()
        self.fs = Kvfs()
        self.now = 0.0
        self.next_token = 0
        self.devices: dict[str, Any] = {}
        self.files: dict[int, File] = {}
        self.names: dict[str, File] = {}
        self.handles: list[tuple[OpenFile, File]] = []
        self.claims: list[tuple[Claim, File]] = []
        self.flights: list[Any] = []  # out
        self.orphans: list[Any] = []  # ended by remove_device, not yet abandoned
        self.add_device("w0")

    @initialize(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=3), path=st.sampled_from(PATHS))
    def some_files(self, lengths: list[int], path: str) -> None:
        """To begin with something, or most runs would hardly come to a batch."""
        for i, n in enumerate(lengths):
            self.create(path if i == 0 else None, device="w0")
            self.claim(i)
            self.lease(i, n, None, False)
            self.commit(0, False)
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
            (f.stat(), f.tokens.tolist(), f.table.tolist(), f.tail_valid, f.claimed, f.n_leases)
            for f in self.fs.files.values()
        ]
        pools = [(list(p.refs), sorted(p.extents()), p.usage()) for p in self.fs.pools.values()]
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

    # --- devices ---

    @rule(name=st.sampled_from(["w0", "w1"]), told=st.booleans(), dice=st.integers(0, 3))
    def devices_come_and_go(self, name: str, told: bool, dice: int) -> None:
        if name not in self.devices:
            self.add_device(name)
        elif dice == 0:
            self.remove_device(name, told)
        else:
            self.attempt(FileExists, lambda: self.fs.add_device(name, n_pages=1, page_size=1))

    def add_device(self, name: str) -> None:
        self.fs.add_device(name, n_pages=N_PAGES, page_size=PAGE_SIZE)
        self.devices[name] = self.device_type(N_PAGES, PAGE_SIZE)

    def remove_device(self, name: str, told: bool) -> None:
        hit = [flight for flight in self.flights if flight.lease.device == name]
        for flight in hit:
            if told:
                self.fs.abandon(flight.lease, device_lost=True)
            else:
                self.orphans.append(flight)
            flight.file.n_leases -= 1
            self.flights.remove(flight)
        self.fs.remove_device(name, now=self.now)
        del self.devices[name]
        for file in list(self.files.values()):
            if file.device == name:
                file.device, file.tail, file.lost = None, False, bool(file.slots)
            self.reap(file)
        assert all(f.lease.state is LeaseState.LOST for f in hit) or told

    @precondition(lambda self: self.orphans)
    @rule()
    def abandon_orphan(self) -> None:
        self.fs.abandon(self.orphans.pop().lease, device_lost=True)

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

    @precondition(lambda self: len(self.handles) < 2 * N_FILES)
    @rule(path=st.sampled_from(PATHS), mode=st.sampled_from(OpenMode))
    def open(self, path: str, mode: OpenMode) -> None:
        def open_() -> None:
            f = self.fs.open(path, mode, owner="ann", now=self.now)
            self.opened(f, self.names[path])

        self.attempt(self.no_file(path), open_)

    @rule(call=st.sampled_from(["unlink", "link", "rename"]), old=st.sampled_from(PATHS), new=st.sampled_from(PATHS))
    def change_names(self, call: str, old: str, new: str) -> None:
        error = self.no_file(old)
        if call == "unlink":
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
        error = DeviceLost if file.lost else self.no_vacancy(path)

        def fork() -> None:
            child = self.fs.fork(f, path, owner="ann", now=self.now)
            self.opened(child, File(list(file.slots), file.tail, False, file.device))
            self.named(path, child)

        self.attempt(error, fork)

    def empty_handles(self) -> list[tuple[OpenFile, File]]:
        return [(f, file) for f, file in self.handles if not file.slots and not file.n_leases]

    @precondition(lambda self: self.empty_handles() and self.devices)
    @rule(i=PICK, j=PICK)
    def place(self, i: int, j: int) -> None:
        f, file = self.empty_handles()[i % len(self.empty_handles())]
        file.device = sorted(self.devices)[j % len(self.devices)]
        self.fs.place(f, file.device)

    @precondition(lambda self: self.handles)
    @rule(i=PICK, n=PICK, claimed=st.booleans())
    def truncate_either(self, i: int, n: int, claimed: bool) -> None:
        if claimed and self.idle_claims():
            self.truncate_claimed(i, n)
        else:
            self.truncate(i, n)

    def truncate(self, i: int, n: int) -> None:
        f, file = self.handles[i % len(self.handles)]
        error = AccessDenied if f.mode is OpenMode.READ else Busy if file.claimed else None
        self.truncate_by(lambda n: self.fs.truncate(f, n, self.now), file, n, error)

    def truncate_claimed(self, i: int, n: int) -> None:
        claim, file = self.idle_claim(i)
        self.truncate_by(lambda n: self.fs.truncate_claimed(claim, n, self.now), file, n, None)

    def truncate_by(self, call: Callable[[int], None], file: File, n: int, error: type[SyscallError] | None) -> None:
        n %= len(file.slots) + 2
        error = error or (InvalidArgument if n > len(file.slots) else None)
        if self.attempt(error, lambda: call(n)):
            if n < len(file.slots):
                file.tail, file.lost = False, file.lost and n > 0
            del file.slots[n:]

    # --- work in flight ---

    @precondition(lambda self: self.handles)
    @rule(i=PICK, release=st.booleans())
    def claim_or_release(self, i: int, release: bool) -> None:
        if release and self.idle_claims():
            self.release(i)
        else:
            self.claim(i)

    def claim(self, i: int) -> None:
        f, file = self.handles[i % len(self.handles)]
        state = DeviceLost if file.lost else Busy if file.claimed else None
        error = AccessDenied if f.mode is OpenMode.READ else state

        def claim() -> None:
            self.claims.append((self.fs.claim(f), file))
            file.claimed = True

        self.attempt(error, claim)

    def idle_claims(self) -> list[tuple[Claim, File]]:
        return [(claim, file) for claim, file in self.claims if claim.lease is None]

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
        return [i for i, (f, x) in enumerate(self.handles) if f.mode is OpenMode.WRITE and not x.claimed and not x.lost]

    @precondition(lambda self: self.idle_claims() or self.unclaimed())
    @rule(i=PICK, n=FEW, at=st.none() | st.integers(0, 2**32 - 100), again=st.booleans())
    def lease(self, i: int, n: int, at: int | None, again: bool) -> None:
        if (i % 3 and self.unclaimed()) or not self.idle_claims():
            self.claim(self.unclaimed()[i % len(self.unclaimed())])
            i = len(self.idle_claims()) - 1
        claim, file = self.idle_claim(i)
        n_again = int(again and bool(file.slots))
        n_before = len(file.slots) - n_again
        first = at if at is not None else file.slots[-1][1] + 1 if file.slots else 0
        new = file.slots[n_before:] + [(self.next_token + k, first + k) for k in range(n - n_again)]
        tokens, positions = [slot[0] for slot in new], [slot[1] for slot in new]
        copies = self.is_shared(claim, n_before)
        error: type[SyscallError] | None = None
        if file.lost:
            error = DeviceLost
        elif file.device is None:
            error = InvalidArgument
        elif (n_before + n + 2) // PAGE_SIZE - len(claim.inode.table) + copies > self.fs.pools[file.device].n_free:
            error = NoSpace

        def lease() -> None:
            lease = self.fs.lease(claim, tokens, None if at is None else positions, n_again=n_again)
            assert (lease.tokens.tolist(), lease.positions.tolist()) == (tokens, positions)
            assert (lease.n_before, bool(lease.copies)) == (n_before, copies)
            self.took_off(lease, file, new[n_again:], had_tail=file.tail and not n_again)
            if n_before < len(claim.inode.table) * PAGE_SIZE and not copies:
                file.tail = False

        if self.attempt(error, lease):
            self.next_token += n

    def is_shared(self, claim: Claim, n_before: int) -> bool:
        """Whether the write begins in a page that somebody else holds."""
        inode = claim.inode
        if n_before >= len(inode.table) * PAGE_SIZE:
            return False
        tables = [f.table for f in self.fs.files.values() if f.pool is inode.pool]
        tables += [r.lease.pages for r in self.flights if r.lease.claim is None and r.lease.pool is inode.pool]
        return sum(inode.table[-1] in table for table in tables) > 1

    def took_off(self, lease: Lease, file: File, new: list[Slot], *, had_tail: bool) -> None:
        file.n_leases += 1
        self.flights.append(self.flight_type(lease, file, file.slots + new, had_tail, lease.pages.tolist()))

    @precondition(lambda self: self.handles)
    @rule(i=PICK)
    def lease_tail(self, i: int) -> None:
        f, file = self.handles[i % len(self.handles)]
        no_tail = Busy if file.claimed and file.slots else InvalidArgument
        error = DeviceLost if file.lost else None if file.tail else no_tail
        self.attempt(error, lambda: self.took_off(self.fs.lease_tail(f), file, [], had_tail=True))

    @rule(i=PICK, backwards=st.booleans())
    def device_goes_on(self, i: int, backwards: bool) -> None:
        """What is leased and not sent becomes a batch for each device; or a device runs its next batch."""
        busy = [device for _, device in sorted(self.devices.items()) if device.batches]
        if busy and i % 2:
            busy[i // 2 % len(busy)].run_next(backwards=backwards)
        else:
            self.send()

    def send(self) -> None:
        for name, device in self.devices.items():
            batch = [f for f in self.flights if not f.is_sent and f.lease.device == name]
            for flight in batch:
                flight.is_sent = True
            if batch:
                device.batches.append(batch)

    @precondition(lambda self: self.flights)
    @rule(i=PICK, backwards=st.booleans())
    def commit(self, i: int, backwards: bool) -> None:
        flight = self.flights[i % len(self.flights)]
        if not flight.is_sent:
            self.send()
        while not flight.has_run:
            self.devices[flight.lease.device].run_next(backwards=backwards)
        self.flights.remove(flight)
        self.fs.commit(flight.lease, self.now)
        flight.file.n_leases -= 1
        if flight.lease.claim is not None:
            flight.file.slots = flight.history
            flight.file.tail = True
        self.reap(flight.file)

    @precondition(lambda self: self.flights)
    @rule(i=PICK, fails=st.sampled_from(["", "early", "late"]))
    def abandon(self, i: int, fails: str) -> None:
        """A batch that is not sent goes without the row; one that is may run all the same, or fail on the way."""
        flight = self.flights.pop(i % len(self.flights))
        flight.fails = fails
        self.fs.abandon(flight.lease)
        flight.file.n_leases -= 1
        self.reap(flight.file)

    # --- what must hold ---

    @invariant()
    def nothing_is_broken(self) -> None:
        assert check(self.fs) == []
        n = (len(self.files), 0, len(self.handles), len(self.claims), len(self.flights))
        assert counts(self.fs)[1:] == n

    @invariant()
    def files_are_as_the_model_says(self) -> None:
        assert self.fs.files.keys() == self.files.keys()
        later = {name: device.ahead() for name, device in self.devices.items()}
        for ino, file in self.files.items():
            inode = self.fs.files[ino]
            assert list(zip(inode.tokens, inode.positions, strict=True)) == file.slots
            assert (inode.tail_valid, inode.lost) == (file.tail, file.lost)
            assert (inode.pool.name if inode.pool else None) == file.device
            if file.device is None:
                continue
            for device in (self.devices[file.device], later[file.device]):
                table = inode.table.tolist()
                assert device.read(table, len(file.slots)) == file.slots
                if file.tail:
                    assert device.tail(table, len(file.slots)) == file.slots

    @invariant()
    def names_are_as_the_model_says(self) -> None:
        found = {path: self.files[node.ino] for path, node in self.fs.names.walk(self.fs.names.root)}
        assert found == self.names

    def teardown(self) -> None:
        for flight in self.flights:
            self.fs.abandon(flight.lease)
        for claim, _ in self.claims:
            self.fs.release(claim, self.now)
        for f, _ in self.handles:
            self.fs.close(f, self.now)
        for path in self.names:
            self.fs.unlink(path, self.now)
        assert check(self.fs) == []
        assert counts(self.fs) == Counts(0, 0, 0, 0, 0, 0)


def test_every_file_is_what_was_written_to_it(device_type: Any, flight_type: Any) -> None:
    KvfsMachine.device_type, KvfsMachine.flight_type = device_type, flight_type
    run_state_machine_as_test(KvfsMachine, settings=settings(max_examples=150, stateful_step_count=60, deadline=None))
