"""Pins and advice: what programs have said about where the pages of files should be.

A *pin* says that the leading `n_pages` of a file stay on its device, up to a time; one without a time ends with the
handle it was made with. It belongs to a tenant, whose quota it counts against: of several pins of one file the largest.
A pin with a time outlives its handle if the file has a name, and any pin ends with the file's last name. Forks do not
inherit pins; pages that a pinned file shares with them stay with it.

What is pinned on a device is never more than a share of its pages: so there is always room to go on, however long a
pin lasts, and nobody who evicts has to break one. That share is looked at whenever somebody asks what is kept
(`kept`), oldest pins first, because a file may come from another device, where there was more room.

*Advice* is weaker. `willneed`: bring the pages back before somebody asks, once. `dontneed`: the first to leave, until
the file is used again.

Nothing here moves a page. `tiers.py` leaves out what is kept; the kernel's memory brings back what is `wanted`. Called
by work.py and fs.py. Never add here: who may pin what, and how much (policy, the kernel's), or any I/O.
"""

import math
from typing import NamedTuple

from kvfs.cow import n_pages_for
from kvfs.inode import Inode
from kvfs.openfile import OpenFile
from kvfs.pages import PagePool
from kvfs.table import is_host, n_host
from sdk.abi.values import Advice


class Pin:
    """One tenant's word that the beginning of a file stays."""

    __slots__ = ("handle", "inode", "is_named", "n_pages", "tenant", "until_s")

    def __init__(self, inode: Inode, tenant: str, handle: OpenFile, n_pages: int, until_s: float) -> None:
        self.inode = inode
        self.tenant = tenant
        self.handle: OpenFile | None = handle  # it was made with; None: closed since
        self.n_pages = n_pages  # leading ones
        self.until_s = until_s  # inf: as long as the handle is open
        self.is_named = inode.n_links > 0  # then it ends with the last name

    @property
    def n_held(self) -> int:
        """What it counts for: the file may have been cut since."""
        return min(self.n_pages, n_pages_of(self.inode))


class Wish(NamedTuple):
    """A file that should have the KV of its first `n_tokens` tokens on its device, and has not."""

    inode: Inode
    n_tokens: int
    is_pinned: bool
    is_awaited: bool  # it comes by other means than the device's, as soon as there is room


class Pins:
    """All pins and all advice of a file system."""

    def __init__(self, max_share: float = 0.5) -> None:
        """At most the share `max_share` of a device's pages is pinned at a time."""
        self.max_share = max_share
        self.pins: dict[Pin, None] = {}  # oldest first; those that are over are dropped when somebody looks
        self.advice: dict[int, tuple[Advice, float]] = {}  # by inode number, with when it was given
        self.awaited: set[int] = set()  # inode numbers of files that come back by other means

    # --- pinning ---

    def pin(self, inode: Inode, tenant: str, handle: OpenFile, n_pages: int, until_s: float) -> Pin:
        """Pin the first `n_pages` of a file, in place of what this handle had pinned. What handles that the tenant has
        closed left stays, where it lasts longer or is of more."""
        pin = Pin(inode, tenant, handle, n_pages, until_s)
        self._end([p for p in self._own(inode, tenant, handle) if p.handle is handle or is_less(p, pin)])
        self.pins[pin] = None
        return pin

    def unpin(self, inode: Inode, tenant: str, handle: OpenFile) -> int:
        """End the pins of this handle and those the tenant's closed handles have left; returns how many."""
        return self._end(self._own(inode, tenant, handle))

    def _own(self, inode: Inode, tenant: str, handle: OpenFile) -> list[Pin]:
        return [p for p in self.of(inode) if p.handle is handle or (p.handle is None and p.tenant == tenant)]

    def closed(self, handle: OpenFile) -> None:
        """A handle is closed: its pin stays if it has a time and the file a name."""
        for pin in [pin for pin in self.pins if pin.handle is handle]:
            if pin.until_s < math.inf and pin.inode.n_links:
                pin.handle = None
            else:
                del self.pins[pin]

    def forget(self, inode: Inode) -> None:
        """The file is gone, or its pages cannot be had: nothing that was said of it holds any more."""
        self._end(self.of(inode))
        self.advice.pop(inode.ino, None)
        self.awaited.discard(inode.ino)

    def _end(self, pins: list[Pin]) -> int:
        for pin in pins:
            del self.pins[pin]
        return len(pins)

    @property
    def are_quiet(self) -> bool:
        """Whether nothing is to be kept on a device, or brought back."""
        return not self.pins and all(advice is Advice.DONTNEED for advice, _ in self.advice.values())

    def expire(self, now: float) -> None:
        """Drop the pins that are over: their time, or the name of their file."""
        if self.pins:
            self._end([p for p in self.pins if p.until_s <= now or (p.is_named and not p.inode.n_links)])

    # --- looking ---

    def of(self, inode: Inode) -> list[Pin]:
        return [pin for pin in self.pins if pin.inode is inode] if self.pins else []

    def n_pinned(self, pool: PagePool, now: float) -> dict[str, int]:
        """Pages of a device that are pinned, by tenant. Pages that files share count for each of them, and a file that
        several tenants have pinned for each of these."""
        self.expire(now)
        largest: dict[tuple[str, int], int] = {}
        for pin in self.pins:
            if pin.inode.pool is pool:
                key = pin.tenant, pin.inode.ino
                largest[key] = max(largest.get(key, 0), pin.n_held)
        found: dict[str, int] = {}
        for (tenant, _), n in largest.items():
            found[tenant] = found.get(tenant, 0) + n
        return found

    def room(self, inode: Inode, tenant: str, share: float, now: float) -> int:
        """How many pages of a file a tenant may pin, with those that it has pinned of it already: of all that may be
        pinned on the file's device, `share` is the tenant's. 0 where the file is on none."""
        if inode.pool is None:
            return 0
        held, limit = self.n_pinned(inode.pool, now), self.limit(inode.pool)
        n_here = max((p.n_held for p in self.of(inode) if p.tenant == tenant), default=0)
        left = min(limit - sum(held.values()), int(limit * share) - held.get(tenant, 0))
        return max(0, left + n_here)

    def limit(self, pool: PagePool) -> int:
        """Pages of a device that may be pinned."""
        return int(self.max_share * pool.n_pages)

    def kept(self, pool: PagePool, now: float) -> dict[int, int]:
        """Leading pages that stay, by inode number, of the files on a device; those that are there."""
        if not self.pins:
            return {}
        self.expire(now)
        left = self.limit(pool)
        kept: dict[int, int] = {}
        for pin in self.pins:
            ino = pin.inode.ino
            if pin.inode.pool is pool and (more := min(left, n_present(pin) - kept.get(ino, 0))) > 0:
                kept[ino] = kept.get(ino, 0) + more
                left -= more
        return kept

    def until(self, inode: Inode, now: float) -> tuple[int, float]:
        """How many of a file's pages are pinned, and until when; (0, 0.0) when none are. Where too many have come to a
        device, as many as are kept there."""
        self.expire(now)
        pins = self.of(inode)
        if not pins:
            return 0, 0.0
        n_pages = max(p.n_held for p in pins)
        if inode.pool is not None:
            n_pages -= max(map(n_present, pins)) - self.kept(inode.pool, now).get(inode.ino, 0)
        return n_pages, max(p.until_s for p in pins)

    # --- advice ---

    def advise(self, inode: Inode, advice: Advice, now: float) -> None:
        self.advice[inode.ino] = advice, now

    def is_unneeded(self, inode: Inode) -> bool:
        """Whether somebody said `dontneed`, and nobody has used the file since."""
        advice, since = self.advice.get(inode.ino, (Advice.WILLNEED, 0.0))
        if advice is not Advice.DONTNEED:
            return False
        if max(inode.used_s, inode.modified_s) > since:
            del self.advice[inode.ino]
            return False
        return True

    def wanted(self, files: dict[int, Inode], now: float) -> list[Wish]:
        """The files that should come back: pinned ones first, in the order of their pins."""
        if not self.pins and not self.advice:
            return []
        self.expire(now)
        wishes: dict[int, Wish] = {}
        for pin in self.pins:
            size = pin.inode.pool.page_size if pin.inode.pool is not None else 1
            self._wish(wishes, pin.inode, min(pin.n_pages * size, len(pin.inode.tokens)), is_pinned=True)
        for ino, (advice, _) in list(self.advice.items()):
            inode = files[ino]
            if advice is not Advice.WILLNEED:
                continue
            if is_there(inode, len(inode.tokens)):
                del self.advice[ino]
            if ino not in wishes:
                self._wish(wishes, inode, len(inode.tokens), is_pinned=False)
        return list(wishes.values())

    def _wish(self, wishes: dict[int, Wish], inode: Inode, n_tokens: int, *, is_pinned: bool) -> None:
        known = wishes.get(inode.ino)
        if is_there(inode, n_tokens):
            self.awaited.discard(inode.ino)
        elif known is None or known.n_tokens < n_tokens:
            wishes[inode.ino] = Wish(inode, n_tokens, is_pinned, inode.ino in self.awaited)


def is_less(pin: Pin, other: Pin) -> bool:
    """Whether one pin of a file keeps nothing that another does not keep for as long."""
    return pin.n_pages <= other.n_pages and pin.until_s <= other.until_s and other.until_s < math.inf


def n_present(pin: Pin) -> int:
    """Of the pages that are pinned, those on the device."""
    table = pin.inode.table[: pin.n_held]
    return len(table) - n_host(table) if pin.inode.n_host else len(table)


def n_pages_of(inode: Inode) -> int:
    """Pages that all tokens of a placed file take, with KV or without."""
    return n_pages_for(len(inode.tokens), inode.pool.page_size) if inode.pool is not None else 0


def is_there(inode: Inode, n_tokens: int) -> bool:
    """Whether the KV of a file's first tokens is on its device."""
    if inode.n_kv < n_tokens or inode.pool is None:
        return not n_tokens
    if not inode.n_host:
        return True
    return not any(is_host(entry) for entry in inode.table[: n_pages_for(n_tokens, inode.pool.page_size)])
