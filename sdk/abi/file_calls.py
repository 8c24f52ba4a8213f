"""The system calls on files. See `sdk/abi/calls.py`, of which this is a part."""

from typing import Annotated

from msgspec import Meta

from sdk.abi.errors import Errno
from sdk.abi.table import Syscall, syscall
from sdk.abi.values import (
    Advice,
    Advised,
    DeviceSpace,
    DirEntry,
    Fd,
    LockMode,
    OpenMode,
    PositionMode,
    Quota,
    Stat,
    TokenRange,
)

_DISK = (Errno.ENOSPC, Errno.EIO)  # with --kv-dir, which is full or fails
_PATH = (Errno.EINVAL, Errno.ENOENT, Errno.ENOTDIR, Errno.EACCES, Errno.EDQUOT)


@syscall(20, "open", group="file", blocks=True, errnos=(*_PATH, Errno.EISDIR, Errno.EIO, Errno.ESTALE))
class Open(Syscall[Fd], frozen=True, kw_only=True):
    """Open the KV file at `path`. Mode "r" may read tokens and attend to them; "w" may append and truncate as well.

    Either may fork, extract and merge if the file's `x` bit allows it to the caller. What the handle may do is decided
    now: a later `chmod` changes nothing for it. Paths begin with '/', which is the root of the caller's tenant, or with
    '~/', its home; `/tmp` is its own and goes with the process, `/shared` is the same for all.
    EACCES: the file's bits, or those of a directory above it, do not allow it. EIO: what is on disk of it is damaged.
    ESTALE: it was saved with another model.
    """

    path: str
    mode: OpenMode = OpenMode.WRITE


@syscall(21, "create", group="file", errnos=(*_PATH, Errno.EEXIST))
class Create(Syscall[Fd], frozen=True, kw_only=True):
    """A new empty KV file, open with all rights. Without a path it is anonymous and ends with its last handle; with
    one it stays until it is unlinked, whoever ends. Its mode is 0o777 without the bits of the process's `umask`."""

    path: str | None = None


@syscall(22, "close", group="file", blocks=True, errnos=(Errno.EBADF, *_DISK, Errno.ENODEV))
class Close(Syscall[None], frozen=True, kw_only=True):
    """Give a handle back. A stream's generation ends with its handle; calls in flight on a file run to their end.

    With `--kv-dir` the handle of a file that has a name, and has changed, is given back at once and the call returns
    when the file is on disk, as after `sync`; on an error of the disk the handle is closed all the same.
    """

    fd: Fd


@syscall(23, "unlink", group="file", blocks=True, errnos=(*_PATH, Errno.ENOTEMPTY, *_DISK))
class Unlink(Syscall[None], frozen=True, kw_only=True):
    """Remove a name: of a file, whose pages are freed with its last handle, or of an empty directory."""

    path: str


@syscall(24, "stat", group="file", errnos=_PATH)
class StatPath(Syscall[Stat], frozen=True, kw_only=True):
    """What kvfs knows of the file or directory at `path`."""

    path: str


@syscall(25, "fstat", group="file", errnos=(Errno.EBADF,))
class StatFd(Syscall[Stat], frozen=True, kw_only=True):
    """`stat` of an open file."""

    fd: Fd


@syscall(26, "readdir", group="file", errnos=_PATH)
class ReadDir(Syscall[list[DirEntry]], frozen=True, kw_only=True):
    """The entries of a directory, by name."""

    path: str = "/"


@syscall(27, "mkdir", group="file", blocks=True, errnos=(*_PATH, Errno.EEXIST, *_DISK))
class MkDir(Syscall[None], frozen=True, kw_only=True):
    """Make a directory; its parent must exist."""

    path: str


@syscall(28, "rename", group="file", blocks=True, errnos=(*_PATH, Errno.EISDIR, *_DISK))
class Rename(Syscall[None], frozen=True, kw_only=True):
    """Give a file or directory another path; a file already there is replaced."""

    old: str
    new: str


@syscall(29, "fork", group="file", errnos=(Errno.EBADF, *_PATH, Errno.EEXIST, Errno.EIO))
class Fork(Syscall[Fd], frozen=True, kw_only=True):
    """A new file with the same tokens, open with all rights; pages are shared until one of the two writes.

    Costs no page and no computation. Tokens that a call in flight has not committed are not in the copy. It is the
    caller's own; group and others may do with it what they may with the original, less what `umask` takes.
    EACCES: the handle has no right to fork.
    """

    fd: Fd
    path: str | None = None


@syscall(30, "truncate", group="file", errnos=(Errno.EBADF, Errno.EACCES, Errno.EINVAL, Errno.EBUSY))
class Truncate(Syscall[None], frozen=True, kw_only=True):
    """Keep the first `n_tokens` tokens and free the pages behind them. EBUSY: a call is appending."""

    fd: Fd
    n_tokens: Annotated[int, Meta(ge=0)]


@syscall(31, "tokens", group="file", errnos=(Errno.EBADF,))
class Tokens(Syscall[list[int]], frozen=True, kw_only=True):
    """The tokens of the file, from `start` to `stop` as a Python slice has them."""

    fd: Fd
    start: int = 0
    stop: int | None = None


@syscall(32, "positions", group="file", errnos=(Errno.EBADF,))
class Positions(Syscall[list[int]], frozen=True, kw_only=True):
    """The position of each token, sliced as `tokens` is."""

    fd: Fd
    start: int = 0
    stop: int | None = None


@syscall(33, "link", group="file", blocks=True, errnos=(*_PATH, Errno.EEXIST, Errno.EISDIR, *_DISK))
class Link(Syscall[None], frozen=True, kw_only=True):
    """Give a file one more name. It lives until the last of them is unlinked and nobody has it open.

    EACCES: the caller may not read and write it, or not add names to that directory.
    """

    old: str
    new: str


@syscall(34, "chmod", group="file", blocks=True, errnos=(*_PATH, *_DISK))
class Chmod(Syscall[None], frozen=True, kw_only=True):
    """Set the nine mode bits of a file or directory: three for each of its owner, its group and all others.

    Of a file: 4 (r) attend to it and read its tokens, 2 (w) append and truncate, 1 (x) fork, extract and merge. Of a
    directory: r list it, w add and remove names, x pass through it. Handles that are open keep their rights.
    EACCES: only the owner and the operator may.
    """

    path: str
    mode: Annotated[int, Meta(ge=0, le=0o777)]


@syscall(35, "chown", group="file", blocks=True, errnos=(*_PATH, Errno.EBUSY, *_DISK))
class Chown(Syscall[None], frozen=True, kw_only=True):
    """Give a file or directory another owner or group; None leaves it as it is.

    Its owner may give it to a group that is one of his own; the operator may do anything. EBUSY: a call is writing it.
    EACCES: the caller may not. EDQUOT: it is more than the new owner may have.
    """

    path: str
    owner: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    group: Annotated[str, Meta(min_length=1, max_length=255)] | None = None


@syscall(36, "umask", group="file")
class Umask(Syscall[int], frozen=True, kw_only=True):
    """The mode bits that new files and directories of this process do not get; with a `mode` it is set, and the one
    before is returned. Children begin with their parent's."""

    mode: Annotated[int, Meta(ge=0, le=0o777)] | None = None


_EDIT = (Errno.EBADF, Errno.E2BIG, Errno.EXDEV, Errno.ENOSPC, Errno.ENODEV, Errno.EIO)


@syscall(37, "extract", group="file", blocks=True, errnos=(*_PATH, *_EDIT, Errno.EEXIST))
class Extract(Syscall[Fd], frozen=True, kw_only=True):
    """A new file of some of the tokens: those of each range, from its start to its stop, in the order given. At most
    4,096 ranges.

    Nothing is computed. Whole pages are shared with the file where they stay at their positions; all else is copied.
    With "keep" each token stays at its position, and the file is what attention has when it does not see the others.
    With "pack" the tokens are at 0, 1, 2 and so on, their keys turned to the new positions. In either mode a token
    still knows what it saw when it was computed: such a file is `edited` (see `stat`), and only computing its tokens
    again would make it forget. What comes next is asked in the new context, for the price of one token.

    The call is of the file as it is now: it may be written, cut or closed while the call waits for its pages.
    EINVAL: no range, one without tokens or beyond the end, positions that would decrease. E2BIG: the file would be
    longer than the model's context. EACCES: the handle has no right to fork. ENOSPC: no free pages. ENODEV: no worker
    came in time. EIO: the worker failed at this call. EXDEV: the pages are on different workers.
    """

    fd: Fd
    ranges: Annotated[list[TokenRange], Meta(min_length=1, max_length=4096)]
    positions: PositionMode = PositionMode.KEEP
    path: str | None = None


@syscall(38, "merge", group="file", blocks=True, errnos=(*_PATH, *_EDIT, Errno.EEXIST))
class Merge(Syscall[Fd], frozen=True, kw_only=True):
    """A new file of all tokens of these files, one after another. Nothing is computed; see `extract`.

    With "keep" their positions have to be in order already. EXDEV: the files' pages are on different workers. EACCES:
    a handle has no right to fork. EINVAL: positions would decrease. E2BIG: together they are longer than the model's
    context.
    """

    fds: Annotated[list[Fd], Meta(min_length=1, max_length=4096)]
    positions: PositionMode = PositionMode.PACK
    path: str | None = None


@syscall(
    39, "splice", group="file", blocks=True, errnos=(*_EDIT, Errno.EACCES, Errno.EINVAL, Errno.EBUSY, Errno.EDQUOT)
)
class Splice(Syscall[None], frozen=True, kw_only=True):
    """Replace the tokens from `start` to `stop` by all those of `source`, or by none.

    Nothing is computed; see `extract`.
    `positions` are "pack" by default, and "keep" where nothing is put in. The file changes at the end of the call, all
    at once; an error leaves it as it was. EBUSY: another call is writing it. EACCES: the handle cannot write, or that
    of the source has no right to fork.
    """

    fd: Fd
    start: Annotated[int, Meta(ge=0)]
    stop: Annotated[int, Meta(ge=0)]
    source: Fd | None = None
    positions: PositionMode | None = None


@syscall(
    40,
    "lock",
    group="file",
    blocks=True,
    errnos=(Errno.EBADF, Errno.EACCES, Errno.EINVAL, Errno.EBUSY, Errno.ETIMEDOUT, Errno.EDEADLK),
)
class Lock(Syscall[None], frozen=True, kw_only=True):
    """Lock the file, whatever its names are: "shared" with others that do, or "exclusive". Waits until it is free.

    The lock belongs to this handle and ends with it, or with the process; forks do not have it. Locking again changes
    its mode: to "shared" at once, to "exclusive" when the others are gone, before those who have no lock. Otherwise
    locks are given in the order in which they were asked for. Locks are advisory: nobody is kept from reading. But
    while a handle has a file exclusively, calls that write it through any other handle (pred with tokens, generate,
    stream, truncate, splice) fail with EBUSY, and one that was writing it already runs to its end.

    ETIMEDOUT: not free within `timeout` seconds; with 0 it only tries. EDEADLK: threads wait for one another's locks
    (or, in `wait`, for the end of one another) in a circle, and this process is the youngest of theirs: unlock what you
    have, and begin again. EBADF: also when the handle is closed during the wait. EACCES: "exclusive" needs a handle
    that can write. EBUSY: another thread waits with this handle.
    """

    fd: Fd
    mode: LockMode = LockMode.EXCLUSIVE
    timeout: Annotated[float, Meta(ge=0.0)] | None = None


@syscall(41, "unlock", group="file", errnos=(Errno.EBADF,))
class Unlock(Syscall[None], frozen=True, kw_only=True):
    """Give the lock of this handle back. Nothing happens if it has none."""

    fd: Fd


@syscall(42, "pin", group="file", errnos=(Errno.EBADF,))
class Pin(Syscall[Advised], frozen=True, kw_only=True):
    """Keep the pages that the file has now on its device, for `ttl` seconds or while the handle is open.

    Nothing that wants room makes them leave. The answer says what was done: *clipped* to the leading pages that the
    tenant's quota allows; *deferred*, since pages have to be brought back first; *refused*, with the reason, and an
    earlier pin stays. A pin with a `ttl` (at most 1e9, 31 years) outlives the handle if the file has a name; every pin
    ends when the last name is unlinked. A `ttl` of 0 ends what this handle has pinned, and what the tenant's closed
    handles have. Another pin on the same handle takes the place of the first. Pages that are appended later, and forks,
    are not pinned. Any handle will do: the quota is that of the tenant who pins.
    """

    fd: Fd
    ttl: Annotated[float, Meta(ge=0.0, le=1e9)] | None = None


@syscall(43, "advise", group="file", errnos=(Errno.EBADF,))
class Advise(Syscall[Advised], frozen=True, kw_only=True):
    """Say what is expected of the file's pages; costs nothing and waits for nothing.

    `willneed` begins to bring them back to the device, from disk, from main memory or by computing them again, as far
    as nobody waits for room and those who compute are not slowed down much. `dontneed` makes them the first to leave
    when somebody wants room, until the file is used again; it is refused while others have the file open.
    """

    fd: Fd
    advice: Advice


@syscall(
    44,
    "sync",
    group="file",
    blocks=True,
    errnos=(Errno.EBADF, Errno.EINVAL, Errno.ENOSPC, Errno.EIO, Errno.ENODEV, Errno.ENOSYS),
)
class Sync(Syscall[None], frozen=True, kw_only=True):
    """Wait until the file is on disk as it is now: its tokens, its K/V, and its names.

    A file with a name is saved when it is closed, too. What is on disk is there after a crash of the kernel or the
    machine. An error leaves on disk what was saved before. ENOSYS: the kernel runs without `--kv-dir`.
    EINVAL: the file has no name, or only names in /tmp, which are not kept.
    ENOSPC: the disk is full, or `--kv-dir-size` is reached. EIO: the disk failed. ENODEV: no worker brought a model.
    """

    fd: Fd


@syscall(45, "quota", group="file", errnos=(Errno.EACCES,))
class GetQuota(Syscall[Quota], frozen=True, kw_only=True):
    """What a user has of files and KV, and may have; the caller himself unless another is named.

    The limits are the operator's to set; those of one process are `limits`. Whoever is at a limit is
    refused what would be more, and keeps what he has. EACCES: only the operator may ask for others.
    """

    user: Annotated[str, Meta(min_length=1, max_length=255)] | None = None


@syscall(46, "df", group="file")
class DeviceSpaces(Syscall[list[DeviceSpace]], frozen=True, kw_only=True):
    """The devices that KV is kept on, with their pages and how many are free.

    To anybody but the operator it looks as if the caller's tenant were alone: what others have is theirs to know.
    """


@syscall(47, "dup", group="file", errnos=(Errno.EBADF, Errno.EACCES, Errno.EDQUOT))
class Dup(Syscall[Fd], frozen=True, kw_only=True):
    """Another handle on the same open file, with the same rights, or with mode "r" without that to write.

    EACCES: mode "w" of a handle for reading; rights only narrow.
    """

    fd: Fd
    mode: OpenMode | None = None
