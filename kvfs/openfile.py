"""Open files: what a process holds when it says that it has a file open.

An `OpenFile` is the right to use one inode, for reading or for writing too, until it is closed. It outlives the
file's names. There is no offset: a KV file is read where one likes and written at its end. Descriptor numbers
are the kernel's. Created and closed by fs.py; every call that takes a handle comes through `live` or `writable`.
"""

from kvfs.inode import Inode
from sdk.abi.errors import AccessDenied, BadFile
from sdk.abi.values import OpenMode


class OpenFile:
    """A handle. Its identity is its meaning: two handles on one file are different."""

    __slots__ = ("inode", "is_open", "mode", "pid")

    def __init__(self, inode: Inode, mode: OpenMode, pid: int = 0) -> None:
        self.inode = inode
        self.mode = mode
        self.pid = pid  # of the process that has it open; 0: the kernel itself
        self.is_open = True
        inode.pids.append(pid)

    def live(self) -> Inode:
        """The file behind it. Raises BadFile when the handle is closed."""
        if not self.is_open:
            raise BadFile("this file is closed: open it again")
        return self.inode

    def writable(self) -> Inode:
        """The file behind it, to be changed. Raises BadFile, or AccessDenied on a handle for reading."""
        inode = self.live()
        if self.mode != OpenMode.WRITE:
            raise AccessDenied("this file is open for reading: open it with mode 'w', or fork it")
        return inode

    def close(self) -> Inode:
        """Give the handle up, once. Raises BadFile the second time."""
        inode = self.live()
        self.is_open = False
        inode.pids.remove(self.pid)
        return inode
