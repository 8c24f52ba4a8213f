"""Errors, three families with three fates.

`SyscallError` reaches the program that made the call, and nothing else crosses the door.
`Killed` is thrown *into* a program; it is a BaseException so that `except Exception` cannot eat it.
`KernelPanic` is a broken invariant: nobody catches it, the kernel stops with the object's story.

Numbers of the standard library's errno differ by platform, so ours are words. `SyscallError` is not an
OSError: programs that wrap their tools' I/O in `except OSError` must not swallow a lost worker.
"""

from enum import StrEnum
from typing import ClassVar


class Errno(StrEnum):
    """Why a system call failed. Readable in traces, stable on the wire."""

    ENOENT = "ENOENT"  # no such file, program, channel or tool
    EEXIST = "EEXIST"  # the path is taken
    EACCES = "EACCES"  # not yours to do
    EBADF = "EBADF"  # not an open file of this process
    EINVAL = "EINVAL"  # an argument makes no sense
    ENOSPC = "ENOSPC"  # no free KV pages left, or no room on disk
    EDQUOT = "EDQUOT"  # a limit of this process or kernel is reached
    EBUSY = "EBUSY"  # another call is writing this file
    EISDIR = "EISDIR"  # a directory where a file was wanted
    ENOTDIR = "ENOTDIR"  # a file where a directory was wanted
    ENOTEMPTY = "ENOTEMPTY"  # the directory still has entries
    E2BIG = "E2BIG"  # more tokens than the model's context holds
    ESRCH = "ESRCH"  # no such process
    ECHILD = "ECHILD"  # not a child of this process
    ETIMEDOUT = "ETIMEDOUT"  # the time given ran out
    EPIPE = "EPIPE"  # the other end is gone
    ENODEV = "ENODEV"  # no worker serves the model
    EIO = "EIO"  # the worker was lost or failed in the middle of the work
    EDEADLK = "EDEADLK"  # waiting for this lock would never end
    ESTALE = "ESTALE"  # a stored file of another model
    EXDEV = "EXDEV"  # the files live on different workers
    ENOSYS = "ENOSYS"  # this kernel has no such call


class SyscallError(Exception):
    """A system call failed; `errno` says why and `detail` says what to do next."""

    errno: Errno = Errno.EINVAL
    BY_ERRNO: ClassVar[dict[Errno, "type[SyscallError]"]] = {}

    def __init__(self, detail: str, errno: Errno | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if errno is not None:
            self.errno = errno

    def __init_subclass__(cls) -> None:
        SyscallError.BY_ERRNO[cls.errno] = cls

    def __str__(self) -> str:
        return f"{self.errno}: {self.detail}"

    @staticmethod
    def make(errno: Errno, detail: str) -> "SyscallError":
        """The subclass that stands for `errno`, or the plain class where there is none."""
        return SyscallError.BY_ERRNO.get(errno, SyscallError)(detail, errno)


class FileNotFound(SyscallError):
    errno = Errno.ENOENT


class FileExists(SyscallError):
    errno = Errno.EEXIST


class AccessDenied(SyscallError):
    errno = Errno.EACCES


class BadFile(SyscallError):
    errno = Errno.EBADF


class InvalidArgument(SyscallError):
    errno = Errno.EINVAL


class NoSpace(SyscallError):
    errno = Errno.ENOSPC


class QuotaExceeded(SyscallError):
    errno = Errno.EDQUOT


class Busy(SyscallError):
    errno = Errno.EBUSY


class IsADirectory(SyscallError):
    errno = Errno.EISDIR


class NotADirectory(SyscallError):
    errno = Errno.ENOTDIR


class DirectoryNotEmpty(SyscallError):
    errno = Errno.ENOTEMPTY


class TooLong(SyscallError):
    errno = Errno.E2BIG


class NoSuchProcess(SyscallError):
    errno = Errno.ESRCH


class NotAChild(SyscallError):
    errno = Errno.ECHILD


class TimedOut(SyscallError):
    errno = Errno.ETIMEDOUT


class Deadlock(SyscallError):
    errno = Errno.EDEADLK


class BrokenPipe(SyscallError):
    errno = Errno.EPIPE


class NoDevice(SyscallError):
    errno = Errno.ENODEV


class DeviceLost(SyscallError):
    errno = Errno.EIO


class CrossDevice(SyscallError):
    errno = Errno.EXDEV


class Stale(SyscallError):
    errno = Errno.ESTALE


class NotSupported(SyscallError):
    errno = Errno.ENOSYS


class Killed(BaseException):
    """Thrown into every thread of a process that must end. Clean up and let it pass: there is no way back."""


class KernelPanic(RuntimeError):
    """An invariant of the kernel is broken. A bug of ours, never an input error."""
