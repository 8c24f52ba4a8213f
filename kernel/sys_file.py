"""System calls on KV files: names, handles, forks. Decode and call kvfs; mechanism never lives here."""

from asyncio import Task
from collections.abc import Iterable
from typing import Any

from kernel.core import Kernel
from kernel.dispatch import handles
from kernel.process import Process
from kvfs.access import W
from kvfs.locks import Ticket
from kvfs.openfile import OpenFile
from sdk.abi import calls
from sdk.abi.errors import BadFile
from sdk.abi.values import DirEntry, Fd, Stat


class FileHandle:
    """A descriptor that stands for an open KV file."""

    __slots__ = ("_kernel", "file", "saving")

    def __init__(self, kernel: Kernel, file: OpenFile) -> None:
        self._kernel = kernel
        self.file = file
        self.saving: list[Task[Any]] = []  # from its end on: what has to be done until the file is on disk

    def pages(self) -> set[tuple[str, int]]:
        """Entries of the file's page table; forks share theirs."""
        inode = self.file.inode
        return {(inode.pool.name, page) for page in inode.table} if inode.pool is not None else set()

    def close(self) -> None:
        durable = self._kernel.durable
        if durable is not None and self.file.rights & W and (save := durable.save(self.file.inode)) is not None:
            self.saving.append(save)
        answer(self._kernel.fs.close(self.file, self._kernel.now()))


def answer(tickets: Iterable[Ticket]) -> None:
    """Tell those who wait for locks how that ended."""
    for ticket in tickets:
        assert ticket.waiter is not None
        ticket.waiter.answer()


def file_of(process: Process, fd: Fd) -> OpenFile:
    """Raises BadFile when `fd` is no KV file of this process."""
    handle = process.handle(fd)
    if not isinstance(handle, FileHandle):
        raise BadFile(f"{fd} is a stream, not a KV file")
    return handle.file


def settled(kernel: Kernel, process: Process, call: str) -> Any:
    """The answer of a call that has changed names or rights: None, as soon as that is on disk where it is kept."""
    return None if kernel.durable is None else kernel.durable.answer(process, call, kernel.durable.settle())


@handles(calls.Open)
def sys_open(kernel: Kernel, process: Process, call: calls.Open) -> Any:
    file = kernel.fs.open(call.path, call.mode, who=process.who, now=kernel.now())
    fd = process.install(FileHandle(kernel, file))
    if kernel.durable is None:
        return fd
    return kernel.durable.answer(process, "open", kernel.durable.read(file.inode), fd, process.forget)


@handles(calls.Create)
def sys_create(kernel: Kernel, process: Process, call: calls.Create) -> Fd:
    file = kernel.fs.create(call.path, who=process.who, now=kernel.now())
    return process.install(FileHandle(kernel, file))


@handles(calls.Close)
def sys_close(kernel: Kernel, process: Process, call: calls.Close) -> Any:
    handle = process.handle(call.fd)
    process.close(call.fd)
    if kernel.durable is None or not isinstance(handle, FileHandle):
        return None
    return kernel.durable.answer(process, "close", handle.saving)


@handles(calls.Unlink)
def sys_unlink(kernel: Kernel, process: Process, call: calls.Unlink) -> Any:
    kernel.fs.unlink(call.path, who=process.who, now=kernel.now())
    return settled(kernel, process, "unlink")


@handles(calls.StatPath)
def sys_stat(kernel: Kernel, process: Process, call: calls.StatPath) -> Stat:
    return kernel.fs.stat(call.path, who=process.who, now=kernel.now())


@handles(calls.StatFd)
def sys_fstat(kernel: Kernel, process: Process, call: calls.StatFd) -> Stat:
    return kernel.fs.fstat(file_of(process, call.fd), kernel.now(), process.who)


@handles(calls.ReadDir)
def sys_readdir(kernel: Kernel, process: Process, call: calls.ReadDir) -> list[DirEntry]:
    return kernel.fs.readdir(call.path, who=process.who, now=kernel.now())


@handles(calls.MkDir)
def sys_mkdir(kernel: Kernel, process: Process, call: calls.MkDir) -> Any:
    kernel.fs.mkdir(call.path, who=process.who, now=kernel.now())
    return settled(kernel, process, "mkdir")


@handles(calls.Rename)
def sys_rename(kernel: Kernel, process: Process, call: calls.Rename) -> Any:
    kernel.fs.rename(call.old, call.new, who=process.who, now=kernel.now())
    return settled(kernel, process, "rename")


@handles(calls.Link)
def sys_link(kernel: Kernel, process: Process, call: calls.Link) -> Any:
    kernel.fs.link(call.old, call.new, who=process.who, now=kernel.now())
    return settled(kernel, process, "link")


@handles(calls.Fork)
def sys_fork(kernel: Kernel, process: Process, call: calls.Fork) -> Fd:
    parent = file_of(process, call.fd)
    file = kernel.fs.fork(parent, call.path, who=process.who, now=kernel.now())
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
