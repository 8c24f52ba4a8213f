"""Loads: K/V that comes from disk into fresh pages of a device, instead of being computed again.

A load is a transfer (`moves.py`) without pages to copy from. The file that wants the K/V is PARTIAL and gives up what
it has of it; it is MOVING until the end. Then it gets the pages, and so does every relative without any, as far as it
has the same tokens at the same positions: forks of a stored file are all served by one load, and share its pages.

What a file has by then decides, not what it had at the beginning: it may have been cut, forked or closed meanwhile.
Called by work.py. Never add here: disks, which file should be loaded.
"""

from array import array
from collections.abc import Iterable

from kvfs import cow
from kvfs.inode import Edited, Inode, Residency
from kvfs.moves import Transfer, TransferState, end
from kvfs.pages import PagePool
from kvfs.table import NO_PAGES
from sdk.abi.errors import Busy, KernelPanic


class Load(Transfer):
    """Page `i` of what is stored is to be in page `pages_to[i]`."""

    __slots__ = ("positions", "tokens")

    def __init__(
        self, pool: PagePool, inode: Inode, tokens: "array[int]", positions: "array[int]", pages: "array[int]"
    ) -> None:
        super().__init__(pool, NO_PAGES, pool, pages, [inode])
        self.tokens = tokens  # whose K/V is stored, and their positions
        self.positions = positions

    @property
    def pages_to(self) -> list[int]:
        return self.entries_to.tolist()


def begin(inode: Inode, pool: PagePool, tokens: "array[int]", positions: "array[int]") -> Load:
    """Raises NoSpace, QuotaExceeded; Busy when a batch or a move has the file, or nothing of it is missing. Then
    nothing has changed."""
    if inode.residency is not Residency.PARTIAL or inode.n_leases:
        raise Busy("a batch or a move of this file is in flight, or its K/V is there: nothing can be loaded")
    n_pages = cow.n_pages_for(len(tokens), pool.page_size)
    inode.bill.need_pages(n_pages - len(inode.table))
    pages = pool.alloc(n_pages)
    inode.leave()
    inode.move_to(pool)
    return Load(pool, inode, tokens, positions, pages)


def commit(
    load: Load, n_kv: int, tail_valid: bool, edited: Edited | None, relatives: Iterable[Inode], now: float
) -> None:
    """The K/V of the first `n_kv` tokens is in the pages. `tail_valid`: and the hidden state after the last of all.
    Raises KernelPanic when the load has ended before."""
    if load.state is not TransferState.OUT:
        raise KernelPanic(f"a load of {len(load.entries_to)} pages is committed that is {load.state.value}")
    others = [r for r in relatives if r.ino not in load.members and _has_none(r)]
    for inode in (*load.members.values(), *others):
        n = min(n_kv, n_common(inode, load.tokens, load.positions))
        has_tail = tail_valid and n == n_kv == len(load.tokens) == len(inode.tokens)
        if n == len(inode.tokens) and not has_tail:
            n -= 1  # the last one is computed again: nobody has the hidden state after it
        if n <= 0 or not inode.bill.has_room(cow.n_pages_for(n, load.pool_to.page_size) - len(inode.table)):
            continue
        inode.move_to(load.pool_to)
        inode.table = cow.share(load.pool_to, load.entries_to[: cow.n_pages_for(n, load.pool_to.page_size)])
        inode.n_kv = n
        inode.settle()
        inode.tail_valid = has_tail
        inode.edited = edited if edited is not None and edited.at < n else None
        inode.note(f"{n} tokens from disk", now)
    end(load, TransferState.COMMITTED)


def _has_none(inode: Inode) -> bool:
    """Whether a file wants K/V, has none, and nothing in flight gives it some."""
    return inode.residency is Residency.PARTIAL and not inode.table and not inode.n_leases


def n_common(inode: Inode, tokens: "array[int]", positions: "array[int]") -> int:
    """How many of the first tokens are the same, at the same positions. By bisection: slices are compared at the speed
    of memory."""
    n, beyond = 0, min(len(inode.tokens), len(tokens)) + 1  # so many agree; so many do not, or are not there
    middle = beyond - 1
    while beyond - n > 1:
        slots = slice(n, middle)
        if inode.tokens[slots] == tokens[slots] and inode.positions[slots] == positions[slots]:
            n = middle
        else:
            beyond = middle
        middle = (n + beyond) // 2
    return n
