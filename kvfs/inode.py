"""Inodes: what a KV file is, apart from its names and handles.

A KV file is a list of tokens with their positions. Its K/V is a cache of them, in pages on one device: it can be
moved to host memory, dropped or lost, and computed again from the tokens. The inode has the tokens, the page table,
`n_kv`: how many of the leading tokens have their K/V in those pages, and `tail_valid`: whether the stored hidden
state after the last token can be read, so that the distribution of the next token needs no computing.

An inode lives while somebody holds it: a name (`n_links`), an open handle (`pids`), the claim of a call that
writes it (`claimed`), or a batch in flight (`n_leases`). When the last of them goes, its pages are dropped and
its number is never used again. So a file can be unlinked while it is open, and closed while it is written.

Where its K/V is (`Residency`; the first of these that applies):

    MOVING     a move or migration is out that has pages of it: they stay where they are until it is committed
    SWAPPED    some of its pages are in host memory
    PARTIAL    n_kv < n_tokens: its worker is gone, or its pages were dropped; tokens n_kv … are to be computed again
    RESIDENT   all on the device; also an empty file, placed or not. Only then can it be written, or its tail read.

    RESIDENT ──swap_out──► MOVING ──commit_move──► SWAPPED ──swap_in──► MOVING ──commit_move──► RESIDENT
       ├────────migrate──► MOVING ──commit_migration──► RESIDENT or SWAPPED, on another device
       └─drop, the device goes──► PARTIAL, unplaced ──place──► PARTIAL ──(lease_rebuild, commit)*──► RESIDENT

How it is written, by one call at a time, with up to two leases out:

    claim ── lease ─► batch ─► commit ── lease ─► batch ─► commit ── … ── release
                         └───► abandon ──┘

A lease changes nothing here but `n_leases`, and `tail_valid` when the batch will write over the tail: the table and
the tokens are replaced by commit alone. Whoever looks in between, a fork, a reader, `fsck`, sees the file as
committed. Truncating is refused while somebody else has the claim, since the writer knows the length. While tokens
are computed again nobody writes, but anybody may truncate: then what was computed is of no use (`n_rebuilt`).

Which module changes what: `n_links` is namespace.py's, `pids` openfile.py's, `claimed` and `n_leases` lease.py's,
`moving` moves.py's, `family` family.py's, `owner`, `group` and `mode` fs.py's; lease.py and moves.py also commit. Never
add here: names, who may do what, how pages are found.
"""

from array import array
from collections import deque
from enum import Enum
from typing import ClassVar

from kvfs import cow
from kvfs.access import OPERATOR_NAME, Who, fresh_mode
from kvfs.pages import PagePool
from kvfs.quota import NOBODY, NOTHING, Bill, Held
from kvfs.table import NO_PAGES, is_host, n_host
from sdk.abi.errors import Busy, CrossDevice, InvalidArgument, KernelPanic
from sdk.abi.values import FileKind, Stat

N_EVENTS = 32  # of an inode's story, the newest


class Residency(Enum):
    """Where the K/V of a file is, and so what is to be done before a batch can use it."""

    RESIDENT = "resident"  # nothing
    PARTIAL = "partial"  # place it, compute it again
    SWAPPED = "swapped"  # move it back in
    MOVING = "moving"  # wait for the end of the move


class Edited:
    """Tokens from `at` on have K/V that was computed in another context, or with a look at such (`edit.py`). An
    immutable value, known by its identity: files that have the same one have the same K/V wherever they have the same
    tokens from the beginning."""

    __slots__ = ("at",)

    def __init__(self, at: int) -> None:
        self.at = at


WAIT_FOR = {
    Residency.PARTIAL: "the KV of this file was dropped: it has to be computed again first",
    Residency.SWAPPED: "this file is in host memory: it has to be moved back first",
    Residency.MOVING: "this file is being moved: wait for the end of that",
}


class Inode:
    """One KV file."""

    kind: ClassVar = FileKind.FILE
    __slots__ = (
        "bill",
        "billed",
        "claimed",
        "created_s",
        "edited",
        "family",
        "group",
        "holders",
        "ino",
        "mode",
        "modified_s",
        "moving",
        "n_host",
        "n_kv",
        "n_leases",
        "n_links",
        "n_opens",
        "n_rebuilt",
        "n_unread",
        "owner",
        "pids",
        "pool",
        "positions",
        "story",
        "table",
        "tail_valid",
        "tenant",
        "tokens",
        "used_s",
    )

    def __init__(self, ino: int, who: Who, now: float) -> None:
        self.ino = ino
        self.owner = who.user
        self.group = who.group
        self.mode = fresh_mode(who)
        self.tenant = who.tenant or OPERATOR_NAME  # whose share of a device its pages count for
        self.family = ino  # number shared by the files that were forked from one another
        self.created_s = now
        self.modified_s = now
        self.used_s = now  # opened, forked, or its tail read; writing is `modified_s`
        # Who pays for it.
        self.bill: Bill = NOBODY  # its owner's
        self.holders: dict[int, Bill] = {}  # of the processes that have it open, by pid
        self.billed = NOTHING
        # Who holds it.
        self.n_links = 0
        self.n_opens = 0  # handles there ever were
        self.pids: list[int] = []  # one for each open handle: the process that has it
        self.claimed = False
        self.n_leases = 0  # out; those of the claim, those that read the tail, and that which computes again
        # What is in it. `tokens` and `positions` are u32 and equally long.
        self.tokens = array("I")
        self.positions = array("I")
        self.tail_valid = False  # only when all K/V is there, and never when a batch in flight writes over it
        self.edited: Edited | None = None  # until the K/V from there on is computed again, or cut off
        # Where it is.
        self.pool: PagePool | None = None
        self.table = NO_PAGES  # replaced, never changed; covers the first `n_kv` tokens exactly
        self.n_kv = 0
        self.n_host = 0  # entries of the table in host memory
        self.n_unread = 0  # tokens that are on disk and not read yet: then there are none here, and nobody has it open
        self.n_rebuilt = 0  # what `n_kv` will be when the batch that computes again is committed; 0: there is none
        self.moving = False
        self.story: deque[tuple[float | None, str]] = deque(maxlen=N_EVENTS)

    @property
    def is_held(self) -> bool:
        return bool(self.pids) or self.claimed or self.n_links + self.n_leases > 0

    @property
    def next_position(self) -> int:
        """The position after the last token's; 0 in an empty file."""
        return self.positions[-1] + 1 if self.positions else 0

    @property
    def residency(self) -> Residency:
        if self.moving:
            return Residency.MOVING
        if self.n_host:
            return Residency.SWAPPED
        return Residency.PARTIAL if self.n_kv < len(self.tokens) else Residency.RESIDENT

    @property
    def n_resident(self) -> int:
        """Tokens whose K/V is on the device."""
        if not self.n_host or self.pool is None:
            return self.n_kv
        size = self.pool.page_size
        return sum(min(size, self.n_kv - i * size) for i, entry in enumerate(self.table) if not is_host(entry))

    def stat(self) -> Stat:
        return Stat(
            ino=self.ino,
            kind=self.kind,
            n_tokens=self.n_unread or len(self.tokens),
            n_resident=self.n_resident,
            n_pages=len(self.table) - self.n_host,
            n_host_pages=self.n_host,
            n_shared_pages=self.pool.n_shared(self.table) if self.pool else 0,
            n_links=self.n_links,
            n_open=len(self.pids),
            owner=self.owner,
            mode=self.mode,
            worker=self.pool.name if self.pool and self.table else None,
            created_s=self.created_s,
            modified_s=self.modified_s,
            group=self.group,
            used_s=self.used_s,
            n_opens=self.n_opens,
            edited=self.edited is not None,
        )

    # --- where it is ---

    def need_resident(self) -> None:
        """Raises Busy when some of the K/V is not on the device, or is about to leave it."""
        if self.moving or self.n_host or self.n_kv != len(self.tokens):
            raise Busy(WAIT_FOR[self.residency])

    def place(self, pool: PagePool) -> None:
        """Choose the device of a file without pages; no change if it is there already.

        Raises CrossDevice when its pages are elsewhere; Busy when a batch in flight, or a move, may give it some."""
        if pool is self.pool:
            return
        if self.table:
            assert self.pool is not None
            raise CrossDevice(f"this file is on {self.pool.name}, not on {pool.name}: migrate it, or drop its pages")
        if self.n_leases or self.moving:
            raise Busy("a batch or a move of this file is in flight: place it after that")
        self.move_to(pool)
        self.note(f"place on {pool.name}")

    def move_to(self, pool: PagePool | None) -> None:
        """Change the device, and both devices' counts of files. The table is the caller's to see to."""
        if self.pool is not None:
            self.pool.n_files -= 1
        if pool is not None:
            pool.n_files += 1
        self.pool = pool

    def fork_into(self, child: "Inode") -> None:
        """Make an empty inode the copy-on-write copy of this one, as committed, wherever its pages are."""
        child.move_to(self.pool)
        if self.pool is not None:
            child.table = cow.share(self.pool, self.table)
        child.tokens = self.tokens[:]
        child.positions = self.positions[:]
        child.n_kv, child.n_host = self.n_kv, self.n_host
        child.tail_valid = self.tail_valid
        child.edited = self.edited
        child.settle()
        self.note(f"fork into #{child.ino}")

    def truncate(self, n_tokens: int, now: float) -> None:
        """Keep the first `n_tokens` tokens. Raises InvalidArgument when there are fewer."""
        if not 0 <= n_tokens <= len(self.tokens):
            raise InvalidArgument(f"cannot keep {n_tokens} tokens: this file has {len(self.tokens)}")
        if n_tokens == len(self.tokens):
            return
        if n_tokens < self.n_rebuilt:
            self.n_rebuilt = 0
        self.cut_kv(n_tokens)
        del self.tokens[n_tokens:]
        del self.positions[n_tokens:]
        if self.edited is not None and n_tokens <= self.edited.at:
            self.edited = None
        self.tail_valid = False
        self.modified_s = now
        self.note(f"truncate to {n_tokens}", now)

    def cut_kv(self, n_tokens: int) -> None:
        """Keep the K/V of the first `n_tokens` tokens at most."""
        if self.pool is None or n_tokens >= self.n_kv:
            return
        self.table = cow.cut(self.pool, self.table, n_tokens)
        self.n_kv = n_tokens
        self.n_host = self.n_host and n_host(self.table)
        self.n_rebuilt = 0
        self.tail_valid = False
        self.settle()

    def leave(self) -> None:
        """Be on no device: the pages are dropped, the device is removed, or the inode dies."""
        self.cut_kv(0)
        self.n_rebuilt = 0
        self.move_to(None)

    def settle(self) -> None:
        """Put on the bills what is in the table. For whoever has changed that."""
        n, n_host = len(self.table), self.n_host
        held = Held(n - n_host, n_host, 0 if self.pool is None else n * self.pool.page_bytes)
        if held != self.billed:
            self.bill.change(self.billed, held)
            for bill in self.holders.values():
                bill.change(self.billed, held)
            self.billed = held

    # --- its story ---

    def note(self, event: str, now: float | None = None) -> None:
        self.story.append((now, event))

    def panic(self, what: str) -> KernelPanic:
        """The error to raise when an invariant of this inode is broken, with what happened to it."""
        story = "; ".join(event if now is None else f"{now:.3f} {event}" for now, event in self.story)
        place = self.pool.name if self.pool else "unplaced"
        return KernelPanic(
            f"file #{self.ino}: {what} [{len(self.tokens)} tokens, {self.n_kv} of them in {len(self.table)} pages, "
            f"{self.residency.value}, {place}; links {self.n_links}, open {len(self.pids)}, claimed {self.claimed}, "
            f"leases {self.n_leases}; story: {story}]"
        )
