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

from collections.abc import Sequence

from kvfs import lease as leases
from kvfs.inode import Inode
from kvfs.lease import Claim, Lease
from kvfs.namespace import ROOT_INO, Namespace
from kvfs.openfile import OpenFile
from kvfs.pages import DeviceUsage, PagePool
from sdk.abi.errors import AccessDenied, Busy, FileExists, NoDevice, QuotaExceeded
from sdk.abi.values import DirEntry, OpenMode, Stat

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
        self._last_ino = ROOT_INO

    # --- devices ---

    def add_device(self, name: str, *, n_pages: int, page_size: int) -> None:
        """A worker has come; its pages 0 … n_pages-1 are ours to give. Raises FileExists, InvalidArgument."""
        if name in self.pools:
            raise FileExists(f"device {name} is there already: remove it first")
        self.pools[name] = PagePool(name, n_pages, page_size)

    def remove_device(self, name: str, *, now: float) -> None:
        """A worker is gone, and its pages. Its files are lost, their tokens still readable; those without tokens
        can be placed anew. Leases that are still out end here; their owners may abandon them, but need not.

        Raises NoDevice."""
        pool = self._pool(name)
        for lease in [lease for lease in self.leases if lease.pool is pool]:
            leases.lose(lease)
            self.leases.remove(lease)
        for inode in [inode for inode in self.files.values() if inode.pool is pool]:
            inode.lose()
            inode.drop_pages()
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

    def create(self, path: str | None, *, owner: str, now: float, device: str | None = None) -> OpenFile:
        """A new empty file, open for writing; anonymous when `path` is None.

        Raises FileExists, FileNotFound (no such directory), NotADirectory, NoDevice, QuotaExceeded."""
        pool = None if device is None else self._pool(device)
        f = self._create(path, owner, now)
        if pool is not None:
            f.inode.place(pool)
        return f

    def open(self, path: str, mode: OpenMode, *, owner: str, now: float) -> OpenFile:
        """Raises FileNotFound, IsADirectory, NotADirectory; AccessDenied when others than the owner want to write."""
        inode = self.names.find_file(path)
        if mode == OpenMode.WRITE and owner != inode.owner:
            raise AccessDenied(f"{path!r} belongs to {inode.owner!r}: open it with mode 'r', and fork it to write")
        return self._open(inode, mode, owner, now)

    def close(self, f: OpenFile, now: float) -> None:
        """Raises BadFile the second time. The file goes with its last name, handle, claim and lease."""
        inode = f.close()
        self.open_files.remove(f)
        inode.note("close", now)
        self._reap(inode)

    def fork(self, f: OpenFile, path: str | None, *, owner: str, now: float) -> OpenFile:
        """A copy-on-write copy, open for writing: the committed tokens, and the same pages until one of the two
        writes. A handle for reading will do. While a batch writes the shared last page the child has no tail.

        Raises BadFile, DeviceLost, and what `create` raises."""
        parent = f.live()
        parent.need_kv()
        child = self._create(path, owner, now)
        parent.fork_into(child.inode)
        return child

    def _create(self, path: str | None, owner: str, now: float) -> OpenFile:
        slot = None if path is None else self.names.vacant(path)
        inode = Inode(self._new_ino(), owner, now)
        self.files[inode.ino] = inode
        if slot is not None:
            slot.put(inode, now)
        return self._open(inode, OpenMode.WRITE, owner, now)

    def _open(self, inode: Inode, mode: OpenMode, owner: str, now: float) -> OpenFile:
        f = OpenFile(inode, mode)
        self.open_files.add(f)
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
            inode.drop_pages()
            del self.files[inode.ino]

    # --- looking at a file; each raises BadFile on a closed handle ---

    def fstat(self, f: Handle) -> Stat:
        return f.live().stat()

    def length(self, f: Handle) -> int:
        """Committed tokens."""
        return len(f.live().tokens)

    def tokens(self, f: Handle, start: int = 0, stop: int | None = None) -> list[int]:
        """Committed tokens, sliced as a list is. A lost file still has them."""
        return f.live().tokens[start:stop].tolist()

    def positions(self, f: Handle, start: int = 0, stop: int | None = None) -> list[int]:
        """Their positions, sliced as a list is."""
        return f.live().positions[start:stop].tolist()

    def next_position(self, f: Handle) -> int:
        """The position after the last token's; 0 in an empty file."""
        return f.live().next_position

    def tail_valid(self, f: Handle) -> bool:
        """Whether `lease_tail` would do: the hidden state after the last token is stored, and no batch in flight
        writes over it. False in an empty file."""
        return f.live().tail_valid

    def device_of(self, f: Handle) -> str | None:
        """Where the file is placed. None when it is not yet, or its device was removed."""
        pool = f.live().pool
        return None if pool is None else pool.name

    # --- changing a file ---

    def place(self, f: Handle, device: str) -> None:
        """Choose the device of a file without pages; nothing changes when it is there already.

        Raises NoDevice, DeviceLost, CrossDevice (its pages are elsewhere), Busy (a batch of it is in flight)."""
        f.live().place(self._pool(device))

    def truncate(self, f: OpenFile, n_tokens: int, now: float) -> None:
        """Keep the first `n_tokens` tokens; pages beyond are freed, and the tail is gone unless all are kept.
        To 0 also makes a lost file an empty one that can be placed anew.

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

        Raises BadFile, AccessDenied (a handle for reading), Busy (another claim), DeviceLost."""
        claim = Claim(f.writable())
        self.claims.add(claim)
        return claim

    def release(self, claim: Claim, now: float) -> None:
        """Give a claim back, once, with no lease of it out. Raises KernelPanic otherwise."""
        inode = claim.release(now)
        self.claims.remove(claim)
        self._reap(inode)

    def lease(
        self, claim: Claim, tokens: Sequence[int], positions: Sequence[int] | None = None, *, n_again: int = 0
    ) -> Lease:
        """One batch's right to append `tokens` (u32, at least one) at `positions` (u32; by default consecutive
        from `next_position`); with `n_again=1` the first of them is the file's last token, computed once more
        because the tail is gone. Allocates pages, and copies a shared last page before it is written. One at a
        time (KernelPanic). The lease's fields are immutable values, good until it ends.

        Raises NoSpace, InvalidArgument, DeviceLost; then nothing has changed."""
        lease = leases.append(claim, tokens, positions, n_again)
        self.leases.add(lease)
        return lease

    def lease_tail(self, f: Handle) -> Lease:
        """One batch's right to read the stored tail: `n_new` is 0. Many at a time, on any handle.

        Raises BadFile, DeviceLost, InvalidArgument (no tail is stored), Busy (it is being written)."""
        lease = leases.read_tail(f.live())
        self.leases.add(lease)
        return lease

    def commit(self, lease: Lease, now: float) -> None:
        """The batch ran: the tokens are part of the file, and its tail is valid. Ends the lease, once (KernelPanic)."""
        leases.commit(lease, now)
        self.leases.remove(lease)
        if lease.claim is None:
            self._reap(lease.inode)

    def disown(self, lease: Lease) -> None:
        """The batch of a lease that was committed early has failed after all: if the file still has those tokens,
        their K/V is not there and the file is lost."""
        if lease.state is leases.LeaseState.COMMITTED and lease.n_new:
            lease.inode.lose()

    def abandon(self, lease: Lease, *, device_lost: bool = False) -> None:
        """The batch did not run, or nobody wants its result: the file is as before, but for its tail where the
        batch would have written in place. If its batch is not sent yet, take it out. Ends the lease, once
        (KernelPanic). With `device_lost` the file is lost as from now; `remove_device` is to follow."""
        leases.abandon(lease)
        if lease not in self.leases:
            return  # remove_device ended it
        self.leases.remove(lease)
        if device_lost:
            lease.inode.lose()
        if lease.claim is None:
            self._reap(lease.inode)
