"""The disk, as the store sees it: a flat directory of files that are appended to, and nothing else.

What is guaranteed is what POSIX guarantees: bytes are on disk after `fsync` of their file, names after `fsync_dir`,
and `rename` replaces a name at once or not at all. Whatever was not synced may be there after a crash, in part or
whole, in any order. Any call may raise OSError; after a failed `fsync` the bytes since the last good one are in doubt
for ever, and syncing again proves nothing.

The real one is `kernel/disk.py`; tests have one that loses and tears what was not synced.
"""

from typing import Protocol


class Disk(Protocol):
    """One directory. Names have no slashes; descriptors are the disk's own numbers."""

    def create(self, name: str) -> int:
        """An empty file, to be appended to; one that has the name is emptied."""

    def open(self, name: str) -> int:
        """A file to be read. Raises FileNotFoundError."""

    def append(self, fd: int, data: "bytes | memoryview") -> None:
        """Write all of it at the end."""

    def read(self, fd: int, offset: int, n: int) -> bytes:
        """At most `n` bytes; fewer at the end of the file."""

    def size(self, fd: int) -> int:
        """Bytes in the file."""

    def fsync(self, fd: int) -> None:
        """Return when what was appended is on disk."""

    def close(self, fd: int) -> None:
        """Give the descriptor back."""

    def rename(self, old: str, new: str) -> None:
        """Replace a name at once."""

    def unlink(self, name: str) -> None:
        """Remove a name. Raises FileNotFoundError."""

    def fsync_dir(self) -> None:
        """Return when all names are on disk as they are now."""

    def listdir(self) -> list[str]:
        """All names."""
