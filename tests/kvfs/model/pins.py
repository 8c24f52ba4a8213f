"""Pins and advice: which leading pages of which files stay, however much room is wanted."""

import math

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from kvfs.table import is_host
from sdk.abi.values import Advice
from tests.kvfs.model.batches import Batches
from tests.kvfs.model.state import N_PAGES, PAGE_SIZE, PICK, File, Pin

N_PINNED_MAX = N_PAGES // 2


class Pinning(Batches):
    def pinned(self, file: File) -> list[Pin]:
        """Pins of a file that are not over."""
        return [
            pin
            for pin in self.pins
            if pin.file is file and pin.until_s > self.now and (file.n_links or not pin.is_named)
        ]

    def kept(self, device: str) -> dict[int, int]:
        """Leading pages on a device that stay, by inode number: the oldest pins first, up to half of the device."""
        kept: dict[int, int] = {}
        for pin in self.pins:
            if pin.file.device == device and pin in self.pinned(pin.file):
                n_held = min(pin.n_pages, -(-len(pin.file.slots) // PAGE_SIZE))
                n_there = sum(not is_host(entry) for entry in self.table(pin.file)[:n_held])
                more = min(N_PINNED_MAX - sum(kept.values()), n_there - kept.get(pin.file.ino, 0))
                if more > 0:
                    kept[pin.file.ino] = kept.get(pin.file.ino, 0) + more
        assert self.fs.pinned(device, self.now) == kept
        return kept

    def stays(self, file: File, n_kept: int) -> list[int]:
        """The beginning of a file's table, up to the last page of so many on the device."""
        table = self.table(file)
        ends = [i for i in range(len(table) + 1) if sum(not is_host(entry) for entry in table[:i]) == n_kept]
        return table[: ends[0]] if ends else table

    @precondition(lambda self: self.handles)
    @rule(
        i=PICK,
        n=st.integers(0, 4),
        tenant=st.sampled_from(["", "moon"]),
        ttl=st.none() | st.integers(1, 40),
        advice=st.none() | st.sampled_from(Advice),
    )
    def say_where_pages_should_be(self, i: int, n: int, tenant: str, ttl: int | None, advice: Advice | None) -> None:
        if advice is None:
            self.pin(i, n, tenant, ttl)
        else:
            self.advise(i, advice)

    def pin(self, i: int, n: int, tenant: str, ttl: int | None) -> None:
        """In place of what the handle had pinned, and of what closed ones of the tenant's did if that is no more and no
        longer; no page at all is no pin."""
        f, file = self.handles[i % len(self.handles)]
        until_s = math.inf if ttl is None else self.now + ttl
        own = [p for p in self.pins if p.file is file and (p.handle is f or (p.handle is None and p.tenant == tenant))]
        stays = [p for p in own if n and p.handle is None and (p.n_pages > n or p.until_s > until_s or ttl is None)]
        self.pins = [pin for pin in self.pins if pin not in own or pin in stays]
        if n == 0:
            self.fs.unpin(f, tenant)
        else:
            self.fs.pin(f, tenant, n, until_s)
            self.pins.append(Pin(f, file, tenant, n, until_s, file.n_links > 0))

    def advise(self, i: int, advice: Advice) -> None:
        f, file = self.handles[i % len(self.handles)]
        self.fs.advise(f, advice, self.now)
        wanted = {wish.inode.ino for wish in self.fs.wanted(self.now) if not wish.is_pinned}
        is_there = file.is_whole and not any(map(is_host, self.table(file))) and (file.device or not file.slots)
        is_pinned = any(self.pinned(file))
        assert file.ino not in wanted or (advice is Advice.WILLNEED and not is_there)
        assert file.ino in wanted or advice is not Advice.WILLNEED or is_there or is_pinned
        if file.device is not None:
            assert (file.ino in self.fs.unneeded(file.device)) == (advice is Advice.DONTNEED)
