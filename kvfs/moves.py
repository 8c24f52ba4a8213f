"""Moves: pages on their way from one place to another, between the tiers of a device or between devices.

A transfer has the pages to copy from and as many to copy to, each once however many files share it. It ends once:

    OUT ── commit ───► COMMITTED     the contents are there: every table that has the old pages gets the new ones
     ├──── abandon ──► ABANDONED     they are not, or nobody wants them: the new pages are given back
     └──── lose ─────► LOST ── abandon ──► ABANDONED     a device was removed; its owner may yet say so

While it is out it holds all its pages, old and new, so none of them is handed out to anybody. The files whose tables
have old pages are its *members*; they are MOVING, which keeps batches off them, and otherwise as they were: they can
be read, forked, cut and closed. A fork of a member becomes a member, since it has the old pages too. A file is a
member of one transfer at most. So a transfer is committed by going through its members' tables, whatever has become
of them, and what no table has any more is free when the transfer lets go of it.

With a page go its tails, so a file knows what comes next after a move as before.

Called by `tiers.py`, which makes them, and by fs.py. Never add here: which pages move, and why.
"""

from array import array
from enum import Enum

from kvfs.inode import Inode
from kvfs.pages import PagePool
from kvfs.table import PageTable, n_host, page_number
from sdk.abi.errors import KernelPanic


class MoveKind(Enum):
    """Between the tiers of a device."""

    OUT = "out"  # to host memory
    IN = "in"


class TransferState(Enum):
    OUT = "out"
    COMMITTED = "committed"
    ABANDONED = "abandoned"
    LOST = "lost"


class Transfer:
    """Pages on their way. All fields but `members` and `state` are facts for those who copy."""

    __slots__ = ("entries_from", "entries_to", "members", "pool_from", "pool_to", "state")

    def __init__(
        self,
        pool_from: PagePool,
        entries_from: "PageTable[int]",
        pool_to: PagePool,
        entries_to: "PageTable[int]",
        members: list[Inode],
    ) -> None:
        """`entries_to` are held already, by whom they were allocated for; all old pages are in tables of members."""
        self.pool_from = pool_from
        self.entries_from = entries_from
        self.pool_to = pool_to
        self.entries_to = entries_to
        self.members: dict[int, Inode] = {}
        self.state = TransferState.OUT
        pool_from.hold(entries_from)
        for inode in members:
            self.join(inode)

    @property
    def is_out(self) -> bool:
        """Whether it can still be committed."""
        return self.state is TransferState.OUT

    def join(self, inode: Inode) -> None:
        """One more file has pages of it."""
        self.members[inode.ino] = inode
        inode.moving = True

    def leave(self, inode: Inode) -> None:
        """The file has no pages of it any more, or dies."""
        del self.members[inode.ino]
        inode.moving = False


class Move(Transfer):
    """Between the device and the host memory of one worker."""

    __slots__ = ("kind",)

    def __init__(
        self,
        kind: MoveKind,
        pool: PagePool,
        entries_from: "PageTable[int]",
        entries_to: "PageTable[int]",
        members: list[Inode],
    ) -> None:
        super().__init__(pool, entries_from, pool, entries_to, members)
        self.kind = kind

    @property
    def device(self) -> str:
        return self.pool_from.name

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(page from, page to), as numbers on their tiers: OUT (device page, host page), IN (host, device)."""
        return list(zip(map(page_number, self.entries_from), map(page_number, self.entries_to), strict=True))


class Migration(Transfer):
    """From one worker to another, from either tier to either: `entries_from[i]` there is to be `entries_to[i]` here."""

    __slots__ = ()

    @property
    def device_from(self) -> str:
        return self.pool_from.name

    @property
    def device_to(self) -> str:
        return self.pool_to.name


def commit(transfer: Transfer, now: float) -> None:
    """The contents have arrived. Raises KernelPanic when the transfer has ended before."""
    if transfer.state is not TransferState.OUT:
        raise KernelPanic(f"a move of {len(transfer.entries_to)} pages is committed that is {transfer.state.value}")
    pool_from, pool_to = transfer.pool_from, transfer.pool_to
    new = dict(zip(transfer.entries_from, transfer.entries_to, strict=True))
    for inode in transfer.members.values():
        table = array("I", [new.get(entry, entry) for entry in inode.table])
        pool_to.hold(table)
        pool_from.drop(inode.table)
        inode.table, inode.n_host = table, n_host(table)
        if pool_to is not pool_from:
            inode.move_to(pool_to)
        inode.settle()
        inode.note(f"moved, {inode.n_host} of its {len(table)} pages in the host memory of {pool_to.name}", now)
    end(transfer, TransferState.COMMITTED)


def abandon(transfer: Transfer) -> None:
    """The contents have not arrived, or are not wanted. Raises KernelPanic when the transfer has ended before."""
    if transfer.state is TransferState.LOST:
        transfer.state = TransferState.ABANDONED
        return
    if transfer.state is not TransferState.OUT:
        raise KernelPanic(f"a move of {len(transfer.entries_to)} pages is abandoned that is {transfer.state.value}")
    end(transfer, TransferState.ABANDONED)


def lose(transfer: Transfer) -> None:
    """One of the devices is removed."""
    end(transfer, TransferState.LOST)


def end(transfer: Transfer, state: TransferState) -> None:
    """Let go of all pages and members."""
    for inode in transfer.members.values():
        inode.moving = False
    transfer.members.clear()
    transfer.pool_from.drop(transfer.entries_from)
    transfer.pool_to.drop(transfer.entries_to)
    transfer.state = state
