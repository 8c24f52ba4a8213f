"""Claims and leases: how a call writes a file, batch by batch.

A **claim** is the exclusive right to append to one file, held by one `pred` or `generate` for its whole life.
A **lease** is one in-flight batch's right to pages, and it ends exactly once:

    OUT ── commit ───► COMMITTED     the batch ran: its tokens are part of the file
     ├──── abandon ──► ABANDONED     it did not run, or nobody wants the result
     └──── lose ─────► LOST ── abandon ──► ABANDONED     its pages went first; its owner may yet say so

An **appending** lease belongs to a claim, which can have two of them out: that of the running batch, and that of the
one behind it, which continues from the first as if it were committed. They are committed oldest first and abandoned
newest first. The token of the second may be what the first one's batch draws: then the lease is *chained*, and told
its token before it is committed. The file's table stays as it is until commit; a lease has its own, with the fresh
pages. So abandoning gives back the fresh pages and that is all, whether a copy into them was done or not. Only the
tail is different: a batch may have run before it was abandoned, so a tail that it writes over (`cow.py`) is not
valid from the lease on. A file that lost its tail so, or by truncation, gets it back by a lease that computes its
last token again, with or without more after it: the K/V written is what was there, so whoever shares the page by
then may go on reading it. Not so in an *edited* file, whose K/V is of another context: there the page is copied.

A page is written in place or copied as things are when the lease is taken. If the file is forked between two leases
of its claim, the second one copies the page that the first one writes in place, after the batch of the first.

A lease on the **tail** reads what is stored after the last token and computes nothing. It holds the file's whole
table as a fork would; hence a writer that comes later copies the last page rather than write under the reader.
It needs no claim, and there may be many.

A lease that **rebuilds** computes tokens of the file again whose K/V is gone, at their stored positions. It needs no
claim, and there is no other lease beside it, since the file can be neither written nor read before it is whole.
Truncating the file meanwhile makes it useless: committing it then gives back its pages and nothing more.

Batches run in order on a device. So pages dropped when a lease ends can be handed out at once: whatever writes
them next runs after the batch that had them, even if an abandoned batch is still on its way. An abandoned lease
whose batch is not sent yet must be taken out of that batch.

A lease of an **edit** reads pages of some files and fills fresh ones for another: see `editing.py`.

Called by `work.py` and `editing.py`, which keep the sets of what is out. Never add here: batches, jobs, devices.
"""

from array import array
from collections.abc import Iterable, Sequence
from enum import Enum

from kvfs import cow
from kvfs.inode import Edited, Inode, Residency
from kvfs.pages import PagePool
from kvfs.table import NO_PAGES, PageTable
from sdk.abi.errors import Busy, InvalidArgument, QuotaExceeded

NO_TOKENS = array("I")
N_APPENDS = 2  # leases of one claim: the running batch's, and one ahead of it


class LeaseState(Enum):
    OUT = "out"
    COMMITTED = "committed"
    ABANDONED = "abandoned"
    LOST = "lost"


# Looking up an enum's member takes 70 ns before Python 3.12, and every row of every batch does it thrice.
OUT, COMMITTED, ABANDONED, LOST = LeaseState


class LeaseKind(Enum):
    APPEND = "append"
    TAIL = "tail"
    REBUILD = "rebuild"
    EDIT = "edit"


class Claim:
    """The exclusive right to append to a file."""

    __slots__ = ("inode", "is_held", "leases")

    def __init__(self, inode: Inode) -> None:
        """Raises Busy when another claim is held."""
        if inode.claimed:
            raise Busy("another call is writing this file: wait for it, or fork the file")
        inode.claimed = True
        inode.note("claim")
        self.inode = inode
        self.is_held = True
        self.leases: list[Lease] = []  # that are out, oldest first

    def live(self) -> Inode:
        """The file behind it. Raises KernelPanic when the claim is released."""
        if not self.is_held:
            raise self.inode.panic("a released claim is used")
        return self.inode

    def idle(self) -> Inode:
        """The file behind it, with no batch of this claim in flight. Raises KernelPanic otherwise."""
        if self.leases:
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
        "chained",
        "claim",
        "copies",
        "fresh",
        "inode",
        "masked",
        "n_again",
        "n_before",
        "n_new",
        "n_reserved",
        "pages",
        "pool",
        "positions",
        "state",
        "tail_lost",
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
        n_before: int,
        n_again: int = 0,
        chained: bool = False,
    ) -> None:
        self.inode = inode
        self.pool = pool
        self.claim = claim  # whose lease it is, if it appends
        self.pages = pages  # page table that covers n_before + n_new tokens; an immutable value, good to the end
        self.fresh = fresh  # of those, the pages allocated for it, destinations of copies included
        self.copies = copies  # (source page, destination page), to be done before the step
        self.tokens = tokens  # u32, [n_new]
        self.positions = positions  # u32, [n_new]
        self.n_before = n_before  # tokens whose K/V is in the pages already, and stays
        self.n_new = len(tokens)
        self.n_again = n_again  # the first of `tokens` are the file's last ones, computed once more
        self.chained = chained  # its one token is what the batch before draws: 0 until `resolve`
        self.masked = False  # some of its tokens do not see all before them: whoever sends the batch says so
        self.n_reserved = 0  # pages on its owner's bill until it ends
        self.tail_lost = False  # a batch behind it, abandoned or not, writes over the tail that it stores
        self.state = OUT

    @property
    def device(self) -> str:
        return self.pool.name

    @property
    def kind(self) -> LeaseKind:
        if self.claim is not None:
            return LeaseKind.APPEND
        return LeaseKind.REBUILD if self.n_new else LeaseKind.TAIL

    @property
    def n_end(self) -> int:
        """Tokens that its pages hold when the batch has run."""
        return self.n_before + self.n_new

    # What becomes of a lease that computes nothing; one of an edit has its own ways (`editing.py`).

    @property
    def inodes(self) -> Iterable[Inode]:
        """The files that it keeps as they are."""
        return (self.inode,)

    def took(self, now: float) -> None:
        """The batch has read the tail."""
        self.pool.drop(self.pages)
        self.inode.used_s = now

    def let_go(self) -> None:
        """It has not."""
        self.pool.drop(self.pages)


# --- taking one ---


def append(claim: Claim, tokens: Sequence[int], positions: Sequence[int] | None, n_again: int, chained: bool) -> Lease:
    """Lease pages for `tokens` after the committed ones and those of the lease that is out. With `n_again=1` the
    first of them is the last committed one at its old position, computed once more for the tail that the file has
    lost.

    Raises Busy (not all K/V is there), NoSpace, or InvalidArgument (no token, not u32, another number of positions,
    no device chosen), each with nothing changed."""
    inode, out = claim.inode, claim.leases
    if out:
        ahead_of = out[-1]
        if n_again or len(out) == N_APPENDS:
            raise inode.panic(f"the claim has a lease out, and another with n_again={n_again} cannot follow")
        table, n_before, first = ahead_of.pages, ahead_of.n_before + ahead_of.n_new, ahead_of.positions[-1] + 1
    else:
        claim.live()
        inode.need_resident()
        table, n_before = inode.table, inode.n_kv - n_again
        first = inode.positions[-1] + 1 - n_again if inode.n_kv else 0
    pool = inode.pool
    if pool is None:
        raise InvalidArgument("this file is on no device: place it first")
    try:
        new = array("I", tokens)
        n_new = len(new)
        if positions is None:
            at = array("I", (first,)) if n_new == 1 else array("I", range(first, first + n_new))
        else:
            at = array("I", positions)
    except (OverflowError, TypeError, ValueError):
        raise InvalidArgument("tokens and positions are whole numbers from 0 to 2^32-1") from None
    if not n_new or len(at) != n_new:
        raise InvalidArgument(f"{n_new} tokens with {len(at)} positions: give one or more, and as many of each")
    if n_again or chained:
        _check_special(inode, new, at, n_again, chained)
    aside = n_again > 0 and inode.edited is not None
    pages, fresh, copies = cow.grow(pool, table, n_before, n_new, aside=aside)
    n_reserved = _reserve(inode, pool, fresh, copies) if fresh else 0
    lease = Lease(inode, pool, claim, pages, fresh, copies, new, at, n_before, n_again, chained)
    lease.n_reserved = n_reserved
    n_end = n_before + n_new
    if out and not n_new & 1 and cow.overwrites_tail(pages, n_end, table, n_before):
        ahead_of.tail_lost = True
    if not (n_end - inode.n_kv) & 1 and cow.overwrites_tail(pages, n_end, inode.table, inode.n_kv):
        inode.tail_valid = False
    out.append(lease)
    inode.n_leases += 1
    return lease


def _reserve(inode: Inode, pool: PagePool, fresh: "PageTable[int]", copies: cow.Copies) -> int:
    """Put the pages by which the file grows on its owner's bill. Raises QuotaExceeded, having given back the fresh."""
    n = len(fresh) - len(copies)
    try:
        inode.bill.reserve(n)
    except QuotaExceeded:
        pool.drop(fresh)
        raise
    return n


def _check_special(inode: Inode, new: "array[int]", at: "array[int]", n_again: int, chained: bool) -> None:
    """Raises KernelPanic when `new` is not one token to be told later, or does not begin with the file's last one."""
    if chained and (len(new) != 1 or n_again):
        raise inode.panic(f"{len(new)} tokens, {n_again} of them computed again, are chained; it can be one new one")
    if n_again and (n_again > 1 or not inode.tokens):
        raise inode.panic(f"{n_again} tokens are to be computed again; it can be the last one")
    if n_again and (new[0], at[0]) != (inode.tokens[-1], inode.positions[-1]):
        raise inode.panic(f"token {new[0]} at {at[0]} is to be computed again, and is not the last one")


def read_tail(inode: Inode) -> Lease:
    """Lease the stored tail. Raises Busy while it is being written, or not all K/V is there; InvalidArgument when
    there is none."""
    inode.need_resident()
    if not inode.tokens:
        raise InvalidArgument("this file is empty, so nothing comes after its last token: append tokens first")
    if not inode.tail_valid:
        if inode.claimed:
            raise Busy("a call is writing the end of this file: wait for it")
        raise InvalidArgument("the tail was cut off or not computed: truncate the last token and append it again")
    assert inode.pool is not None
    pages = cow.share(inode.pool, inode.table)
    inode.n_leases += 1
    return Lease(inode, inode.pool, None, pages, NO_PAGES, [], NO_TOKENS, NO_TOKENS, inode.n_kv)


def rebuild(inode: Inode, n_max: int) -> Lease:
    """Lease pages to compute again the first `n_max` of the tokens without K/V, or all of them if they are fewer.

    Raises Busy (another lease is out, or pages have to be moved first), InvalidArgument (no device chosen), NoSpace,
    each with nothing changed; KernelPanic when there is nothing to compute."""
    if inode.residency is not Residency.PARTIAL:
        inode.need_resident()
        raise inode.panic("all its K/V is there, and it is to be computed again")
    if n_max < 1:
        raise inode.panic(f"{n_max} tokens are to be computed again")
    if inode.n_leases:
        raise Busy("a batch of this file is in flight: compute it again after that")
    pool = inode.pool
    if pool is None:
        raise InvalidArgument("this file is on no device: place it first")
    n_before = inode.n_kv
    slots = slice(n_before, n_before + n_max)
    tokens, positions = inode.tokens[slots], inode.positions[slots]
    pages, fresh, copies = cow.grow(pool, inode.table, n_before, len(tokens))
    n_reserved = _reserve(inode, pool, fresh, copies) if fresh else 0
    inode.n_rebuilt = n_before + len(tokens)
    inode.n_leases += 1
    lease = Lease(inode, pool, None, pages, fresh, copies, tokens, positions, n_before)
    lease.n_reserved = n_reserved
    return lease


# --- ending it ---


def resolve(lease: Lease, token: int) -> None:
    """The batch before has drawn the token of a chained lease. Raises KernelPanic when the lease waits for none,
    InvalidArgument when the token is not u32."""
    if not lease.chained or lease.state is not OUT:
        raise lease.inode.panic(f"token {token} is for a lease that waits for none, and is {lease.state.value}")
    try:
        lease.tokens[0] = token
    except (OverflowError, TypeError):
        raise InvalidArgument("tokens are whole numbers from 0 to 2^32-1") from None
    lease.chained = False


def commit(lease: Lease, now: float) -> None:
    """The batch ran. Raises KernelPanic when the lease has ended before, is not the oldest of its claim, or has not
    been told its token."""
    inode, claim = lease.inode, lease.claim
    if lease.state is not OUT:
        raise inode.panic(f"a lease is committed that is {lease.state.value}")
    if claim is not None:
        if lease.chained or claim.leases[0] is not lease:
            raise inode.panic("a lease is committed before an older one of its claim, or before its token is known")
        del claim.leases[0]
        _take_table(lease)
        inode.tokens.extend(lease.tokens[lease.n_again :] if lease.n_again else lease.tokens)
        inode.positions.extend(lease.positions[lease.n_again :] if lease.n_again else lease.positions)
        inode.tail_valid = not lease.tail_lost
        if lease.masked:
            at = lease.n_before if inode.edited is None else inode.edited.at
            inode.edited = Edited(at)  # another than its forks have, whose next tokens may see more
        elif lease.n_again:
            inode.edited = _edited_still(inode.edited, lease)
        inode.modified_s = now
    elif not lease.n_new:
        lease.took(now)
    elif inode.n_rebuilt:
        inode.n_rebuilt = 0
        _take_table(lease)
        inode.tail_valid = inode.n_kv == len(inode.tokens)
        inode.edited = _edited_still(inode.edited, lease)
    else:
        lease.pool.drop(lease.fresh)  # the file was cut meanwhile
    lease.state = COMMITTED
    if lease.n_reserved:
        inode.bill.n_reserved -= lease.n_reserved
    inode.n_leases -= 1


def _edited_still(edited: Edited | None, lease: Lease) -> Edited | None:
    """What is left of an edit when tokens of the file were computed again: nothing if they were all that was edited,
    and otherwise an edit of its own, since relatives have other K/V of those tokens."""
    if edited is None or edited.at >= lease.n_end:
        return edited
    return None if lease.n_before <= edited.at else Edited(edited.at)


def _take_table(lease: Lease) -> None:
    """The lease's table becomes the file's."""
    inode = lease.inode
    if lease.copies:
        lease.pool.drop(inode.table[-1:])  # the copy took its place
    inode.table = lease.pages
    if lease.fresh:
        inode.settle()
    inode.n_kv = lease.n_before + lease.n_new


def abandon(lease: Lease) -> None:
    """The batch did not run, or its result is unwanted. Raises KernelPanic when the lease has ended before, or is not
    the newest of its claim."""
    if lease.state is OUT:
        if lease.claim is not None and lease.claim.leases[-1] is not lease:
            raise lease.inode.panic("a lease is abandoned before a newer one of its claim, which stands on it")
        _give_back(lease)
    elif lease.state is not LOST:
        raise lease.inode.panic(f"a lease is abandoned that is {lease.state.value}")
    lease.state = ABANDONED


def lose(lease: Lease) -> None:
    """The device is removed, or what the lease stands on turned out not to be there."""
    _give_back(lease)
    lease.state = LOST


def _give_back(lease: Lease) -> None:
    inode = lease.inode
    inode.n_leases -= 1
    inode.bill.n_reserved -= lease.n_reserved
    if lease.claim is None and not lease.n_new:
        lease.let_go()
        return
    if lease.claim is not None:
        lease.claim.leases.remove(lease)
    else:
        inode.n_rebuilt = 0
    lease.pool.drop(lease.fresh)
    inode.note(f"abandon {lease.n_new} tokens")


def n_kv_without(lease: Lease) -> int:
    """How many tokens at most have their K/V, in a file that shares pages with a committed lease, if its batch has
    failed: those before the lease; or before the page that it was to copy first, since the copy may not be done. A
    token that was to be computed again counts as missing too, so that it will be, and its tail with it."""
    return lease.n_before - lease.n_before % lease.pool.page_size if lease.copies else lease.n_before
