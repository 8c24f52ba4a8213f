"""Families: files that were forked from one another, and so may share pages or have a beginning in common.

Pages come to be shared by forking, by adopting (below), which is among relatives too, and by editing, which makes
relatives of those who come to share some. So whoever looks for the other holders of a page, or for somebody who has
already computed the same tokens, looks in the family alone. A file that was never forked is a family of its own and
costs nothing here.

Called by fs.py and `tiers.py`. Never add here: names, moves, what is to be dropped.
"""

from collections.abc import Iterable

from kvfs import cow
from kvfs.inode import Inode
from kvfs.table import is_host


class Families:
    """Who is related to whom."""

    def __init__(self) -> None:
        self.members: dict[int, dict[int, Inode]] = {}  # family → inode number → inode; two and more of them

    def of(self, inode: Inode) -> Iterable[Inode]:
        """The living members of a file's family, itself included if it lives."""
        return self.members.get(inode.family, {inode.ino: inode}).values()

    def join(self, child: Inode, parent: Inode) -> None:
        """The child was forked from the parent."""
        child.family = parent.family
        self.members.setdefault(parent.family, {parent.ino: parent})[child.ino] = child

    def unite(self, a: Inode, b: Inode) -> None:
        """The two share pages from now on, so all their relatives are one family: the larger one's."""
        if a.family == b.family:
            return
        mine, others = (self.members.get(i.family, {i.ino: i}) for i in (a, b))
        if len(mine) < len(others):
            a, mine, others = b, others, mine
        for other in others.values():
            self.members.pop(other.family, None)
            other.family = a.family
        self.members[a.family] = mine | others

    def leave(self, inode: Inode) -> None:
        """The inode dies."""
        members = self.members.get(inode.family)
        if members is not None:
            del members[inode.ino]
            if len(members) < 2:
                del self.members[inode.family]


def adopt(inode: Inode, relatives: Iterable[Inode]) -> int:
    """Share the pages of the relative on the same device that has most of this file's beginning, instead of what it
    has itself; returns its `n_kv`. Whole pages, and never that of the last token: its hidden state, which is the
    tail, must be computed. No pages that are being moved, since whoever holds those moves with them. What was
    computed in another context is shared among files of the same edit, and with nobody else."""
    pool = inode.pool
    assert pool is not None
    best, n_best = inode, inode.n_kv // pool.page_size
    for other in relatives:
        if other.pool is not pool or other.moving:
            continue
        n_max = min(n_pages_on_device(other), (len(inode.tokens) - 1) // pool.page_size)
        if other.edited is not inode.edited:
            n_max = min(n_max, *(e.at // pool.page_size for e in (inode.edited, other.edited) if e is not None))
        if n_max > n_best and (n := n_common_pages(inode, other, n_max, pool.page_size)) > n_best:
            best, n_best = other, n
    if best is not inode and inode.bill.has_room(n_best - len(inode.table)):
        table = cow.share(pool, best.table[:n_best])
        inode.cut_kv(0)
        inode.table, inode.n_kv = table, n_best * pool.page_size
        inode.settle()
        inode.note(f"adopt {inode.n_kv} tokens of #{best.ino}")
    return inode.n_kv


def n_pages_on_device(inode: Inode) -> int:
    """The leading pages of a file that are on the device and full."""
    assert inode.pool is not None
    n_full = inode.n_kv // inode.pool.page_size
    if not inode.n_host:
        return n_full
    return next((i for i, entry in enumerate(inode.table[:n_full]) if is_host(entry)), n_full)


def n_common_pages(a: Inode, b: Inode, n_max: int, page_size: int) -> int:
    """How many of the first `n_max` pages have the same tokens at the same positions in both files. By bisection,
    since slices are compared at the speed of memory."""
    n, beyond = 0, n_max + 1  # so many pages agree; so many do not
    while beyond - n > 1:
        middle = n_max if beyond > n_max else (n + beyond) // 2
        slots = slice(n * page_size, middle * page_size)
        if a.tokens[slots] == b.tokens[slots] and a.positions[slots] == b.positions[slots]:
            n = middle
        else:
            beyond = middle
    return n
