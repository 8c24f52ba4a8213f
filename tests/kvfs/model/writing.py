"""Claims and leases, and what is computed again."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from kvfs.access import W
from kvfs.inode import Residency
from kvfs.lease import Claim
from kvfs.openfile import OpenFile
from kvfs.table import is_host
from sdk.abi.errors import (
    AccessDenied,
    Busy,
    InvalidArgument,
    NoSpace,
)
from tests.kvfs.model.locks import Locking
from tests.kvfs.model.state import FEW, PAGE_SIZE, PICK, USERS, File, Refusal, Slot


class Writing(Locking):
    # --- writing ---

    def claim(self, i: int) -> None:
        f, file = self.handles[i % len(self.handles)]
        error = AccessDenied if not self.rights[f] & W else Busy if file.claimed else None
        error = Busy if self.is_locked(f) else error

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
        writable = [i for i, (f, _) in enumerate(self.handles) if self.rights[f] & W and not self.is_locked(f)]
        return [i for i in writable if not self.handles[i][1].claimed and self.handles[i][1].is_whole]

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
        aside = n_again > 0 and file.edited is not None
        copies = n_before < len(table) * PAGE_SIZE and (aside or self.is_shared(table[-1], file))
        error: Refusal = None
        if self.residency(file) is not Residency.RESIDENT:
            error = Busy
        elif file.device is None:
            error = InvalidArgument
        n_more = (n_before + n + PAGE_SIZE - 1) // PAGE_SIZE - len(table)
        if error is None and file.device is not None:
            n_fresh = n_more + copies
            error = NoSpace if n_fresh > self.fs.pools[file.device].n_free else None
            error = error or (self.no_quota(USERS[file.owner], n_more) if n_fresh > 0 else None)
        had_tail = not claim.leases and self.has_tail(file) and not n_again

        def lease() -> None:
            given = [0] if chained else tokens
            lease = self.fs.lease(claim, given, None if at is None else positions, n_again=n_again, chained=chained)
            assert (lease.tokens.tolist(), lease.positions.tolist()) == (given, positions)
            assert (lease.n_before, bool(lease.copies), lease.chained) == (n_before, copies, chained)
            self.took_off(lease, file, base[:n_before] + new, had_tail=had_tail, n_more=n_more)

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

    def took_off(self, lease: Any, file: File, history: list[Slot], *, had_tail: bool, n_more: int = 0) -> Any:
        flight = self.simulated.Flight(lease, file, history, had_tail, lease.pages.tolist())
        flight.n_more = max(n_more, 0)
        file.n_leases += 1
        self.flights.append(flight)
        self.shadows[lease.device].run([flight])
        return flight

    @precondition(lambda self: self.handles)
    @rule(i=PICK)
    def lease_tail(self, i: int) -> None:
        f, file = self.handles[i % len(self.handles)]
        error: Refusal = None
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
        error: Refusal = None
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
        n_more = (n_end + PAGE_SIZE - 1) // PAGE_SIZE - len(table)
        if error is None:
            assert file.device is not None
            if n_more + copies > self.fs.pools[file.device].n_free:
                error = NoSpace
            elif n_more + copies > 0:
                error = self.no_quota(USERS[file.owner], n_more)

        def rebuild() -> None:
            lease = self.fs.lease_rebuild(f, n)
            assert (lease.n_before, lease.n_end, bool(lease.copies)) == (n_before, n_end, copies)
            assert list(zip(lease.tokens, lease.positions, strict=True)) == file.slots[n_before:n_end]
            file.rebuild = self.took_off(lease, file, file.slots[:n_end], had_tail=False, n_more=n_more)
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
            if other.edited is not file.edited:
                n_max = min(n_max, *(x.edited.at // PAGE_SIZE for x in (file, other) if x.edited is not None))
            while n < n_max and not is_host(table[n]):
                if other.slots[: (n + 1) * PAGE_SIZE] != file.slots[: (n + 1) * PAGE_SIZE]:
                    break
                n += 1
            if n > n_best:
                best, n_best = other, n
        if best is not file and self.no_quota(USERS[file.owner], n_best - len(self.table(file))):
            best = file
        n_kv = self.fs.adopt(f)
        assert n_kv == (len(file.origins) if best is file else n_best * PAGE_SIZE)
        if best is not file:
            assert self.table(file) == self.table(best)[:n_best]
            file.origins = best.origins[:n_kv]
