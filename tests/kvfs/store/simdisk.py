"""A disk in memory that loses and tears what was not synced, and fails at a chosen call.

Files are their synced bytes and the appends since; names are those on disk and the changes since. A crash keeps a
random part of either: of a file's appends any number of sectors, each as it was written or as zeros; of the changes of
names any subset, in order. `fail_at` makes one call fail and `crash_at` end the world, counted over all calls.
"""

import errno
import random

SECTOR = 512


class Crash(BaseException):
    """The power is gone."""


class Blob:
    """One file."""

    def __init__(self, synced: bytes = b"") -> None:
        self.data = bytearray(synced)
        self.n_synced = len(synced)
        self.doubtful = False  # an fsync has failed: later ones succeed, and what was to be on disk then never is

    def after_crash(self, dice: random.Random) -> bytes:
        """What is on disk: what was synced, and perhaps some of the rest."""
        n = dice.choice([self.n_synced, len(self.data), dice.randint(self.n_synced, len(self.data))])
        kept = bytearray(self.data[:n])
        for at in range(self.n_synced - self.n_synced % SECTOR, n, SECTOR):
            first = max(at, self.n_synced)
            if dice.random() < 0.3:
                kept[first : min(at + SECTOR, n)] = bytes(min(at + SECTOR, n) - first)
        return bytes(kept)


class SimDisk:
    """One directory. See kvfs/store/disk.py for what the methods do."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.names = {name: Blob(data) for name, data in (files or {}).items()}
        self.synced = dict(self.names)  # names on disk
        self.since: list[tuple[str, str | None, Blob | None]] = []  # (name, old name, blob): changes that are not
        self.fds: dict[int, Blob] = {}
        self.n_calls = 0
        self.crash_at: int | None = None
        self.fail_at: int | None = None
        self.error = errno.EIO
        self.fails_for_ever = False
        self._last_fd = 0

    def _call(self) -> None:
        self.n_calls += 1
        if self.crash_at is not None and self.n_calls >= self.crash_at:
            raise Crash
        if self.fail_at is not None and (
            self.n_calls == self.fail_at or (self.fails_for_ever and self.n_calls >= self.fail_at)
        ):
            raise OSError(self.error, "the disk says no")

    def _fd(self, blob: Blob) -> int:
        self._last_fd += 1
        self.fds[self._last_fd] = blob
        return self._last_fd

    def create(self, name: str) -> int:
        self._call()
        blob = self.names[name] = Blob()
        self.since.append((name, None, blob))
        return self._fd(blob)

    def open(self, name: str) -> int:
        self._call()
        if name not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return self._fd(self.names[name])

    def append(self, fd: int, data: bytes | memoryview) -> None:
        try:
            self._call()
        except OSError:
            self.fds[fd].data += bytes(data)[: len(data) // 2]
            raise
        self.fds[fd].data += bytes(data)

    def read(self, fd: int, offset: int, n: int) -> bytes:
        self._call()
        return bytes(self.fds[fd].data[offset : offset + n])

    def size(self, fd: int) -> int:
        return len(self.fds[fd].data)

    def fsync(self, fd: int) -> None:
        blob = self.fds[fd]
        try:
            self._call()
        except OSError:
            blob.doubtful = True
            raise
        if not blob.doubtful:
            blob.n_synced = len(blob.data)

    def close(self, fd: int) -> None:
        del self.fds[fd]

    def rename(self, old: str, new: str) -> None:
        self._call()
        blob = self.names[new] = self.names.pop(old)
        self.since.append((new, old, blob))

    def unlink(self, name: str) -> None:
        self._call()
        if name not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        del self.names[name]
        self.since.append((name, None, None))

    def fsync_dir(self) -> None:
        self._call()
        self.synced = dict(self.names)
        self.since.clear()

    def listdir(self) -> list[str]:
        self._call()
        return list(self.names)

    def after_crash(self, dice: random.Random) -> "SimDisk":
        """The disk that the next kernel finds."""
        names = dict(self.synced)
        chance = dice.choice([0.0, 0.5, 1.0])
        for name, old, blob in self.since:
            if dice.random() < chance:
                if old is not None:
                    names.pop(old, None)
                if blob is None:
                    names.pop(name, None)
                else:
                    names[name] = blob
        return SimDisk({name: blob.after_crash(dice) for name, blob in names.items()})

    def files(self) -> dict[str, bytes]:
        """Everything, as a kernel that is killed leaves it: nothing is lost but the process."""
        return {name: bytes(blob.data) for name, blob in self.names.items()}
