"""The KV cache as a file system: the facade, and the only module of kvfs that the kernel calls.

A KV file is a list of tokens whose K/V lies in pages on one device. Programs name files, open, fork, truncate
and share them; the kernel's batcher leases their pages for one batch at a time. kvfs decides which page holds
what; a worker owns the tensors and does as the leases say.

    names     namespace.py   paths and directories → inodes
    handles   openfile.py    the right of a process to use an inode
    files     inode.py       tokens, page table, device
    writing   lease.py       claims and leases: claim, (lease, commit | abandon)*, release
    tables    cow.py         share, grow, cut, as copy-on-write
    pages     pages.py       reference counts and free extents, one pool a device
    checking  fsck.py        every invariant of the above

Everything is synchronous and either happens or changes nothing: facts in, plans out, the clock as an argument
(`now`, seconds). A `SyscallError` is the caller's, and says what to do next; a `KernelPanic` is a bug of the
kernel's or ours. What is here is only glue: each method checks its handle, calls the module that knows, and lets
go of inodes that nobody holds any more. Never add here: policy (which device, which file to drop), waiting, I/O.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from kvfs import family, moves, tiers
from kvfs import lease as leases
from kvfs.family import Families
from kvfs.inode import Inode, Residency
from kvfs.lease import Claim, Lease
from kvfs.moves import Migration, Move, Transfer
from kvfs.namespace import ROOT_INO, Namespace
from kvfs.openfile import OpenFile
from kvfs.pages import DeviceUsage, PagePool
from kvfs.tiers import FileFacts
from sdk.abi.errors import AccessDenied, Busy, FileExists, InvalidArgument, KernelPanic, NoDevice, QuotaExceeded
from sdk.abi.values import DirEntry, OpenMode, Stat

T = TypeVar("T", bound=Transfer)
Handle = OpenFile | Claim  # either will do to look at a file; a claim outlives the handle it was made with


class Kvfs:
    """All KV files of a kernel. The attributes are for fsck and tests to read; only the methods change them."""

    def __init__(self, *, max_files: int = 100_000, max_path: int = 255, max_depth: int = 16) -> None:
        """At most `max_files` files and directories together; paths of `max_path` bytes and `max_depth` names."""
        self.max_files = max_files
        self.pools: dict[str, PagePool] = {}
        self.names = Namespace(max_path=max_path, max_depth=max_depth)
        self.files: dict[int, Inode] = {}  # all that are held, with names or without
        self.open_files: set[OpenFile] = set()
        self.claims: set[Claim] = set()
        self.leases: set[Lease] = set()  # out
        self.transfers: dict[Transfer, None] = {}  # moves and migrations that are out, oldest first
        self.families = Families()
        self._last_ino = ROOT_INO

    # --- devices ---

    def add_device(self, name: str, *, n_pages: int, page_size: int, n_host_pages: int = 0) -> None:
        """A worker has come; its pages 0 … n_pages-1 are ours to give, and so are those in its main memory.

        Raises FileExists, InvalidArgument."""
        if name in self.pools:
            raise FileExists(f"device {name} is there already: remove it first")
        self.pools[name] = PagePool(name, n_pages, page_size, n_host_pages)

    def remove_device(self, name: str, *, now: float) -> None:
        """A worker is gone, and its pages. Its files are as they were, without KV and on no device; they can be
        placed on another and computed again. Leases, moves and migrations that are still out on it end here; their
        owners may abandon them, but need not. Files that were to migrate to it stay where they are.

        Raises NoDevice."""
        pool = self._pool(name)
        for transfer in [t for t in self.transfers if pool in (t.pool_from, t.pool_to)]:
            moves.lose(transfer)
            del self.transfers[transfer]
        for lease in [lease for lease in self.leases if lease.pool is pool]:
            leases.lose(lease)
            self.leases.remove(lease)
        for inode in [inode for inode in self.files.values() if inode.pool is pool]:
            inode.leave()
            inode.note(f"device {name} removed", now)
            self._reap(inode)
        del self.pools[name]

    def devices(self) -> dict[str, DeviceUsage]:
        return {name: pool.usage() for name, pool in self.pools.items()}

    def _pool(self, name: str) -> PagePool:
        pool = self.pools.get(name)
        if pool is None:
            raise NoDevice(f"no device {name!r}: choose one of {sorted(self.pools)}")
        return pool

    # --- names ---

    def mkdir(self, path: str, *, owner: str, now: float) -> None:
        """Raises FileExists, FileNotFound (its parent), NotADirectory, QuotaExceeded."""
        slot = self.names.vacant(path)
        self.names.mkdir(slot, self._new_ino(), owner, now)

    def readdir(self, path: str) -> list[DirEntry]:
        """Sorted by name. Raises FileNotFound, NotADirectory."""
        return self.names.readdir(path)

    def stat(self, path: str) -> Stat:
        """Raises FileNotFound, NotADirectory."""
        return self.names.find(path).stat()

    def unlink(self, path: str, now: float) -> None:
        """Remove a name, or an empty directory. A file lives on while it is open or has other names.

        Raises FileNotFound, NotADirectory, DirectoryNotEmpty, InvalidArgument (the root)."""
        inode = self.names.remove(path, now)
        if inode is not None:
            self._reap(inode)

    def rename(self, old: str, new: str, now: float) -> None:
        """Move a name; a file that has the new name already is replaced, as if unlinked.

        Raises FileNotFound, IsADirectory, NotADirectory, InvalidArgument."""
        replaced = self.names.rename(old, new, now)
        if replaced is not None:
            self._reap(replaced)

    def link(self, old: str, new: str, now: float) -> None:
        """A second name for a file. Raises FileNotFound, FileExists, IsADirectory, NotADirectory."""
        self.names.link(old, new, now)

    # --- handles ---

    def create(self, path: str | None, *, owner: str, now: float, device: str | None = None, pid: int = 0) -> OpenFile:
        """A new empty file, open for writing; anonymous when `path` is None. `pid` is the process that has it open.

        Raises FileExists, FileNotFound (no such directory), NotADirectory, NoDevice, QuotaExceeded."""
        pool = None if device is None else self._pool(device)
        f = self._create(path, owner, now, pid)
        if pool is not None:
            f.inode.place(pool)
        return f

    def open(self, path: str, mode: OpenMode, *, owner: str, now: float, pid: int = 0) -> OpenFile:
        """Raises FileNotFound, IsADirectory, NotADirectory; AccessDenied when others than the owner want to write."""
        inode = self.names.find_file(path)
        if mode == OpenMode.WRITE and owner != inode.owner:
            raise AccessDenied(f"{path!r} belongs to {inode.owner!r}: open it with mode 'r', and fork it to write")
        return self._open(inode, mode, owner, now, pid)

    def close(self, f: OpenFile, now: float) -> None:
        """Raises BadFile the second time. The file goes with its last name, handle, claim and lease."""
        inode = f.close()
        self.open_files.remove(f)
        inode.note("close", now)
        self._reap(inode)

    def fork(self, f: OpenFile, path: str | None, *, owner: str, now: float, pid: int = 0) -> OpenFile:
        """A copy-on-write copy, open for writing: the committed tokens, and the same pages until one of the two
        writes, wherever these are. A handle for reading will do. It has the tail if the file has one.

        Raises BadFile, and what `create` raises."""
        parent = f.live()
        child = self._create(path, owner, now, pid)
        parent.fork_into(child.inode)
        parent.used_s = now
        self.families.join(child.inode, parent)
        if parent.moving:
            self._transfer_of(parent).join(child.inode)
        return child

    def _create(self, path: str | None, owner: str, now: float, pid: int) -> OpenFile:
        slot = None if path is None else self.names.vacant(path)
        inode = Inode(self._new_ino(), owner, now)
        self.files[inode.ino] = inode
        if slot is not None:
            slot.put(inode, now)
        return self._open(inode, OpenMode.WRITE, owner, now, pid)

    def _open(self, inode: Inode, mode: OpenMode, owner: str, now: float, pid: int) -> OpenFile:
        f = OpenFile(inode, mode, pid)
        self.open_files.add(f)
        inode.used_s = now
        inode.note(f"open {mode} by {owner}", now)
        return f

    def _new_ino(self) -> int:
        if len(self.files) + self.names.n_directories > self.max_files:  # the root is not counted
            raise QuotaExceeded(f"there are {self.max_files} files, as many as can be: unlink or close some")
        self._last_ino += 1
        return self._last_ino

    def _reap(self, inode: Inode) -> None:
        """Let go of an inode that nobody holds."""
        if not inode.is_held:
            self._leave(inode)
            self.families.leave(inode)
            del self.files[inode.ino]

    def _leave(self, inode: Inode) -> None:
        """Take a file off its device, and out of the move that has it."""
        if inode.moving:
            self._transfer_of(inode).leave(inode)
        inode.leave()

    def _transfer_of(self, inode: Inode) -> Transfer:
        return next(t for t in self.transfers if inode.ino in t.members)

    # --- looking at a file; each raises BadFile on a closed handle ---

    def fstat(self, f: Handle) -> Stat:
        return f.live().stat()

    def length(self, f: Handle) -> int:
        """Committed tokens."""
        return len(f.live().tokens)

    def tokens(self, f: Handle, start: int = 0, stop: int | None = None) -> list[int]:
        """Committed tokens, sliced as a list is, wherever their KV is."""
        return f.live().tokens[start:stop].tolist()

    def positions(self, f: Handle, start: int = 0, stop: int | None = None) -> list[int]:
        """Their positions, sliced as a list is."""
        return f.live().positions[start:stop].tolist()

    def next_position(self, f: Handle) -> int:
        """The position after the last token's; 0 in an empty file."""
        return f.live().next_position

    def tail_valid(self, f: Handle) -> bool:
        """Whether the hidden state after the last token is stored, and no batch in flight writes over it: then
        `lease_tail` will do as soon as the file is resident. False in an empty file, and when KV is missing."""
        return f.live().tail_valid

    def residency(self, f: Handle) -> Residency:
        """Where its KV is, and so what it takes before it can be leased."""
        return f.live().residency

    def n_host_pages(self, f: Handle) -> int:
        """Pages that `swap_in` would move."""
        return f.live().n_host

    def family(self, f: Handle) -> int:
        """A number that files forked from one another share."""
        return f.live().family

    def device_of(self, f: Handle) -> str | None:
        """Where the file is placed. None when it is not yet, or its device was removed."""
        pool = f.live().pool
        return None if pool is None else pool.name

    # --- changing a file ---

    def place(self, f: Handle, device: str) -> None:
        """Choose the device of a file without pages; nothing changes when it is there already.

        Raises NoDevice, CrossDevice (its pages are elsewhere), Busy (a batch or a move of it is in flight)."""
        f.live().place(self._pool(device))

    def truncate(self, f: OpenFile, n_tokens: int, now: float) -> None:
        """Keep the first `n_tokens` tokens; pages beyond are freed, and the tail is gone unless all are kept.

        Raises BadFile, AccessDenied, Busy (another call writes it), InvalidArgument (it has fewer)."""
        inode = f.writable()
        if inode.claimed:
            raise Busy("another call is writing this file: wait for it, or truncate a fork")
        inode.truncate(n_tokens, now)

    def truncate_claimed(self, claim: Claim, n_tokens: int, now: float) -> None:
        """Truncate as the one who writes the file, with no lease out (KernelPanic). Raises as `truncate` does."""
        claim.idle().truncate(n_tokens, now)

    # --- work in flight ---

    def claim(self, f: OpenFile) -> Claim:
        """The exclusive right to append, until it is released; it keeps the file alive when all else closes.

        Raises BadFile, AccessDenied (a handle for reading), Busy (another claim)."""
        claim = Claim(f.writable())
        self.claims.add(claim)
        return claim

    def release(self, claim: Claim, now: float) -> None:
        """Give a claim back, once, with no lease of it out. Raises KernelPanic otherwise."""
        inode = claim.release(now)
        self.claims.remove(claim)
        self._reap(inode)

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
        leases.commit(lease, now)
        self.leases.remove(lease)
        if lease.claim is None:
            self._reap(lease.inode)

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
        first = lease.n_before // lease.pool.page_size  # whoever has any page from there on has this one
        for inode in self.families.of(lease.inode):
            if inode.pool is not lease.pool or inode.n_kv <= n_kv or inode.table[first] != lease.pages[first]:
                continue
            for void in [void for claim in self.claims if claim.inode is inode for void in claim.leases]:
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
            self._reap(lease.inode)

    # --- tiers and devices ---

    def placed(self, device: str) -> list[FileFacts]:
        """What there is to know of the files that are placed on a device. Raises NoDevice."""
        pool = self._pool(device)
        return [tiers.facts(inode) for inode in self.files.values() if inode.pool is pool]

    def reclaimable(self, inos: Iterable[int]) -> int:
        """Device pages that would be free if all these files, of one device, left it."""
        return tiers.reclaimable(self._inodes(inos), self.families)

    def swap_out(self, inos: Iterable[int], now: float) -> Move | None:
        """Move the pages that these files alone need to host memory, each once; relatives that share them and are
        not resident go along. None when there are none. The files that have such pages are MOVING until its end.

        Raises NoSpace (host memory is full) with nothing changed; KernelPanic when a batch or a move has a file."""
        files = self._inodes(inos)
        move = tiers.swap_out(files, self.families)
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
        moves.commit(move, now)
        del self.transfers[move]

    def abandon_move(self, move: Move) -> None:
        """The contents are not there: the files stay where they are. Ends the move, once (KernelPanic)."""
        moves.abandon(move)
        self.transfers.pop(move, None)  # it is not there when remove_device ended it

    def migrate(self, inos: Iterable[int], device: str, now: float) -> Migration:
        """Move the pages of these files to another device; those shared with files that stay are copied. They are
        MOVING until its end.

        Raises NoDevice, NoSpace, CrossDevice (pages of another size) with nothing changed; KernelPanic when a batch
        or a move has a file, it has pages in host memory, or they are not all on one other device."""
        return self._begin(tiers.migrate(self._inodes(inos), self._pool(device)), f"migrate to {device}", now)

    def commit_migration(self, migration: Migration, now: float) -> None:
        """The contents are there: the files are on the other device. Once (KernelPanic)."""
        moves.commit(migration, now)
        del self.transfers[migration]

    def abandon_migration(self, migration: Migration) -> None:
        """The files stay where they are. Ends the migration, once (KernelPanic)."""
        moves.abandon(migration)
        self.transfers.pop(migration, None)

    def drop(self, inos: Iterable[int], now: float) -> int:
        """Give the KV of these files up, without saving it: they are on no device, to be computed again anywhere.
        Returns the device pages that are free by it.

        Raises KernelPanic when a batch has one of them; one that is being moved is no part of the move any more."""
        files = self._inodes(inos)
        for inode in files:
            if inode.n_leases:
                raise inode.panic("its KV is to be dropped, and a batch has it")
        n_free = sum(pool.n_free for pool in self.pools.values())
        for inode in files:
            self._leave(inode)
            inode.note("drop", now)
        return sum(pool.n_free for pool in self.pools.values()) - n_free

    def _begin(self, transfer: T, what: str, now: float) -> T:
        self.transfers[transfer] = None
        for inode in transfer.members.values():
            inode.note(what, now)
        return transfer

    def _inodes(self, inos: Iterable[int]) -> list[Inode]:
        """Each once. Raises KernelPanic when there is no such file."""
        found = []
        for ino in dict.fromkeys(inos):
            inode = self.files.get(ino)
            if inode is None:
                raise KernelPanic(f"there is no file #{ino}")
            found.append(inode)
        return found
