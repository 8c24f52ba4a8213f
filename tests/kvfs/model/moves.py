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
)
from tests.kvfs.model.pins import Pinning
from tests.kvfs.model.state import CHOSEN, PAGE_SIZE, PICK, File, Refusal


class Moves(Pinning):
    # --- moves ---

    def movable(self, name: str) -> list[int]:
        """Numbers of the files on a device that nothing in flight has."""
        found = [ino for ino, f in self.files.items() if f.device == name and not f.n_leases and f.transfer is None]
        return sorted(found)

    @precondition(lambda self: self.devices)
    @rule(i=PICK, chosen=CHOSEN, at_once=st.sampled_from([True, True, False]))
    def swap_out(self, i: int, chosen: set[int], at_once: bool) -> None:
        name = sorted(self.devices)[i % len(self.devices)]
        inos = self.choose(chosen, self.movable(name))
        files, kept = [self.files[ino] for ino in inos], self.kept(name)
        pages = set()
        staying = {entry for ino, n in kept.items() for entry in self.stays(self.files[ino], n)}
        for page in {entry for file in files for entry in self.table(file) if not is_host(entry)} - staying:
            others = [f for f in self.holders(page, name) if f not in files]
            stuck = [
                f for f in others if f.n_leases or f.transfer is not None or self.residency(f) is Residency.RESIDENT
            ]
            if not stuck and not any(page in table for table in self.in_use(name)):
                pages.add(page)
        assert self.fs.reclaimable(inos, kept) == len(pages)
        if not pages:
            assert self.fs.swap_out(inos, self.now, kept) is None
            return
        error = NoSpace if len(pages) > self.fs.pools[name].host.n_free else None

        def swap_out() -> None:
            move = self.fs.swap_out(inos, self.now, kept)
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
        error: Refusal = None
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
        inos = self.choose(chosen, self.movable(here))
        if not inos:
            return
        pages = {entry for ino in inos for entry in self.table(self.files[ino])}
        pool = self.fs.pools[there]
        error = NoSpace if len(pages) > pool.n_free + pool.host.n_free else None
        n_below = sum(map(is_host, pages))
        n_below += max(0, len(pages) - n_below - pool.n_free) - max(0, n_below - pool.host.n_free)

        def migrate() -> None:
            m = self.fs.migrate(inos, there, self.now)
            assert (m.device_from, m.device_to, set(m.entries_from)) == (here, there, pages)
            assert len(m.entries_from) == len(m.entries_to) == len(pages)
            assert sum(map(is_host, m.entries_to)) == n_below
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
        pinned = {ino: n for name in self.devices for ino, n in self.kept(name).items()}
        kept = {} if is_moving else pinned  # nobody keeps a part of what is on its way
        staying = {ino: self.stays(self.files[ino], kept[ino]) for ino in inos if kept.get(ino)}
        n_free = self.n_free()
        assert self.fs.drop(inos, self.now, kept) == self.n_free() - n_free
        for ino in inos:
            file = self.files[ino]
            file.transfer = None
            if ino in staying:
                assert self.table(file) == staying[ino]
                if len(staying[ino]) * PAGE_SIZE < len(file.origins):
                    file.lose(len(staying[ino]) * PAGE_SIZE)
            else:
                file.device = None
                file.lose(0)

    def n_free(self) -> int:
        """Pages of all devices, and of their host memory."""
        return sum(pool.n_free + pool.host.n_free for pool in self.fs.pools.values())
