"""The directory of a running kernel: sockets of its own workers, and what the next kernel must know if this one dies.

It belongs to the process that lives longest: the supervisor where there is one, so that it survives the kernels, else
the kernel. That process holds a lock in it; one whose lock nobody holds is left over, and the next to start removes
it. Made by `kernel/supervisor.py` or `kernel/boot.py`, used by `kernel/local.py` too. Nothing here outlives its owner.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

PREFIX = "symphony-"
LOCK = "lock"  # with the owner's pid

R = TypeVar("R", bound=Struct)


class WorkerRecord(Struct, frozen=True):
    """The kernel's own worker."""

    pid: int
    address: str

    def is_running(self) -> bool:
        """Whether that worker is what runs under its pid."""
        try:
            return self.address.encode() in Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False


class Standing(Struct, frozen=True):
    """What a kernel that follows another takes over from it."""

    port: int  # of the HTTP door; 0: any free one
    workers: list[str]  # addresses of those that were attached, and not detached again


class LastEnd(Struct, frozen=True):
    """Why the kernel before this one ended, in one line."""

    reason: str


class RunDirectory:
    """One such directory."""

    def __init__(self, path: Path) -> None:
        """One that exists already."""
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls) -> "RunDirectory":
        """A new one (mode 0700), owned by this process. Removes those whose owner is gone."""
        for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
            _remove_if_stale(path)
        self = cls(Path(tempfile.mkdtemp(prefix=PREFIX)))
        new = self.path / "new"
        self._lock = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.write(self._lock, str(os.getpid()).encode())
        new.rename(self.path / LOCK)  # never seen without its owner's lock
        return self

    @property
    def owner(self) -> int:
        """Pid of the process that it belongs to; this one, where nobody has said."""
        try:
            return int((self.path / LOCK).read_text())
        except FileNotFoundError:
            return os.getpid()

    def remove(self) -> None:
        """With all that is in it. For its owner."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def keep(self, record: Struct) -> None:
        """Keep a record for the next kernel, one of a kind; whole, or as it was."""
        path = self.path / type(record).__name__
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(record))
        new.rename(path)

    def kept(self, kind: type[R]) -> R | None:
        """The record of a kind, if there is one."""
        try:
            return msgspec.json.decode((self.path / kind.__name__).read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError):
            return None

    def attached(self, address: str) -> None:
        """The next kernel is to attach this worker, too."""
        if (standing := self.kept(Standing)) is not None:
            self.keep(Standing(standing.port, [*standing.workers, address]))

    def detached(self, address: str) -> None:
        """The next kernel is not to attach it."""
        if (standing := self.kept(Standing)) is not None:
            self.keep(Standing(standing.port, [other for other in standing.workers if other != address]))


def _remove_if_stale(lock: Path) -> None:
    with contextlib.suppress(OSError):  # somebody else's, or just gone
        if lock.parent.stat().st_uid != os.getuid():
            return
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
        finally:
            os.close(fd)
