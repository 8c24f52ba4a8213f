"""The real disk: one directory of this machine, locked while a kernel uses it. Implements kvfs/store/disk.py.

The lock is on a file in the directory and goes with the process that has it, however that ends. All calls block: they
run in the thread of `kernel/durable.py`, but for `lock`, at the start.
"""

import fcntl
import os
from pathlib import Path

LOCK = "lock"


class DirectoryInUse(Exception):
    """Another kernel has the directory; the text is one line."""


class RealDisk:
    """One directory. See kvfs/store/disk.py for what the methods do."""

    def __init__(self, path: Path) -> None:
        """Makes the directory (mode 0700) if there is none. Raises OSError, DirectoryInUse."""
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = -1
        try:
            self._lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
            self._take_lock()
            os.fsync(self._directory)
        except BaseException:
            self.end()
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(self._lock, 32).decode("ascii", "replace").strip()
            raise DirectoryInUse(
                f"{self.path} is in use by another kernel (pid {pid}): stop it, or choose another --kv-dir"
            ) from None
        os.ftruncate(self._lock, 0)
        os.write(self._lock, str(os.getpid()).encode())

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
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._directory)

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
