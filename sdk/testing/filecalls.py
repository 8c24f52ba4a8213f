"""System calls on files in the fake kernel, one method each: the part of `sdk.testing.process.Process` about files.

There is one user, `test`, who owns everything; modes are kept and handles narrow, so that a program sees its own
calls do as the man pages say. Who else may do what is the real kernel's to decide.
"""

from typing import Protocol

from sdk.abi import calls
from sdk.abi.errors import AccessDenied, BadFile, Busy, InvalidArgument, TooLong
from sdk.abi.values import (
    Advised,
    DeviceSpace,
    DirEntry,
    Fd,
    LockMode,
    OpenMode,
    Outcome,
    Pid,
    PositionMode,
    Quota,
    Stat,
)
from sdk.testing.files import N_PAGES, PAGE_SIZE, File, Handle, Names, Stream
from sdk.testing.pins import Pin


class FileWorld(Protocol):
    """Of what all processes share, the part about files."""

    @property
    def names(self) -> Names: ...

    @property
    def now(self) -> float: ...

    @property
    def max_model_len(self) -> int: ...


class FileCalls:
    """Handles, and the calls on files."""

    world: FileWorld
    handles: dict[Fd, Handle | Stream]
    n_fds: int
    pid: Pid
    umask: int = 0o022

    # --- handles ---

    def install(self, handle: Handle | Stream) -> Fd:
        self.n_fds += 1
        fd = Fd(self.n_fds + 2)
        self.handles[fd] = handle
        if isinstance(handle, Handle):
            handle.file.n_open += 1
            handle.file.n_opens += 1
            handle.file.used_s = self.world.now
        return fd

    def file(self, fd: Fd) -> File:
        handle = self.handles.get(fd)
        if not isinstance(handle, Handle):
            raise BadFile(f"{fd} is not an open file")
        return handle.file

    def idle(self, fd: Fd, *, write: bool = True) -> File:
        """A file on which nobody is at work."""
        file = self.file(fd)
        handle = self.handles[fd]
        if write and isinstance(handle, Handle) and handle.mode is OpenMode.READ:
            raise AccessDenied("this file is open for reading")
        if write:
            file.lock.check_writer((self.pid, fd))
        if file.busy:
            raise Busy("another call is appending to this file")
        return file

    # --- file ---

    def sys_open(self, c: calls.Open) -> Fd:
        return self.install(Handle(self.world.names.open(c.path), c.mode))

    def sys_create(self, c: calls.Create) -> Fd:
        file = self.world.names.new_file(c.path)
        file.mode = 0o777 & ~self.umask
        return self.install(Handle(file, OpenMode.WRITE))

    def sys_close(self, c: calls.Close) -> None:
        handle = self.handles.pop(c.fd, None)
        if handle is None:
            raise BadFile(f"{c.fd} is not open")
        if isinstance(handle, Stream):
            handle.file.busy = False
        else:
            handle.file.n_open -= 1
            handle.file.lock.release((self.pid, c.fd), closed=True)
            handle.file.pins.closed((self.pid, c.fd))

    def sys_unlink(self, c: calls.Unlink) -> None:
        self.world.names.unlink(c.path)

    def sys_stat(self, c: calls.StatPath) -> Stat:
        return self.world.names.stat(self.world.names.find(c.path), self.world.now)

    def sys_fstat(self, c: calls.StatFd) -> Stat:
        return self.world.names.stat(self.file(c.fd), self.world.now)

    def sys_readdir(self, c: calls.ReadDir) -> list[DirEntry]:
        return self.world.names.readdir(c.path)

    def sys_mkdir(self, c: calls.MkDir) -> None:
        self.world.names.mkdir(c.path)

    def sys_rename(self, c: calls.Rename) -> None:
        self.world.names.rename(c.old, c.new)

    def sys_fork(self, c: calls.Fork) -> Fd:
        file = self.file(c.fd)
        copy = self.world.names.new_file(c.path)
        copy.extend(file.tokens, list(file.positions))
        copy.mode = (file.mode | 0o700) & ~self.umask
        return self.install(Handle(copy, OpenMode.WRITE))

    def sys_extract(self, c: calls.Extract) -> Fd:
        file = self.file(c.fd)
        if any(not start < stop <= len(file.tokens) for start, stop in c.ranges):
            raise InvalidArgument(f"a range is empty, or beyond the {len(file.tokens)} tokens of the file")
        return self._edited([(file, *r) for r in c.ranges], c.positions, c.path)

    def sys_merge(self, c: calls.Merge) -> Fd:
        files = [self.file(fd) for fd in c.fds]
        return self._edited([(file, 0, len(file.tokens)) for file in files], c.positions, c.path)

    def sys_splice(self, c: calls.Splice) -> None:
        file = self.idle(c.fd)
        n, source = len(file.tokens), None if c.source is None else self.file(c.source)
        if not c.start <= c.stop <= n:
            raise InvalidArgument(f"there are no tokens {c.start} to {c.stop}: the file has {n}")
        middle = [] if source is None else [(source, 0, len(source.tokens))]
        mode = c.positions or (PositionMode.KEEP if source is None else PositionMode.PACK)
        whole = self._joined([(file, 0, c.start), *middle, (file, c.stop, n)], mode)
        file.tokens, file.positions, file.edited = whole.tokens, whole.positions, whole.edited

    def _edited(self, pieces: list[tuple[File, int, int]], mode: PositionMode, path: str | None) -> Fd:
        whole = self._joined(pieces, mode)
        file = self.world.names.new_file(path)
        file.extend(whole.tokens, whole.positions)
        file.mode, file.edited = 0o777 & ~self.umask, whole.edited
        return self.install(Handle(file, OpenMode.WRITE))

    def _joined(self, pieces: list[tuple[File, int, int]], mode: PositionMode) -> File:
        whole = File()
        for file, start, stop in pieces:
            whole.extend(file.tokens[start:stop], file.positions[start:stop])
        if len(whole.tokens) > self.world.max_model_len:
            raise TooLong(f"the model's context is {self.world.max_model_len} tokens; these are {len(whole.tokens)}")
        if mode is PositionMode.PACK:
            whole.positions = list(range(len(whole.tokens)))
        elif whole.positions != sorted(whole.positions):
            raise InvalidArgument("positions would decrease: give the parts in their order, or positions='pack'")
        first = pieces[0][0]
        n = len(whole.tokens)
        is_beginning = (whole.tokens, whole.positions) == (first.tokens[:n], first.positions[:n])
        whole.edited = first.edited or not is_beginning
        return whole

    def sys_truncate(self, c: calls.Truncate) -> None:
        file = self.idle(c.fd)
        if c.n_tokens > len(file.tokens):
            raise InvalidArgument(f"the file has {len(file.tokens)} tokens")
        del file.tokens[c.n_tokens :], file.positions[c.n_tokens :]

    def sys_tokens(self, c: calls.Tokens) -> list[int]:
        return self.file(c.fd).tokens[c.start : c.stop]

    def sys_positions(self, c: calls.Positions) -> list[int]:
        return self.file(c.fd).positions[c.start : c.stop]

    # --- locks ---

    async def sys_lock(self, c: calls.Lock) -> None:
        handle, file = self.handles.get(c.fd), self.file(c.fd)
        if isinstance(handle, Handle) and handle.mode is OpenMode.READ and c.mode is LockMode.EXCLUSIVE:
            raise AccessDenied("this file is open for reading")
        await file.lock.acquire((self.pid, c.fd), c)

    def sys_unlock(self, c: calls.Unlock) -> None:
        self.file(c.fd).lock.release((self.pid, c.fd))

    # --- where pages should be ---

    def sys_pin(self, c: calls.Pin) -> Advised:
        file, who = self.file(c.fd), (self.pid, c.fd)
        if c.ttl == 0.0:
            file.pins.end(who)
            return Advised(Outcome.ACCEPTED)
        if not file.tokens:
            return Advised(Outcome.REFUSED, detail="this file is empty: pin it when it has tokens")
        stat = self.world.names.stat(file, self.world.now)
        until_s = None if c.ttl is None else self.world.now + c.ttl
        file.pins.held[who] = Pin(stat.n_pages, until_s, stat.n_links > 0)
        return Advised(Outcome.ACCEPTED, stat.n_pages, until_s)

    def sys_advise(self, c: calls.Advise) -> Advised:
        stat = self.world.names.stat(self.file(c.fd), self.world.now)
        return Advised(Outcome.ACCEPTED, stat.n_pages)

    # --- rights ---

    def sys_link(self, c: calls.Link) -> None:
        self.world.names.link(c.old, c.new)

    def sys_chmod(self, c: calls.Chmod) -> None:
        self.world.names.chmod(c.path, c.mode)

    def sys_chown(self, c: calls.Chown) -> None:
        self.world.names.find(c.path)
        if c.owner not in (None, "test") or c.group not in (None, "test"):
            raise AccessDenied("here is one user, 'test', in one group of the same name")

    def sys_umask(self, c: calls.Umask) -> int:
        before = self.umask
        self.umask = before if c.mode is None else c.mode
        return before

    def sys_dup(self, c: calls.Dup) -> Fd:
        file = self.file(c.fd) if c.mode is not OpenMode.WRITE else self.idle(c.fd)
        handle = self.handles[c.fd]
        assert isinstance(handle, Handle)
        return self.install(Handle(file, c.mode or handle.mode))

    def sys_sync(self, c: calls.Sync) -> None:
        if self.file(c.fd) not in self.world.names.files():
            raise InvalidArgument("this file has no name to be found by: link it first")

    def sys_quota(self, c: calls.GetQuota) -> Quota:
        if c.user not in (None, "test"):
            raise AccessDenied("only the operator may see what others have")
        files = self.world.names.files()
        n_pages = sum(-(-len(file.tokens) // PAGE_SIZE) for file in files)
        return Quota("test", len(files), None, n_pages, 0, None, 0.0, None)

    def sys_df(self, c: calls.DeviceSpaces) -> list[DeviceSpace]:
        n_used = self.sys_quota(calls.GetQuota()).n_pages
        return [DeviceSpace("toy", PAGE_SIZE, 0, N_PAGES, N_PAGES - n_used, 0, 0, len(self.world.names.files()))]
