"""The KV cache as a file system: the facade, and the only module of kvfs that the kernel calls.

A KV file is a list of tokens whose K/V lies in pages on one device. Programs name files, open, fork, truncate
and share them; the kernel's batcher leases their pages for one batch at a time. kvfs decides which page holds
what; a worker owns the tensors and does as the leases say.

    state     base.py        what there is; devices; inodes come and go
    work      work.py        what the batcher and the mover call: claims, leases, moves
    editing   editing.py     files made of parts of others (edit.py: which pages and slots)
    rights    access.py      callers, mode bits, and what follows from the two
    telling   seen.py        what somebody may see of a file; space.py: of a device
    names     namespace.py   paths → directories (directory.py) → inodes, from the root that a caller sees (roots.py)
    handles   openfile.py    the right of a process to use an inode
    files     inode.py       tokens, page table, device
    residence pins.py        what programs have said about where pages should be
    locking   locks.py       agreements among processes: shared, exclusive
    writing   lease.py       claims and leases: claim, (lease, commit | abandon)*, release
    tables    cow.py         share, grow, cut, as copy-on-write
    pages     pages.py       reference counts and free extents, one pool a device
    checking  fsck.py        every invariant of the above

Everything is synchronous and either happens or changes nothing: facts in, plans out, the clock as an argument
(`now`, seconds). A `SyscallError` is the caller's, and says what to do next; a `KernelPanic` is a bug of the
kernel's or ours. What is here is only glue: each method checks its handle, calls the module that knows, and lets
go of inodes that nobody holds any more. Never add here: policy (which device, which file to drop), waiting, I/O.
"""

import math
from collections.abc import Collection, Hashable, Sequence

from msgspec.structs import replace

from kvfs.access import KERNEL, RWX, R, W, Who, X, derived, need, need_owner, rights
from kvfs.base import Handle
from kvfs.directory import Node
from kvfs.edit import Piece, joined, sequence
from kvfs.editing import Edit, Editing
from kvfs.inode import Inode, Residency
from kvfs.locks import Ticket
from kvfs.openfile import OpenFile
from kvfs.quota import NOTHING, quoted
from kvfs.seen import knows_use, seen
from kvfs.space import space
from sdk.abi.errors import AccessDenied, Busy, InvalidArgument, SyscallError
from sdk.abi.values import Advice, DeviceSpace, DirEntry, LockMode, OpenMode, PositionMode, Quota, Stat

Ranges = Sequence[tuple[int, int]]  # of tokens, each start and stop


class Kvfs(Editing):
    """All KV files of a kernel."""

    # --- names; each raises InvalidArgument, FileNotFound, NotADirectory, AccessDenied ---

    def mkdir(self, path: str, *, who: Who, now: float) -> None:
        """Raises FileExists, QuotaExceeded besides."""
        self.names.mkdir(path, who, now)

    def readdir(self, path: str, *, who: Who, now: float) -> list[DirEntry]:
        """Sorted by name."""
        return self.names.readdir(path, who, now)

    def stat(self, path: str, *, who: Who, now: float) -> Stat:
        """What there is to know of a file or directory; that takes no right on it, but on those above it. Of a file of
        another tenant, which is in /shared, not who uses it."""
        return self._stat(self.names.find(path, who, now), now, who)

    def unlink(self, path: str, *, who: Who, now: float) -> None:
        """Remove a name, or an empty directory. A file lives on while it is open or has other names.

        Raises DirectoryNotEmpty besides."""
        inode = self.names.remove(path, who, now)
        if inode is not None:
            self._reap(inode)

    def rename(self, old: str, new: str, *, who: Who, now: float) -> None:
        """Move a name; a file that has the new name already is replaced, as if unlinked. IsADirectory besides."""
        replaced = self.names.rename(old, new, who, now)
        if replaced is not None:
            self._reap(replaced)

    def link(self, old: str, new: str, *, who: Who, now: float) -> None:
        """A second name for a file. Raises FileExists, IsADirectory besides."""
        self.names.link(old, new, who, now)

    def end_process(self, who: Who, now: float) -> None:
        """The process of `who` has ended and closed its handles: its /tmp goes, with all that is in it."""
        self.quotas.tell(now)
        self.quotas.processes.pop(who.pid, None)
        for inode in self.names.end_process(who, now):
            if inode.ino in self.files:  # it may have had two names there
                self._reap(inode)

    # --- rights ---

    def chmod(self, path: str, mode: int, *, who: Who, now: float) -> None:
        """Nine bits, for the owner (who may do this, and the operator), the group, and all others. Handles that are
        open keep the rights they have. Raises as names do, and InvalidArgument."""
        if not 0 <= mode <= 0o777:
            raise InvalidArgument(f"a mode is nine bits: {mode:#o} is not between 0 and 0o777")
        node = self.names.find(path, who, now)
        need_owner(who, node, path)
        node.mode = mode
        node.modified_s = now
        self.names.changed(node)

    def chown(self, path: str, owner: str | None, group: str | None, *, who: Who, now: float) -> None:
        """Give a file or directory another owner, which the operator may do, or another group, which its owner may if
        it is one of his own. Raises as names do."""
        node = self.names.find(path, who, now)
        need_owner(who, node, path)
        if not who.root and owner not in (None, node.owner):
            raise AccessDenied(f"only the operator may give {path!r} to {owner!r}: let them fork it instead")
        if not who.root and group not in (None, node.group, *who.groups):
            raise AccessDenied(f"{who.user!r} is not in the group {group!r}: choose one of {sorted(who.groups)}")
        if owner not in (None, node.owner):
            self._give(node, owner, now)
        node.group = node.group if group is None else group
        self.names.changed(node)

    def _give(self, node: Node, owner: str, now: float) -> None:
        """Another owner, who pays for it from now on. Raises Busy, QuotaExceeded."""
        self.quotas.tell(now)
        bill = self.quotas.user(owner)
        bill.need_file()
        if isinstance(node, Inode):
            if node.claimed or node.n_leases:
                raise Busy("a call is at work on this file: wait for it, or give away a fork")
            bill.need_pages(len(node.table))
            node.bill.change(node.billed, NOTHING)
            bill.change(NOTHING, node.billed)
            node.bill = bill
        self.quotas.user(node.owner).n_files -= 1
        bill.n_files += 1
        node.owner = owner

    # --- looking at what users have ---

    def quota(self, user: str, now: float) -> Quota:
        """What a user has, and may have."""
        self.quotas.tell(now)
        return quoted(user, self.quotas.user(user))

    def df(self, who: Who) -> list[DeviceSpace]:
        """The devices, and what is used of them: of all that there is for the operator, for anybody else of what his
        tenant has. What others have is not his to see."""
        return [space(pool, self.files.values(), None if who.root else who.tenant) for pool in self.pools.values()]

    # --- handles ---

    def create(self, path: str | None, *, who: Who, now: float, device: str | None = None) -> OpenFile:
        """A new empty file, open with all rights; anonymous when `path` is None.

        Raises FileExists, FileNotFound (no such directory), NotADirectory, AccessDenied, NoDevice, QuotaExceeded."""
        pool = None if device is None else self._pool(device)
        f = self._create(path, who, now)
        if pool is not None:
            f.inode.place(pool)
        return f

    def open(self, path: str, mode: OpenMode, *, who: Who, now: float) -> OpenFile:
        """Mode "r" takes the right to read, "w" to write as well; the right to fork comes along where it is given.

        Raises FileNotFound, IsADirectory, NotADirectory, AccessDenied."""
        inode = self.names.find_file(path, who, now)
        wanted = R | W if mode == OpenMode.WRITE else R
        held = rights(who, inode)
        if wanted & ~held:
            may_fork = held & (R | X) == R | X
            otherwise = "chmod it first" if who.user == inode.owner else "ask its owner"
            need(who, inode, wanted, path, "open it with mode 'r', and fork it" if may_fork else otherwise)
        if who.pid not in inode.holders:
            self._need_handle(who)
        return self._open(inode, wanted | held & X, who, now)

    def dup(self, f: OpenFile, mode: OpenMode | None, *, who: Who, now: float) -> OpenFile:
        """Another handle on the same file, with the same rights or those of `mode` among them.

        Raises BadFile; AccessDenied when that would be more."""
        inode = f.writable() if mode == OpenMode.WRITE else f.live()
        return self._open(inode, f.rights & ~W if mode == OpenMode.READ else f.rights, who, now)

    def close(self, f: OpenFile, now: float) -> list[Ticket]:
        """Raises BadFile the second time. The file goes with its last name, handle, claim and lease; the lock of the
        handle goes at once. Returns whose waits for a lock are answered by that."""
        answered = self.locks.close(f)
        self.quotas.tell(now)
        inode = f.close()
        if f.pid and f.pid not in inode.pids:
            bill = inode.holders.pop(f.pid)
            bill.n_files -= 1
            bill.change(inode.billed, NOTHING)
        self.open_files.remove(f)
        self.pins.closed(f)
        inode.note("close", now)
        self._reap(inode)
        return answered

    def fork(self, f: OpenFile, path: str | None, *, who: Who, now: float) -> OpenFile:
        """A copy-on-write copy, the caller's own and open with all rights: the committed tokens, and the same pages
        until one of the two writes, wherever these are. Others may do with it at most what they may with the parent.
        It has the tail if the file has one.

        Raises BadFile, AccessDenied (the handle has not the right), and what `create` raises."""
        return self._fork(f.forkable(), path, who, now)

    def _fork(self, parent: Inode, path: str | None, who: Who, now: float) -> OpenFile:
        self.quotas.user(who.user).need_pages(len(parent.table))
        child = self._create(path, who, now, [parent])
        parent.fork_into(child.inode)
        parent.used_s = now
        self.families.join(child.inode, parent)
        if parent.moving:
            self._transfer_of(parent).join(child.inode)
        return child

    def _create(self, path: str | None, who: Who, now: float, sources: Sequence[Inode] = ()) -> OpenFile:
        """A new file, with the rights of what is derived from `sources` if there are any."""
        self.quotas.tell(now)
        slot = None if path is None else self.names.vacant(path, who, now)
        self.quotas.user(who.user).need_file()
        self._need_handle(who)
        inode = Inode(self._new_ino(), who, now)
        if sources:
            inode.group, inode.mode = derived(who, sources)
        self._admit(inode)
        if slot is not None:
            slot.put(inode, now)
        return self._open(inode, RWX, who, now)

    def _need_handle(self, who: Who) -> None:
        """Raises QuotaExceeded when the process may not have one more file open."""
        if who.pid:
            self.quotas.process(who.pid).need_file()

    def _open(self, inode: Inode, rights: int, who: Who, now: float) -> OpenFile:
        self.quotas.tell(now)
        f = OpenFile(inode, rights, who.pid)
        self.open_files.add(f)
        if who.pid and who.pid not in inode.holders:
            bill = inode.holders[who.pid] = self.quotas.process(who.pid)
            bill.n_files += 1
            bill.change(NOTHING, inode.billed)
        inode.used_s = now
        inode.note(f"open {f.mode} by {who.user}", now)
        return f

    # --- editing: begun here, done by a batch (`edit_at_once`, `lease_edit`), ended here ---
    # Each raises BadFile, AccessDenied (a source may not be copied), InvalidArgument (no such tokens, or positions that
    # would decrease), QuotaExceeded.

    def extract(
        self, f: OpenFile, ranges: Ranges, mode: PositionMode, *, path: str | None = None, who: Who, now: float
    ) -> Edit:
        """Make a new file of these tokens of a file, start to stop, in the order given. `path`: if it is to have a
        name in the end, that can be given now (FileExists and the like)."""
        source = f.forkable()
        pieces = [Piece(source, start, stop) for start, stop in ranges]
        if any(start >= stop for start, stop in ranges):
            raise InvalidArgument("a range has no tokens: its stop must be beyond its start")
        return self._make(pieces, [source], mode, path, who, now)

    def merge(
        self, files: Sequence[OpenFile], mode: PositionMode, *, path: str | None = None, who: Who, now: float
    ) -> Edit:
        """Make a new file of all tokens of these files, one after another. `path` as in `extract`."""
        sources = [f.forkable() for f in files]
        return self._make([Piece(s, 0, len(s.tokens)) for s in sources], sources, mode, path, who, now)

    def splice(
        self, f: OpenFile, start: int, stop: int, source: OpenFile | None, mode: PositionMode, *, who: Who, now: float
    ) -> Edit:
        """Put all tokens of `source`, or none, in the place of tokens start … stop-1. Raises Busy besides."""
        inode = f.writable()
        inserted = [] if source is None else [Piece(other := source.forkable(), 0, len(other.tokens))]
        n_tokens = len(inode.tokens)
        if not 0 <= start <= stop <= n_tokens:
            raise InvalidArgument(f"there are no tokens {start} to {stop}: the file has {n_tokens}")
        return self._edit([Piece(inode, 0, start), *inserted, Piece(inode, stop, n_tokens)], mode, f, who, now)

    def end_edit(self, edit: Edit, now: float) -> None:
        """Let go of the snapshots and of the target, whether it was committed or not, with no lease out."""
        for source, snapshot in zip(edit.originals, edit.snapshots, strict=True):
            self._pass_on(snapshot.inode, source)
            self.close(snapshot, now)
        edit.snapshots, edit.originals = [], []
        self.release(edit.claim, now)

    def name(self, f: OpenFile, path: str, *, who: Who, now: float) -> None:
        """Give a file that was made here its first name. Raises as `create` does."""
        self.names.vacant(path, who, now).put(f.live(), now)

    def _make(
        self,
        pieces: Sequence[Piece],
        sources: Sequence[Inode],
        mode: PositionMode,
        path: str | None,
        who: Who,
        now: float,
    ) -> Edit:
        """An edit whose target is a new file, without a name yet."""
        if path is not None:
            self.names.vacant(path, who, now)
        file = self._create(None, who, now, sources)
        try:
            return self._edit(pieces, mode, file, who, now)
        except SyscallError:
            self.close(file, now)
            raise

    def _edit(self, pieces: Sequence[Piece], mode: PositionMode, file: OpenFile, who: Who, now: float) -> Edit:
        pieces = joined(pieces)
        tokens, positions = sequence(pieces, mode)
        claim = self.claim(file)
        snapshots: dict[int, OpenFile] = {}
        try:
            for source in dict.fromkeys(piece.source for piece in pieces):
                snapshots[source.ino] = self._fork(source, None, who._replace(user=KERNEL.user), now)
        except SyscallError:
            for snapshot in snapshots.values():
                self.close(snapshot, now)
            self.release(claim, now)
            raise
        taken = [Piece(snapshots[source.ino].inode, start, stop) for source, start, stop in pieces]
        originals = list(dict.fromkeys(piece.source for piece in pieces))
        return Edit(taken, tokens, positions, file, claim, list(snapshots.values()), originals)

    # --- where its pages should be; each raises BadFile ---

    def pin(self, f: OpenFile, tenant: str, n_pages: int, until_s: float) -> None:
        """The first `n_pages` of a file stay on its device until then, or (inf) as long as the handle is open."""
        self.pins.pin(f.live(), tenant, f, n_pages, until_s)

    def unpin(self, f: OpenFile, tenant: str) -> int:
        """End what this handle, and handles that the tenant has closed, have pinned; returns how many pins it was."""
        return self.pins.unpin(f.live(), tenant, f)

    def advise(self, f: OpenFile, advice: Advice, now: float) -> None:
        """Say that the file is needed soon, or is not until it is used again."""
        self.pins.advise(f.live(), advice, now)

    # --- locks; each returns whose waits are answered by it ---

    def lock(
        self,
        f: OpenFile,
        mode: LockMode,
        *,
        thread: Hashable,
        under: Collection[int] = (),
        wait: bool = True,
    ) -> tuple[Ticket, list[Ticket]]:
        """Ask for a lock in the name of a handle: the ticket, and who else is answered. See `Locks.acquire`.

        Raises BadFile, AccessDenied, Busy, TimedOut."""
        return self.locks.acquire(f, mode, thread=thread, under=under, wait=wait)

    def unlock(self, f: OpenFile) -> list[Ticket]:
        """Raises BadFile."""
        return self.locks.unlock(f)

    def cancel_lock(self, ticket: Ticket) -> list[Ticket]:
        """Nobody waits for this lock any more, or was left to see that it was granted."""
        return self.locks.cancel(ticket)

    # --- looking at a file; each raises BadFile on a closed handle ---

    def fstat(self, f: Handle, now: float = 0.0, who: Who = KERNEL) -> Stat:
        """`stat` of an open file, as `who` may see it. Pins that are over by `now` are not in it."""
        return self._stat(f.live(), now, who)

    def _stat(self, node: Node, now: float, who: Who) -> Stat:
        stat = seen(node, who, self._secret)
        if not isinstance(node, Inode) or not knows_use(who, node):
            return stat
        n_pages, until_s = self.pins.until(node, now)
        until = until_s if 0.0 < until_s < math.inf else None
        return replace(stat, n_pinned_pages=n_pages, pinned_until_s=until) if n_pages else stat

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

    def truncate(self, f: OpenFile, n_tokens: int, now: float) -> None:
        """Keep the first `n_tokens` tokens; pages beyond are freed, and the tail is gone unless all are kept.

        Raises BadFile, AccessDenied, Busy (another call writes it, or another handle has it locked), InvalidArgument
        (it has fewer)."""
        inode = f.writable()
        self.locks.check_writer(f)
        if inode.claimed:
            raise Busy("another call is writing this file: wait for it, or truncate a fork")
        self.quotas.tell(now)
        inode.truncate(n_tokens, now)
