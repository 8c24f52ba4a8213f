"""Claims and leases: how a call writes a file, batch by batch.

A **claim** is the exclusive right to append to one file, held by one `pred` or `generate` for its whole life.
A **lease** is one in-flight batch's right to pages, and it ends exactly once:

    OUT ── commit ───► COMMITTED     the batch ran: its tokens are part of the file
     ├──── abandon ──► ABANDONED     it did not run, or nobody wants the result
     └──── lose ─────► LOST ── abandon ──► ABANDONED     the device was removed first; its owner may yet say so

An appending lease belongs to a claim, one at a time. The file's table stays as it is until commit; the lease
has its own, with the fresh pages. So abandoning gives back the fresh pages and that is all, whether a copy into
them was done or not. Only the tail is different: a batch that writes in place (`cow.py`) may have run before it
was abandoned, so the file's tail is not valid from the lease to the next commit. A file that lost its tail so, or
by truncation, gets it back by a lease that computes its last token again, with or without more after it: the K/V
written is what was there, so whoever shares the page by then may go on reading it.

A lease on the tail reads what is stored after the last token and computes nothing. It holds the file's whole
table as a fork would; hence a writer that comes later copies the last page rather than write under the reader.
It needs no claim, and there may be many.

Batches run in order on a device. So pages dropped when a lease ends can be handed out at once: whatever writes
them next runs after the batch that had them, even if an abandoned batch is still on its way. An abandoned lease
whose batch is not sent yet must be taken out of that batch.

Called by fs.py alone, which keeps the sets of what is out. Never add here: batches, jobs, devices.
"""

from array import array
from collections.abc import Sequence
from enum import Enum

from kvfs import cow
from kvfs.inode import Inode
from kvfs.pages import NO_PAGES, PagePool, PageTable
from sdk.abi.errors import Busy, InvalidArgument

NO_TOKENS = array("I")


class LeaseState(Enum):
    OUT = "out"
    COMMITTED = "committed"
    ABANDONED = "abandoned"
    LOST = "lost"


class Claim:
    """The exclusive right to append to a file."""

    __slots__ = ("inode", "is_held", "lease")

    def __init__(self, inode: Inode) -> None:
        """Raises DeviceLost, and Busy when another claim is held."""
        inode.need_kv()
        if inode.claimed:
            raise Busy("another call is writing this file: wait for it, or fork the file")
        inode.claimed = True
        inode.note("claim")
        self.inode = inode
        self.is_held = True
        self.lease: Lease | None = None  # the one that is out

    def live(self) -> Inode:
        """The file behind it. Raises KernelPanic when the claim is released."""
        if not self.is_held:
            raise self.inode.panic("a released claim is used")
        return self.inode

    def idle(self) -> Inode:
        """The file behind it, with no batch of this claim in flight. Raises KernelPanic otherwise."""
        if self.lease is not None:
            raise self.inode.panic("the claim has a lease out")
        return self.live()

    def release(self, now: float) -> Inode:
        inode = self.idle()
        self.is_held = False
        inode.claimed = False
        inode.note("release", now)
        return inode


class Lease:
    """One batch's right to pages. All fields are facts for the batch and must not be changed."""

    __slots__ = (
        "claim",
        "copies",
        "fresh",
        "inode",
        "n_again",
        "n_before",
        "n_new",
        "pages",
        "pool",
        "positions",
        "state",
        "tokens",
    )

    def __init__(
        self,
        inode: Inode,
        pool: PagePool,
        claim: Claim | None,
        pages: "PageTable[int]",
        fresh: "PageTable[int]",
        copies: cow.Copies,
        tokens: "array[int]",
        positions: "array[int]",
        n_again: int = 0,
    ) -> None:
        self.inode = inode
        self.pool = pool
        self.claim = claim  # None: it reads the tail
        self.pages = pages  # page table that covers n_before + n_new tokens; an immutable value, good to the end
        self.fresh = fresh  # of those, the pages allocated for it, destinations of copies included
        self.copies = copies  # (source page, destination page), to be done before the step
        self.tokens = tokens  # u32, [n_new]
        self.positions = positions  # u32, [n_new]
        self.n_again = n_again  # the first of `tokens` are the file's last ones, computed once more
        self.n_before = len(inode.tokens) - n_again  # tokens whose K/V is in the pages already, and stays
        self.n_new = len(tokens)
        self.state = LeaseState.OUT

    @property
    def device(self) -> str:
        return self.pool.name


def append(claim: Claim, tokens: Sequence[int], positions: Sequence[int] | None, n_again: int = 0) -> Lease:
    """Lease pages for `tokens` after the committed ones. With `n_again=1` the first of them is the last committed
    one at its old position (KernelPanic otherwise), computed once more for the tail that the file has lost.

    Raises DeviceLost, NoSpace, or InvalidArgument (no token, not u32, another number of positions, no device chosen),
    each with nothing changed."""
    inode = claim.idle()
    inode.need_kv()
    pool = inode.pool
    if pool is None:
        raise InvalidArgument("this file is on no device: place it first")
    n_before = len(inode.tokens) - n_again
    if n_again and (n_again > 1 or n_before < 0):
        raise inode.panic(f"{n_again} tokens are to be computed again; it can be the last one")
    first = inode.positions[-1] if n_again else inode.next_position
    try:
        new = array("I", tokens)
        at = array("I", range(first, first + len(new)) if positions is None else positions)
    except (OverflowError, TypeError, ValueError):
        raise InvalidArgument("tokens and positions are whole numbers from 0 to 2^32-1") from None
    if not new or len(at) != len(new):
        raise InvalidArgument(f"{len(new)} tokens with {len(at)} positions: give one or more, and as many of each")
    if n_again and (new[0], at[0]) != (inode.tokens[-1], inode.positions[-1]):
        raise inode.panic(f"token {new[0]} at {at[0]} is to be computed again, and is not the last one")
    pages, fresh, copies = cow.grow(pool, inode.table, n_before, len(new))
    if not copies and len(inode.table) * pool.page_size > n_before:
        inode.tail_valid = False  # the batch writes where the tail is
    lease = Lease(inode, pool, claim, pages, fresh, copies, new, at, n_again)
    claim.lease = lease
    inode.n_leases += 1
    return lease


def read_tail(inode: Inode) -> Lease:
    """Lease the stored tail. Raises DeviceLost; Busy while it is being written; InvalidArgument when there is none."""
    inode.need_kv()
    if not inode.tokens:
        raise InvalidArgument("this file is empty, so nothing comes after its last token: append tokens first")
    if not inode.tail_valid:
        if inode.claimed:
            raise Busy("a call is writing the end of this file: wait for it")
        raise InvalidArgument("the tail was cut off or not computed: truncate the last token and append it again")
    assert inode.pool is not None
    pages = cow.share(inode.pool, inode.table)
    inode.n_leases += 1
    return Lease(inode, inode.pool, None, pages, NO_PAGES, [], NO_TOKENS, NO_TOKENS)


def commit(lease: Lease, now: float) -> None:
    """The batch ran. Raises KernelPanic when the lease has ended before."""
    inode, claim = lease.inode, lease.claim
    if lease.state is not LeaseState.OUT:
        raise inode.panic(f"a lease is committed that is {lease.state.value}")
    lease.state = LeaseState.COMMITTED
    inode.n_leases -= 1
    if claim is None:
        lease.pool.drop(lease.pages)
        return
    claim.lease = None
    if lease.copies:
        lease.pool.drop(inode.table[-1:])  # the copy took its place
    inode.table = lease.pages
    inode.tokens.extend(lease.tokens[lease.n_again :])
    inode.positions.extend(lease.positions[lease.n_again :])
    inode.tail_valid = not inode.lost
    inode.modified_s = now


def abandon(lease: Lease) -> None:
    """The batch did not run, or its result is unwanted. Raises KernelPanic when the lease has ended before."""
    if lease.state is LeaseState.OUT:
        _give_back(lease)
    elif lease.state is not LeaseState.LOST:
        raise lease.inode.panic(f"a lease is abandoned that is {lease.state.value}")
    lease.state = LeaseState.ABANDONED


def lose(lease: Lease) -> None:
    """The device is removed under the lease."""
    _give_back(lease)
    lease.state = LeaseState.LOST


def _give_back(lease: Lease) -> None:
    lease.inode.n_leases -= 1
    if lease.claim is None:
        lease.pool.drop(lease.pages)
        return
    lease.claim.lease = None
    lease.pool.drop(lease.fresh)
    lease.inode.note(f"abandon {lease.n_new} tokens")
