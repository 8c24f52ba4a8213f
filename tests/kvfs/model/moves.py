"""Pages on their way between tiers and devices, and those given up."""

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from kvfs.inode import Residency
from kvfs.moves import Migration, Move, MoveKind
from kvfs.openfile import OpenFile
from kvfs.table import is_host
from sdk.abi.errors import (
    Busy,
    NoSpace,
    SyscallError,
)
from tests.kvfs.model.batches import Batches
from tests.kvfs.model.state import CHOSEN, PICK, File


class Moves(Batches):
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
