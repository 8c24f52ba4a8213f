"""The host tier of one device: pages in its worker's main memory, where page contents rest that have no room above.

Owns the numbers 0 … n_pages-1 of those pages. As on the device, a page is held by tables and by moves under way, and
free when nobody holds it; which one is taken does not matter, since nothing computes there. Pages are spoken of as
table entries (`table.py`).

Called by `pages.py` and `tiers.py`. Never add here what a page contains, or whose it is.
"""

from array import array

from kvfs.table import N_PAGES_MAX, PageTable, host_entry, page_number
from sdk.abi.errors import InvalidArgument, KernelPanic, NoSpace


class HostPool:
    """Reference counts and free numbers of one worker's host pages."""

    __slots__ = ("free", "n_pages", "name", "refs")

    def __init__(self, name: str, n_pages: int) -> None:
        """Raises InvalidArgument when the number is negative, or does not fit an entry."""
        if not 0 <= n_pages < N_PAGES_MAX:
            raise InvalidArgument(f"device {name} can have 0 to 2^31-1 pages in host memory: not {n_pages}")
        self.name = name
        self.n_pages = n_pages
        self.refs = [0] * n_pages
        self.free = list(range(n_pages - 1, -1, -1))  # a stack

    @property
    def n_free(self) -> int:
        return len(self.free)

    def alloc(self, n: int) -> "PageTable[int]":
        """Entries of `n` free pages, each held once. Raises NoSpace, with nothing changed, when fewer are free."""
        if n > len(self.free):
            raise NoSpace(
                f"the host memory of {self.name} has {len(self.free)} of its {self.n_pages} pages free and {n} are "
                "needed: drop files, or give it more swap space"
            )
        entries = array("I")
        for _ in range(n):
            page = self.free.pop()
            self.refs[page] = 1
            entries.append(host_entry(page))
        return entries

    def hold(self, entry: int) -> None:
        """One more holder. Raises KernelPanic when the page is free or does not exist."""
        self.refs[self._used(entry)] += 1

    def drop(self, entry: int) -> None:
        """One holder fewer; without one the page is free. Raises KernelPanic on a double free."""
        page = self._used(entry)
        self.refs[page] -= 1
        if not self.refs[page]:
            self.free.append(page)

    def _used(self, entry: int) -> int:
        page = page_number(entry)
        if page >= self.n_pages or not self.refs[page]:
            raise KernelPanic(f"host page {page} of {self.name} is not in use, and somebody wants to hold or drop it")
        return page
