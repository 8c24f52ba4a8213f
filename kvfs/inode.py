"""Inodes: what a KV file is, apart from its names and handles.

A KV file is a list of tokens with their positions, whose K/V is in pages on one device. The inode has the
tokens, the page table, and `tail_valid`: whether the stored hidden state after the last token can be read, so
that the distribution of the next token needs no computing.

An inode lives while somebody holds it: a name (`n_links`), an open handle (`n_open`), the claim of a call that
writes it (`claimed`), or a batch in flight (`n_leases`). When the last of them goes, its pages are dropped and
its number is never used again. So a file can be unlinked while it is open, and closed while it is written.

Where it is:

    unplaced   pool is None, not lost     no pages; the kernel may choose any device
    placed     pool is set                the table covers exactly the tokens
    lost       lost                       the worker is gone, and the KV with it; the tokens are still readable

    create → unplaced ──place──► placed ──the device goes──► lost ──truncate to 0──► unplaced
                                   └──the device goes, no tokens──► unplaced

How it is written, by one call at a time:

    claim ── lease ─► batch ─► commit ── lease ─► batch ─► commit ── … ── release
                         └───► abandon ──┘

A lease changes nothing here but `n_leases`, and `tail_valid` when the batch will write in place: the table and
the tokens are replaced by commit alone. Whoever looks in between, a fork, a reader, `fsck`, sees the file as
committed. Truncating is refused while somebody else has the claim, since the writer knows the length.

Which module changes what: `n_links` is namespace.py's, `n_open` openfile.py's, `claimed` and `n_leases`
lease.py's; lease.py also commits. Never add here: names, permissions, how pages are found.
"""

from array import array
from collections import deque
from typing import ClassVar

from kvfs import cow
from kvfs.pages import NO_PAGES, PagePool
from sdk.abi.errors import Busy, CrossDevice, DeviceLost, InvalidArgument, KernelPanic
from sdk.abi.values import FileKind, Stat

FILE_MODE = 0o644  # everybody reads, the owner writes
N_EVENTS = 32  # of an inode's story, the newest


class Inode:
    """One KV file."""

    kind: ClassVar = FileKind.FILE
    __slots__ = (
        "claimed",
        "created_s",
        "ino",
        "lost",
        "modified_s",
        "n_leases",
        "n_links",
        "n_open",
        "owner",
        "pool",
        "positions",
        "story",
        "table",
        "tail_valid",
        "tokens",
    )

    def __init__(self, ino: int, owner: str, now: float) -> None:
        self.ino = ino
        self.owner = owner
        self.created_s = now
        self.modified_s = now
        # Who holds it.
        self.n_links = 0
        self.n_open = 0
        self.claimed = False
        self.n_leases = 0  # out; that of the claim and those that read the tail
        # What is in it. `tokens` and `positions` are u32 and equally long.
        self.tokens = array("I")
        self.positions = array("I")
        self.tail_valid = False  # only with tokens, and never while a batch writes the last page in place
        # Where it is.
        self.pool: PagePool | None = None
        self.table = NO_PAGES  # replaced, never changed; covers `tokens` exactly unless the file is lost
        self.lost = False  # only with tokens; the table is empty as soon as the device is removed
        self.story: deque[tuple[float | None, str]] = deque(maxlen=N_EVENTS)

    @property
    def is_held(self) -> bool:
        return self.n_links + self.n_open + self.n_leases > 0 or self.claimed

    @property
    def next_position(self) -> int:
        """The position after the last token's; 0 in an empty file."""
        return self.positions[-1] + 1 if self.positions else 0

    def stat(self) -> Stat:
        return Stat(
            ino=self.ino,
            kind=self.kind,
            n_tokens=len(self.tokens),
            n_pages=len(self.table),
            n_shared_pages=self.pool.n_shared(self.table) if self.pool else 0,
            n_links=self.n_links,
            n_open=self.n_open,
            owner=self.owner,
            mode=FILE_MODE,
            worker=self.pool.name if self.pool and self.table else None,
            lost=self.lost,
            created_s=self.created_s,
            modified_s=self.modified_s,
        )

    # --- where it is ---

    def need_kv(self) -> None:
        """Raises DeviceLost when the worker that had the file is gone."""
        if self.lost:
            raise DeviceLost("the worker that held this file is gone: compute its tokens again in a new file")

    def place(self, pool: PagePool) -> None:
        """Choose the device of a file without pages; no change if it is there already.

        Raises DeviceLost; CrossDevice when its pages are elsewhere; Busy when a batch in flight may give it some."""
        self.need_kv()
        if pool is self.pool:
            return
        if self.table:
            assert self.pool is not None
            raise CrossDevice(f"this file is on {self.pool.name}, not on {pool.name}: compute its tokens again there")
        if self.n_leases:
            raise Busy("a batch of this file is in flight: place it after that")
        self.move_to(pool)
        self.note(f"place on {pool.name}")

    def move_to(self, pool: PagePool | None) -> None:
        """Change the device of a file without pages, and both devices' counts of files."""
        if self.pool is not None:
            self.pool.n_files -= 1
        if pool is not None:
            pool.n_files += 1
        self.pool = pool

    def fork_into(self, child: "Inode") -> None:
        """Make an empty inode the copy-on-write copy of this one, as committed. Raises DeviceLost."""
        self.need_kv()
        child.move_to(self.pool)
        if self.pool is not None:
            child.table = cow.share(self.pool, self.table)
        child.tokens = self.tokens[:]
        child.positions = self.positions[:]
        child.tail_valid = self.tail_valid
        self.note(f"fork into #{child.ino}")

    def truncate(self, n_tokens: int, now: float) -> None:
        """Keep the first `n_tokens` tokens. To 0 also makes a lost file an empty one that can be placed anew.

        Raises InvalidArgument when there are fewer."""
        if not 0 <= n_tokens <= len(self.tokens):
            raise InvalidArgument(f"cannot keep {n_tokens} tokens: this file has {len(self.tokens)}")
        if n_tokens == len(self.tokens):
            return
        if self.pool is not None:
            self.table = cow.cut(self.pool, self.table, n_tokens)
        if self.lost and not n_tokens:
            self.move_to(None)
            self.lost = False
        del self.tokens[n_tokens:]
        del self.positions[n_tokens:]
        self.tail_valid = False
        self.modified_s = now
        self.note(f"truncate to {n_tokens}", now)

    def lose(self) -> None:
        """The device is gone: nobody may use the pages again. They are dropped when the device is removed."""
        self.tail_valid = False
        if self.tokens and not self.lost:
            self.lost = True
            self.note("lost")

    def drop_pages(self) -> None:
        """Leave the device: the inode dies, or the device is removed."""
        if self.pool is not None:
            self.pool.drop(self.table)
        self.table = NO_PAGES
        self.move_to(None)

    # --- its story ---

    def note(self, event: str, now: float | None = None) -> None:
        self.story.append((now, event))

    def panic(self, what: str) -> KernelPanic:
        """The error to raise when an invariant of this inode is broken, with what happened to it."""
        story = "; ".join(event if now is None else f"{now:.3f} {event}" for now, event in self.story)
        place = "lost" if self.lost else self.pool.name if self.pool else "unplaced"
        return KernelPanic(
            f"file #{self.ino}: {what} [{len(self.tokens)} tokens in {len(self.table)} pages, {place}; "
            f"links {self.n_links}, open {self.n_open}, claimed {self.claimed}, leases {self.n_leases}; story: {story}]"
        )
