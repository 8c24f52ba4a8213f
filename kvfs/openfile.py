"""Open files: what a process holds when it says that it has a file open.

An `OpenFile` is the right to use one inode until it is closed: a capability, decided once from the mode bits when it
is opened, that nothing widens afterwards. Every handle may read; some may write or fork as well. It outlives the
file's names. There is no offset: a KV file is read where one likes and written at its end. Descriptor numbers are the
kernel's. Created and closed by fs.py; every call that takes a handle comes through `live`, `writable` or `forkable`.
"""

from kvfs.access import RWX, W, X
from kvfs.inode import Inode
from sdk.abi.errors import AccessDenied, BadFile
from sdk.abi.values import OpenMode


class OpenFile:
    """A handle. Its identity is its meaning: two handles on one file are different."""

    __slots__ = ("inode", "is_open", "pid", "rights")

    def __init__(self, inode: Inode, rights: int = RWX, pid: int = 0) -> None:
        self.inode = inode
        self.rights = rights  # R, and W and X where it has them
        self.pid = pid  # of the process that has it open; 0: the kernel itself
        self.is_open = True
        inode.pids.append(pid)
        inode.n_opens += 1

    @property
    def mode(self) -> OpenMode:
        """The mode to open another one with that can do as much."""
        return OpenMode.WRITE if self.rights & W else OpenMode.READ

    def live(self) -> Inode:
        """The file behind it. Raises BadFile when the handle is closed."""
        if not self.is_open:
            raise BadFile("this file is closed: open it again")
        return self.inode

    def writable(self) -> Inode:
        """The file behind it, to be changed. Raises BadFile, or AccessDenied on a handle for reading."""
        inode = self.live()
        if not self.rights & W:
            raise AccessDenied("this file is open for reading: open it with mode 'w', or fork it")
        return inode

    def forkable(self) -> Inode:
        """The file behind it, to make another of. Raises BadFile, or AccessDenied when it may only be used as it is."""
        inode = self.live()
        if not self.rights & X:
            raise AccessDenied(f"this file may be used and not copied: ask {inode.owner!r} for 'x' on it")
        return inode

    def close(self) -> Inode:
        """Give the handle up, once. Raises BadFile the second time."""
        inode = self.live()
        self.is_open = False
        inode.pids.remove(self.pid)
        return inode
