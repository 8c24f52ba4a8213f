"""Editing: files cut out of others, joined, and with parts replaced; how such an edit is done and committed.

    begin ── lease ─► batch ─► commit ── end         (as often as it takes: begin ── (lease ─► abandon)* … ── end)

**Begin** takes a *snapshot* of every source, a fork that nobody sees. So the edit is of the files as they were when it
was asked for, and they may be written, cut or closed while it waits for its turn. Snapshots are files like others:
they are moved, lost and computed again, and must be resident before a batch can use them. The target is claimed: a new
file that has no name yet, or the one that a part is replaced in, which nobody else can write until the end.

A **lease** of an edit has the table of the new file: pages that it shares with the snapshots, and fresh ones, which the
batch fills as `runs` say (`edit.py`). It holds them all, and keeps the snapshots and the target off moves, as any lease
does. **Commit** gives the target its new tokens, positions and pages in one step; until then it is as it was. At the
**end** a snapshot that had to be brought back leaves its pages to its source, if that has none.

The new file's tail is not there, unless it is a whole file unchanged: what comes next is asked in the new context, so
the last token is computed again when somebody asks. It *is* edited (`inode.Edited`) where its K/V is not what computing
its tokens would give.

Begun and ended by fs.py; in between the kernel's batcher calls, through it. Never add here: names, rights, jobs.
"""

from array import array
from collections.abc import Sequence
from contextlib import suppress

from kvfs import edit as plans
from kvfs import family
from kvfs.edit import Layout, Piece
from kvfs.family import Families
from kvfs.inode import Inode, Residency
from kvfs.lease import NO_TOKENS, Claim, Lease, LeaseKind
from kvfs.openfile import OpenFile
from kvfs.pages import PagePool
from kvfs.work import Work
from sdk.abi.errors import Busy, CrossDevice, NoSpace

SlotRun = tuple[int, int, int, int, int, int]  # source page, its slot, page, its slot, number of slots, turn of K


class Edit:
    """One edit that was asked for. Its fields are facts."""

    __slots__ = ("claim", "file", "n_fresh", "originals", "pieces", "positions", "snapshots", "tokens")

    def __init__(
        self,
        pieces: Sequence[Piece],
        tokens: "array[int]",
        positions: "array[int]",
        file: OpenFile,
        claim: Claim,
        snapshots: list[OpenFile],
        originals: list[Inode],
    ) -> None:
        self.pieces = pieces  # of the snapshots
        self.tokens = tokens
        self.positions = positions
        self.file = file  # the target
        self.claim = claim  # on it
        self.snapshots = snapshots
        self.originals = originals  # what each is of; it may be gone
        self.n_fresh = 0  # pages that it was found to need when somebody looked last

    @property
    def sources(self) -> list[Inode]:
        return [snapshot.inode for snapshot in self.snapshots]


class EditLease(Lease):
    """One batch's right to do an edit."""

    __slots__ = ("edit", "families", "layout", "runs")

    def __init__(self, edit: Edit, pool: PagePool, layout: Layout, families: Families) -> None:
        """Raises NoSpace, QuotaExceeded with nothing changed."""
        inode = edit.claim.inode
        n_more = max(0, layout.n_pages - len(inode.table))
        inode.bill.need_pages(n_more)
        fresh = pool.alloc(layout.n_fresh)
        inode.bill.reserve(n_more)
        table = plans.table(layout, fresh)
        pool.hold(array("I", layout.shared.values()))
        super().__init__(inode, pool, None, table, fresh, [], NO_TOKENS, NO_TOKENS, 0)
        self.n_reserved = n_more
        self.edit = edit
        self.families = families
        self.layout = layout
        self.runs: list[SlotRun] = [(r.page, r.slot, table[r.place], r.slot_to, r.n, r.delta) for r in layout.runs]
        for inode in self.inodes:
            inode.n_leases += 1

    @property
    def kind(self) -> LeaseKind:
        return LeaseKind.EDIT

    @property
    def inodes(self) -> Sequence[Inode]:
        return (self.inode, *self.edit.sources)

    def took(self, now: float) -> None:
        """The slots are copied: the target gets its new contents."""
        inode, edit = self.inode, self.edit
        source = edit.pieces[0].source
        is_whole = len(edit.pieces) == 1 and edit.positions == source.positions
        shared = set(self.layout.shared.values())
        for other in edit.sources:
            if not shared.isdisjoint(other.table):
                self.families.unite(inode, other)
        inode.leave()
        inode.move_to(self.pool)
        inode.tokens, inode.positions = edit.tokens, edit.positions
        inode.table, inode.n_kv = self.pages, len(edit.tokens)
        inode.settle()
        inode.edited = plans.edited(edit.pieces, edit.positions)
        inode.tail_valid = is_whole and source.tail_valid
        inode.modified_s = now
        inode.note(f"edit: {inode.n_kv} tokens, {len(shared)} pages shared, {len(self.runs)} runs of slots", now)
        self._let_sources_go()

    def let_go(self) -> None:
        """They are not, or nobody wants them."""
        self.pool.drop(self.pages)
        self._let_sources_go()

    def _let_sources_go(self) -> None:
        for source in self.edit.sources:
            source.n_leases -= 1


class Editing(Work):
    """The file system as far as edits need it."""

    def lease_edit(self, edit: Edit) -> EditLease:
        """One batch's right to do an edit that has a token at least; its `runs` are what the worker is to do.

        Raises Busy (a source is not resident, or a batch or a move has the target), CrossDevice (the sources are on
        different devices), NoSpace; then nothing has changed."""
        target = edit.claim.idle()
        if target.moving or target.n_rebuilt:
            raise Busy("the file is being moved, or computed again: wait for the end of that")
        pool = self._pool_of(edit)
        layout = plans.lay_out(edit.pieces, edit.positions, pool.page_size)
        edit.n_fresh = layout.n_fresh
        lease = EditLease(edit, pool, layout, self.families)
        self.leases.add(lease)
        return lease

    def size_edit(self, edit: Edit) -> None:
        """Bring `n_fresh` up to date, if all sources are resident."""
        with suppress(Busy):
            edit.n_fresh = plans.lay_out(edit.pieces, edit.positions, self._pool_of(edit).page_size).n_fresh

    def edit_at_once(self, edit: Edit, now: float) -> bool:
        """Do and commit an edit that needs no batch, since it copies nothing and all is there; whether it did."""
        if not edit.tokens:
            edit.claim.idle().truncate(0, now)
            return True
        try:
            lease = self.lease_edit(edit)
        except (Busy, NoSpace):
            return False
        if lease.runs:
            self.abandon(lease)
            return False
        self.commit(lease, now)
        return True

    def _pass_on(self, snapshot: Inode, source: Inode) -> None:
        """The K/V of a snapshot was brought back, and its source has none: it shares that before it goes."""
        pool = snapshot.pool if snapshot.residency is Residency.RESIDENT else None
        has_none = source.residency is Residency.PARTIAL and not source.table and not source.n_leases
        if pool is not None and has_none and source.ino in self.files:
            source.place(pool)
            family.adopt(source, [snapshot])

    def _pool_of(self, edit: Edit) -> PagePool:
        """Where all the sources are. Raises Busy, CrossDevice."""
        names = {source.pool.name for source in edit.sources if source.pool is not None and source.table}
        if len(names) > 1:
            raise CrossDevice(
                f"these files are on {' and '.join(sorted(names))}: append the tokens of one to a fork of the other"
            )
        for source in edit.sources:
            source.need_resident()
        (name,) = names
        return self.pools[name]
