"""System calls on KV files: names, handles, forks. Decode and call kvfs; mechanism never lives here."""

from kernel.core import Kernel
from kernel.dispatch import handles
from kernel.process import Process
from kvfs.openfile import OpenFile
from sdk.abi import calls
from sdk.abi.errors import BadFile
from sdk.abi.values import DirEntry, Fd, Stat


class FileHandle:
    """A descriptor that stands for an open KV file."""

    __slots__ = ("_kernel", "file")

    def __init__(self, kernel: Kernel, file: OpenFile) -> None:
        self._kernel = kernel
        self.file = file

    def pages(self) -> set[tuple[str, int]]:
        """Entries of the file's page table; forks share theirs."""
        inode = self.file.inode
        return {(inode.pool.name, page) for page in inode.table} if inode.pool is not None else set()

    def close(self) -> None:
        self._kernel.fs.close(self.file, self._kernel.now())


def file_of(process: Process, fd: Fd) -> OpenFile:
    """Raises BadFile when `fd` is no KV file of this process."""
    handle = process.handle(fd)
    if not isinstance(handle, FileHandle):
        raise BadFile(f"{fd} is a stream, not a KV file")
    return handle.file


@handles(calls.Open)
def sys_open(kernel: Kernel, process: Process, call: calls.Open) -> Fd:
    file = kernel.fs.open(call.path, call.mode, owner=process.owner, now=kernel.now(), pid=process.pid)
    return process.install(FileHandle(kernel, file))


@handles(calls.Create)
def sys_create(kernel: Kernel, process: Process, call: calls.Create) -> Fd:
    file = kernel.fs.create(call.path, owner=process.owner, now=kernel.now(), pid=process.pid)
    return process.install(FileHandle(kernel, file))


@handles(calls.Close)
def sys_close(kernel: Kernel, process: Process, call: calls.Close) -> None:
    process.close(call.fd)


@handles(calls.Unlink)
def sys_unlink(kernel: Kernel, process: Process, call: calls.Unlink) -> None:
    kernel.fs.unlink(call.path, kernel.now())


@handles(calls.StatPath)
def sys_stat(kernel: Kernel, process: Process, call: calls.StatPath) -> Stat:
    return kernel.fs.stat(call.path)


@handles(calls.StatFd)
def sys_fstat(kernel: Kernel, process: Process, call: calls.StatFd) -> Stat:
    return kernel.fs.fstat(file_of(process, call.fd))


@handles(calls.ReadDir)
def sys_readdir(kernel: Kernel, process: Process, call: calls.ReadDir) -> list[DirEntry]:
    return kernel.fs.readdir(call.path)


@handles(calls.MkDir)
def sys_mkdir(kernel: Kernel, process: Process, call: calls.MkDir) -> None:
    kernel.fs.mkdir(call.path, owner=process.owner, now=kernel.now())


@handles(calls.Rename)
def sys_rename(kernel: Kernel, process: Process, call: calls.Rename) -> None:
    kernel.fs.rename(call.old, call.new, kernel.now())


@handles(calls.Fork)
def sys_fork(kernel: Kernel, process: Process, call: calls.Fork) -> Fd:
    parent = file_of(process, call.fd)
    file = kernel.fs.fork(parent, call.path, owner=process.owner, now=kernel.now(), pid=process.pid)
    return process.install(FileHandle(kernel, file))


@handles(calls.Truncate)
def sys_truncate(kernel: Kernel, process: Process, call: calls.Truncate) -> None:
    kernel.fs.truncate(file_of(process, call.fd), call.n_tokens, kernel.now())


@handles(calls.Tokens)
def sys_tokens(kernel: Kernel, process: Process, call: calls.Tokens) -> list[int]:
    return kernel.fs.tokens(file_of(process, call.fd), call.start, call.stop)


@handles(calls.Positions)
def sys_positions(kernel: Kernel, process: Process, call: calls.Positions) -> list[int]:
    return kernel.fs.positions(file_of(process, call.fd), call.start, call.stop)
