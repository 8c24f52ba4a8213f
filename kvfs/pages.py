"""The page pool of one device: who holds each page, and where the next one comes from.

Owns the numbers 0 … n_pages-1 of one worker's pages; the tensors are the worker's. A page is free when nobody
holds it and used otherwise. Holders are page tables: of files, of leases that grow a file, and of leases that
read a tail; and moves under way, for the pages they move from and to. `cow.py` writes a page in place only when
`refs` says that exactly one holder has it. A table may have entries of the host tier as well: holding and dropping
those is passed on to `host`.

Pages are handed out with an eye to runs, because attention reads consecutive pages through a view and gathers
any others. A file goes on after its last page while that neighbour is free. Where no such hint helps, it starts
in the middle of one of the largest free extents, so that it and whoever ends before it both have room to grow:
n forks that grow side by side then keep one run each, where first fit would interleave them page by page.

Free space is a set of maximal extents with boundary tags (Knuth, TAOCP vol. 1, 2.5): `_other_end` leads from
the first page of an extent to its last and back, so joining neighbours is O(1). Extents are filed by the power
of two of their length; the topmost class that is not empty has the largest one, up to a factor of two.

Called by `cow.py`, `inode.py`, `lease.py`, `moves.py` and `tiers.py`. Never add here what a page contains, or
whose it is.
"""

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from kvfs.hostpool import HostPool
from kvfs.table import N_PAGES_MAX, PageTable, is_host, page_number
from sdk.abi.errors import InvalidArgument, KernelPanic, NoSpace


class DeviceUsage(NamedTuple):
    """How full a device is."""

    n_pages: int
    n_free: int
    n_files: int  # files placed on it, with pages or without
    page_size: int  # tokens a page holds
    n_host_pages: int  # in its worker's main memory
    n_host_free: int


class PagePool:
    """Reference counts and free extents of one device's pages."""

    __slots__ = (
        "_classes",
        "_filled",
        "_other_end",
        "host",
        "n_files",
        "n_free",
        "n_pages",
        "name",
        "page_bytes",
        "page_size",
        "refs",
    )

    def __init__(self, name: str, n_pages: int, page_size: int, n_host_pages: int = 0, page_bytes: int = 0) -> None:
        """Raises InvalidArgument when there is no page, or no slot in it, or more than entries can tell apart."""
        if not 1 <= n_pages < N_PAGES_MAX or page_size < 1:
            raise InvalidArgument(f"device {name} needs at least one page of one token: not {n_pages} of {page_size}")
        self.name = name
        self.host = HostPool(name, n_host_pages)
        self.n_pages = n_pages
        self.page_size = page_size
        self.page_bytes = page_bytes  # of K/V in one, as the worker has it; for what users are charged
        self.n_free = 0
        self.n_files = 0  # kept by `Inode.move_to`
        # Holders of each page. A list, since its items are read and written twice as fast as an array's.
        self.refs = [0] * n_pages
        self._other_end = array("I", bytes(4 * n_pages))  # of a free extent: first page → last page → first page
        self._classes: list[dict[int, None]] = [{} for _ in range(n_pages.bit_length())]  # first pages, by log2 length
        self._filled = 0  # bit k: class k has an extent
        self._free(0, n_pages)

    def usage(self) -> DeviceUsage:
        host = self.host
        return DeviceUsage(self.n_pages, self.n_free, self.n_files, self.page_size, host.n_pages, host.n_free)

    @property
    def n_host_used(self) -> int:
        """Pages in host memory that somebody holds."""
        return self.host.n_pages - self.host.n_free

    # --- holding ---

    def alloc(self, n: int, after: int | None = None) -> "PageTable[int]":
        """`n` free pages, each held once, as a table in order; if it can be, the first is page `after` + 1.

        Raises NoSpace, with nothing changed, when fewer are free."""
        if n > self.n_free:
            raise NoSpace(
                f"{self.name} has {self.n_free} of its {self.n_pages} pages free and {n} are needed: "
                "close, truncate or unlink files"
            )
        pages = array("I")
        if after is not None and after + 1 < self.n_pages and not self.refs[after + 1]:
            first, last = after + 1, self._other_end[after + 1]  # its neighbour is used: this is where an extent starts
            self._unlink(first, last)
            pages.extend(self._carve(first, last, first, min(n, last - first + 1)))
        while len(pages) < n:
            first, last = self._pop_largest()
            length = last - first + 1
            take = min(n - len(pages), length)
            pages.extend(self._carve(first, last, first + (length - take) // 2, take))
        return pages

    def hold(self, pages: "PageTable[int]") -> None:
        """One more holder of these pages. Raises KernelPanic when one of them is free."""
        refs = self.refs
        for page in pages:
            n = refs[page] if page < self.n_pages else 0
            if not n:
                if is_host(page):
                    self.host.hold(page)
                    continue
                raise KernelPanic(f"page {page} of {self.name} is not in use, and a page table wants to share it")
            refs[page] = n + 1

    def drop(self, pages: "PageTable[int]") -> None:
        """One holder fewer of these pages; those without one are free. Raises KernelPanic on a double free."""
        refs = self.refs
        first = end = 0  # the run of pages found unheld and not yet freed
        for page in pages:
            n = refs[page] if page < self.n_pages else 0
            if n > 1:
                refs[page] = n - 1
                continue
            if not n:
                if is_host(page):
                    self.host.drop(page)
                    continue
                raise KernelPanic(f"page {page} of {self.name} is not in use, and a page table gives it back")
            if page != end and first < end:
                self._free(first, end)  # before `page` looks free: a run joins all free neighbours
            first = first if page == end and first < end else page
            refs[page] = 0
            end = page + 1
        if first < end:
            self._free(first, end)

    def n_shared(self, pages: "PageTable[int]") -> int:
        """How many of these pages somebody else holds too."""
        refs, host = self.refs, self.host.refs
        return sum((host[page_number(page)] if is_host(page) else refs[page]) > 1 for page in pages)

    # --- free extents; `first` and `last` belong to them, `end` does not ---

    def extents(self) -> Iterator[tuple[int, int, int]]:
        """(first, last, class) of every free extent on file, for fsck."""
        for k, firsts in enumerate(self._classes):
            for first in firsts:
                yield first, self._other_end[first], k

    def _free(self, first: int, end: int) -> None:
        """File the unheld pages first … end-1, joined with their free neighbours."""
        self.n_free += end - first
        last = end - 1
        if first and not self.refs[first - 1]:
            left = self._other_end[first - 1]
            self._unlink(left, first - 1)
            first = left
        if end < self.n_pages and not self.refs[end]:
            right = self._other_end[end]
            self._unlink(end, right)
            last = right
        self._link(first, last)

    def _carve(self, first: int, last: int, at: int, n: int) -> range:
        """Take n pages from `at` on out of an unlinked extent, and file what is left on both sides."""
        if first < at:
            self._link(first, at - 1)
        if at + n <= last:
            self._link(at + n, last)
        self.refs[at : at + n] = [1] * n
        self.n_free -= n
        return range(at, at + n)

    def _pop_largest(self) -> tuple[int, int]:
        """Unlink an extent of the largest class. There is one, or `n_free` is wrong."""
        if not self._filled:
            raise KernelPanic(f"{self.name} counts {self.n_free} free pages and has no free extent")
        k = self._filled.bit_length() - 1
        first, _ = self._classes[k].popitem()
        if not self._classes[k]:
            self._filled ^= 1 << k
        return first, self._other_end[first]

    def _link(self, first: int, last: int) -> None:
        self._other_end[first] = last
        self._other_end[last] = first
        k = (last - first + 1).bit_length() - 1
        self._classes[k][first] = None
        self._filled |= 1 << k

    def _unlink(self, first: int, last: int) -> None:
        k = (last - first + 1).bit_length() - 1
        del self._classes[k][first]
        if not self._classes[k]:
            self._filled ^= 1 << k
