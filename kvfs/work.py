"""Work on files: claims, leases, moves. What the kernel's batcher and mover call.

Nothing here asks who is calling: rights were decided when the file was opened (`fs.py`), and a handle or a claim is
the proof. These methods run for every row of every batch, so they do what they must and no more.

Everything is synchronous and either happens or changes nothing. Never add here: names, rights, policy (which device,
which file to drop).
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import TypeVar

from kvfs import family, loads, moves, tiers
from kvfs import lease as leases
from kvfs.access import KERNEL, R
from kvfs.base import Base, Handle
from kvfs.inode import Edited, Inode, Residency
from kvfs.lease import Claim, Lease, LeaseKind
from kvfs.loads import Load
from kvfs.moves import Migration, Move, Transfer
from kvfs.openfile import OpenFile
from kvfs.pins import Wish
from kvfs.tiers import NOTHING_KEPT, FileFacts, Kept
from sdk.abi.errors import Busy, InvalidArgument

T = TypeVar("T", bound=Transfer)


class Work(Base):
    """The file system as far as batches and moves need it."""

    # --- work in flight ---

    def claim(self, f: OpenFile) -> Claim:
        """The exclusive right to append, until it is released; it keeps the file alive when all else closes.

        Raises BadFile, AccessDenied (a handle for reading), Busy (another claim, or another handle's exclusive lock).
        """
        self.locks.check_writer(f)
        claim = Claim(f.writable())
        self.claims.add(claim)
        return claim

    def release(self, claim: Claim, now: float) -> None:
        """Give a claim back, once, with no lease of it out. Raises KernelPanic otherwise."""
        inode = claim.release(now)
        self.claims.remove(claim)
        self._reap(inode)

    def truncate_claimed(self, claim: Claim, n_tokens: int, now: float) -> None:
        """Truncate as the one who writes the file, with no lease out (KernelPanic). Raises as `truncate` does."""
        self.quotas.tell(now)
        claim.idle().truncate(n_tokens, now)

    def lease(
        self,
        claim: Claim,
        tokens: Sequence[int],
        positions: Sequence[int] | None = None,
        *,
        n_again: int = 0,
        chained: bool = False,
    ) -> Lease:
        """One batch's right to append `tokens` (u32, at least one) at `positions` (u32; by default consecutive).
        Allocates pages, and copies a shared last page before it is written. A second one may be taken while the
        first is out, and continues from it. The lease's fields are immutable values, good until it ends.

        With `n_again=1` and no other lease out, the first token is the file's last one, computed once more because
        the tail is gone. `chained`: it is one token that is not known yet; give 0, and `resolve` it before the commit.

        Raises Busy (not resident), NoSpace, InvalidArgument; then nothing has changed. KernelPanic on a third."""
        lease = leases.append(claim, tokens, positions, n_again, chained)
        self.leases.add(lease)
        return lease

    def resolve(self, lease: Lease, token: int) -> None:
        """Tell a chained lease its token, once (KernelPanic). Raises InvalidArgument."""
        leases.resolve(lease, token)

    def lease_tail(self, f: Handle) -> Lease:
        """One batch's right to read the stored tail: `n_new` is 0. Many at a time, on any handle.

        Raises BadFile, Busy (it is being written, or the file is not resident), InvalidArgument (none is stored)."""
        lease = leases.read_tail(f.live())
        self.leases.add(lease)
        return lease

    def lease_rebuild(self, f: Handle, n_max: int) -> Lease:
        """One batch's right to compute again, at their stored positions, at most `n_max` of the tokens of a PARTIAL
        file whose KV is gone, the first of them first. Needs no claim; one at a time and no other lease beside it.

        Raises BadFile, Busy (a batch of it is in flight, or it is to be moved first), InvalidArgument (no device),
        NoSpace; then nothing has changed. KernelPanic when nothing is missing."""
        lease = leases.rebuild(f.live(), n_max)
        self.leases.add(lease)
        return lease

    def lease_rebuild_ino(self, ino: int, n_max: int) -> Lease:
        """The same for a file that is known by its number, when it has adopted what a relative has. Raises as that
        does; KernelPanic besides, when there is no such file."""
        (inode,) = self._inodes([ino])
        if inode.residency is Residency.PARTIAL and inode.pool is not None and not inode.n_leases:
            family.adopt(inode, self.families.of(inode))
        lease = leases.rebuild(inode, n_max)
        self.leases.add(lease)
        return lease

    def adopt(self, f: Handle) -> int:
        """Before a rebuild: share the full pages of the relative on the same device that has most of this file's
        beginning, if that is more than the file has. Returns how many tokens have their KV now: never all, since the
        last one is computed for its tail.

        Raises BadFile, Busy (a batch of it is in flight, or it is to be moved first), InvalidArgument (no device)."""
        inode = f.live()
        if inode.residency is Residency.RESIDENT:
            return inode.n_kv
        if inode.residency is not Residency.PARTIAL or inode.n_leases:
            raise Busy("a batch or a move of this file is in flight, or it is in host memory: wait for its pages")
        if inode.pool is None:
            raise InvalidArgument("this file is on no device: place it first")
        return family.adopt(inode, self.families.of(inode))

    def commit(self, lease: Lease, now: float) -> None:
        """The batch ran: the tokens are part of the file, and its tail is valid unless a batch behind it writes over
        that too. Ends the lease, once; appending ones of a claim in their order, chained ones resolved (KernelPanic).
        """
        if lease.fresh:
            self.quotas.tell(now)
        leases.commit(lease, now)
        self.leases.remove(lease)
        if lease.claim is None:
            for inode in lease.inodes:
                self._reap(inode)

    def disown(self, lease: Lease) -> None:
        """The batch of a lease that was committed early has failed after all, before it was known that it did:
        whoever has its pages loses the KV of its tokens, to be computed again. Nothing happens if it is not committed.

        It is exact when all the leases taken on the device since then are abandoned, or disowned in their turn, as
        those of the failed batch and of all that were sent behind it must be. A file that copied one of the pages is
        then found either by its lease, as the copy was not done, or still has the page itself. Leases that stand on
        what is lost end here; their owners may abandon them, but need not."""
        if lease.state is not leases.LeaseState.COMMITTED or not lease.n_new:
            return
        n_kv = leases.n_kv_without(lease)
        size = lease.pool.page_size
        first = lease.n_before // size
        kept = dict.fromkeys(lease.pages[first:], 0)  # slots whose contents are good, of each page that it wrote
        kept[lease.pages[first]] = n_kv - first * size
        for inode in self.families.of(lease.inode):
            at = next((i for i, page in enumerate(inode.table) if page in kept), None)
            if at is None or inode.pool is not lease.pool:
                continue
            n_kv = at * size + kept[inode.table[at]]
            if inode.n_kv <= n_kv:
                continue
            standing = [void for claim in self.claims if claim.inode is inode for void in claim.leases]
            standing += [void for void in self.leases if void.kind is LeaseKind.EDIT and inode in void.inodes]
            for void in standing:
                leases.lose(void)
                self.leases.remove(void)
            inode.cut_kv(n_kv)
            inode.note(f"the batch of {lease.n_new} tokens failed")

    def abandon(self, lease: Lease) -> None:
        """The batch did not run, or nobody wants its result: the file is as before, but for its tail where the
        batch would have written over it. If its batch is not sent yet, take it out. Ends the lease, once; appending
        ones of a claim newest first (KernelPanic)."""
        leases.abandon(lease)
        if lease not in self.leases:
            return  # remove_device or disown ended it
        self.leases.remove(lease)
        if lease.claim is None:
            for inode in lease.inodes:
                self._reap(inode)

    # --- tiers and devices ---

    def place(self, f: Handle, device: str) -> None:
        """Choose the device of a file without pages; nothing changes when it is there already.

        Raises NoDevice, CrossDevice (its pages are elsewhere), Busy (a batch or a move of it is in flight)."""
        f.live().place(self._pool(device))

    def place_ino(self, ino: int, device: str) -> None:
        """The same for a file that is known by its number. Raises KernelPanic besides, when there is none."""
        (inode,) = self._inodes([ino])
        inode.place(self._pool(device))

    def placed(self, device: str) -> list[FileFacts]:
        """What there is to know of the files that are placed on a device. Raises NoDevice."""
        pool = self._pool(device)
        return [tiers.facts(inode, self.n_durable(inode)) for inode in self.files.values() if inode.pool is pool]

    def pinned(self, device: str, now: float) -> dict[int, int]:
        """How many leading pages of which files of a device stay there, by inode number."""
        return self.pins.kept(self._pool(device), now)

    def unneeded(self, device: str) -> set[int]:
        """The files of a device that were said not to be needed, and not used since."""
        pool, files = self._pool(device), self.files
        return {ino for ino in list(self.pins.advice) if files[ino].pool is pool and self.pins.is_unneeded(files[ino])}

    def wanted(self, now: float) -> list[Wish]:
        """The files that should be on their devices, or on any, and are not; most wanted first."""
        return self.pins.wanted(self.files, now)

    def give_up(self, ino: int) -> None:
        """A file's pages cannot be had: forget its pins, and that it was to come back."""
        if ino in self.files:
            self.pins.forget(self.files[ino])

    def n_distinct(self, inos: Iterable[int], *, in_host: bool = False) -> int:
        """Pages of one tier that these files of one device have, each once."""
        return tiers.n_distinct(self._inodes(inos), in_host=in_host)

    def leaving(self, inos: Iterable[int], kept: Kept = NOTHING_KEPT) -> list[int]:
        """Those of these files, of one device, that would bring a page if all of them left it."""
        return [inode.ino for inode in tiers.leaving(self._inodes(inos), self.families, kept)]

    def reclaimable(self, inos: Iterable[int], kept: Kept = NOTHING_KEPT) -> int:
        """Device pages that would be free if all these files, of one device, left it but for what is `kept`."""
        return tiers.reclaimable(self._inodes(inos), self.families, kept)

    def swap_out(self, inos: Iterable[int], now: float, kept: Kept = NOTHING_KEPT) -> Move | None:
        """Move the pages that these files alone need to host memory, each once, but for what is `kept`; relatives
        that share them and are not resident go along. None when there are none. The files that have such pages are
        MOVING until its end.

        Raises NoSpace (host memory is full) with nothing changed; KernelPanic when a batch or a move has a file."""
        files = self._inodes(inos)
        move = tiers.swap_out(files, self.families, kept)
        return None if move is None else self._begin(move, "swap out", now)

    def swap_in(self, f: Handle, now: float) -> Move:
        """Move the host pages of a file back to its device, for all who share them.

        Raises BadFile, NoSpace, Busy (a move has it, or one who shares its pages) with nothing changed; KernelPanic
        when it has no host pages."""
        return self._begin(tiers.swap_in(f.live(), self.families), "swap in", now)

    def swap_in_ino(self, ino: int, now: float) -> Move:
        """The same for a file that is known by its number. Raises KernelPanic when there is none."""
        (inode,) = self._inodes([ino])
        return self._begin(tiers.swap_in(inode, self.families), "swap in", now)

    def commit_move(self, move: Move, now: float) -> None:
        """The contents are there: every table that has the old pages gets the new ones. Once (KernelPanic)."""
        self.quotas.tell(now)
        moves.commit(move, now)
        del self.transfers[move]

    def abandon_move(self, move: Move) -> None:
        """The contents are not there: the files stay where they are. Ends the move, once (KernelPanic)."""
        moves.abandon(move)
        self.transfers.pop(move, None)  # it is not there when remove_device ended it

    def migrate(self, inos: Iterable[int], device: str, now: float) -> Migration:
        """Move the pages of these files to another device, or to its host memory: each to the tier that it is on, or to
        the other one where that is full. Those shared with files that stay are copied. They are MOVING until its end.

        Raises NoDevice, NoSpace, CrossDevice (pages of another size) with nothing changed; KernelPanic when a batch
        or a move has a file, or they are not all on one other device."""
        return self._begin(tiers.migrate(self._inodes(inos), self._pool(device)), f"migrate to {device}", now)

    def is_receiving(self, device: str) -> bool:
        """Whether pages of it wait for contents from another device or from disk: then some of its room is not lost."""
        return any(t.pool_to.name == device and not isinstance(t, Move) for t in self.transfers)

    def commit_migration(self, migration: Migration, now: float) -> None:
        """The contents are there: the files are on the other device. Once (KernelPanic)."""
        moves.commit(migration, now)
        del self.transfers[migration]

    def abandon_migration(self, migration: Migration) -> None:
        """The files stay where they are. Ends the migration, once (KernelPanic)."""
        moves.abandon(migration)
        self.transfers.pop(migration, None)

    def load(self, f: Handle, device: str, tokens: "array[int]", positions: "array[int]", now: float) -> Load:
        """Bring the K/V of the first tokens of a PARTIAL file from disk to a device; these are the `tokens` whose K/V
        is stored, at their `positions`. It gives up what K/V it has, and is MOVING until the end.

        Raises BadFile, NoDevice, NoSpace, Busy (nothing is missing, or a batch or a move has it), with nothing
        changed."""
        return self._begin(loads.begin(f.live(), self._pool(device), tokens, positions), "load from disk", now)

    def commit_load(self, load: Load, n_kv: int, tail_valid: bool, edited: Edited | None, now: float) -> None:
        """The contents of the first pages are there, with the K/V of `n_kv` tokens: the file and all relatives that
        have none get them, as far as they begin with the same tokens. Once (KernelPanic)."""
        relatives = [other for inode in load.members.values() for other in self.families.of(inode)]
        self.quotas.tell(now)
        loads.commit(load, n_kv, tail_valid, edited, {r.ino: r for r in relatives}.values(), now)
        del self.transfers[load]

    def abandon_load(self, load: Load) -> None:
        """The contents are not there: what is missing is to be computed. Ends the load, once (KernelPanic)."""
        moves.abandon(load)
        self.transfers.pop(load, None)

    def read_back(
        self, inode: Inode, tokens: "array[int]", positions: "array[int]", edited: Edited | None = None
    ) -> None:
        """The tokens of a file that is on disk are here now; its K/V, which is `edited` or not, is not."""
        inode.tokens, inode.positions, inode.n_unread, inode.edited = tokens, positions, 0, edited

    def snapshot(self, inode: Inode, now: float) -> OpenFile:
        """The kernel's own copy-on-write copy of a file, as committed: it stays as it is while the file is written."""
        self._last_ino += 1  # no quota: it is gone when it is saved
        child = Inode(self._last_ino, KERNEL, now)
        self._admit(child)
        inode.fork_into(child)
        self.families.join(child, inode)
        if inode.moving:
            self._transfer_of(inode).join(child)
        return self.hold(child)

    def hold(self, inode: Inode) -> OpenFile:
        """A handle of the kernel's own, to read a file."""
        f = OpenFile(inode, R, KERNEL.pid)
        self.open_files.add(f)
        return f

    def drop(self, inos: Iterable[int], now: float, kept: Kept = NOTHING_KEPT) -> int:
        """Give the KV of these files up, without saving it: they are on no device, to be computed again anywhere. One
        of which a beginning is `kept` stays where it is, with that. Returns the pages that are free by it, in host
        memory too.

        Raises KernelPanic when a batch has one of them; one that is being moved is no part of the move any more."""
        self.quotas.tell(now)
        files = self._inodes(inos)
        for inode in files:
            if inode.n_leases:
                raise inode.panic("its KV is to be dropped, and a batch has it")
        n_free = self._n_free()
        for inode in files:
            n_kept = kept.get(inode.ino, 0)
            if n_kept and inode.pool is not None:
                self._leave_move(inode)
                inode.cut_kv(tiers.n_leading(inode, n_kept) * inode.pool.page_size)
            else:
                self._leave(inode)
            inode.note(f"drop, {n_kept} pages kept", now)
        return self._n_free() - n_free

    def _n_free(self) -> int:
        """Of all devices and their host memory."""
        return sum(pool.n_free + pool.host.n_free for pool in self.pools.values())

    def _begin(self, transfer: T, what: str, now: float) -> T:
        self.quotas.tell(now)
        self.transfers[transfer] = None
        for inode in transfer.members.values():
            inode.note(what, now)
        return transfer
