"""The real disk: one directory of this machine, locked while a kernel uses it. Implements kvfs/store/disk.py.

The lock is on a file in the directory and goes with the process that has it, however that ends. In it is the pid that
its user knows: that of the supervisor, where there is one. All calls block: they run in the thread of
`kernel/durable.py`, but for the lock, at the start.
"""

import errno
import fcntl
import os
import time
from pathlib import Path

LOCK = "lock"
ENDING_S, LOOK_S = 10.0, 0.05  # a kernel whose supervisor was killed needs a moment to end; how often to look


class DirectoryInUse(Exception):
    """Another kernel has the directory; the text is one line."""


class RealDisk:
    """One directory. See kvfs/store/disk.py for what the methods do."""

    def __init__(self, path: Path, pid: int | None = None) -> None:
        """Makes the directory (mode 0700) if there is none, and locks it for `pid` (by default, this process).

        Raises OSError, DirectoryInUse."""
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = -1
        try:
            self._lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
            self._take_lock(os.getpid() if pid is None else pid)
            os.fsync(self._directory)
        except BaseException:
            self.end()
            raise

    def _take_lock(self, pid: int) -> None:
        until = time.monotonic() + ENDING_S
        while not self._is_locked():
            holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip()
            if not is_gone(holder) or time.monotonic() > until:
                raise DirectoryInUse(
                    f"{self.path} is in use by another kernel (pid {holder}): stop it, or choose another --kv-dir"
                )
            time.sleep(LOOK_S)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(pid).encode(), 0)

    def _is_locked(self) -> bool:
        """By us, from now on."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def end(self) -> None:
        """Let the directory go."""
        for fd in (self._lock, self._directory):
            if fd >= 0:
                os.close(fd)

    # --- the protocol ---

    def create(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self._directory)

    def open(self, name: str) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe with that name must not hold us up
        return os.open(name, flags, dir_fd=self._directory)

    def append(self, fd: int, data: "bytes | memoryview") -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]

    def read(self, fd: int, offset: int, n: int) -> bytes:
        parts = []
        while n > 0 and (part := os.pread(fd, n, offset)):
            parts.append(part)
            offset, n = offset + len(part), n - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self._directory)

    def fsync_dir(self) -> None:
        os.fsync(self._directory)

    def listdir(self) -> list[str]:
        return [name for name in os.listdir(self._directory) if name != LOCK]


def is_gone(pid: str) -> bool:
    """Whether no process has that number."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OverflowError, PermissionError):
        pass  # not written yet; another user's
    return False
