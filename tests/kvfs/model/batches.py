"""What becomes of batches: they run, fail, or are given up."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from tests.kvfs.model.state import PAGE_SIZE, PICK, Edited, File
from tests.kvfs.model.writing import Writing


class Batches(Writing):
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
        if lease.n_again or lease.claim is None:
            file.edited = self.edited_still(file, lease)
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

    def edited_still(self, file: File, lease: Any) -> Edited | None:
        """Tokens were computed again, as they follow one another now."""
        if file.edited is None or file.edited.at >= lease.n_end:
            return file.edited
        return None if lease.n_before <= file.edited.at else Edited(file.edited.at)

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
