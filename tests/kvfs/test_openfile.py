import pytest

from kvfs.inode import Inode
from kvfs.openfile import OpenFile
from sdk.abi.errors import AccessDenied, BadFile
from sdk.abi.values import OpenMode


@pytest.fixture
def inode() -> Inode:
    return Inode(7, "ann", 0.0)


def test_a_handle_holds_its_inode_until_it_is_closed(inode: Inode) -> None:
    f, other = OpenFile(inode, OpenMode.READ, 7), OpenFile(inode, OpenMode.READ, 8)
    assert (f.live(), inode.pids, inode.is_held) == (inode, [7, 8], True)
    assert f.close() is inode
    assert (inode.pids, inode.is_held) == ([8], True)
    other.close()
    assert (inode.pids, inode.is_held) == ([], False)


def test_a_closed_handle_is_good_for_nothing(inode: Inode) -> None:
    f = OpenFile(inode, OpenMode.WRITE)
    f.close()
    for use in (f.live, f.writable, f.close):
        with pytest.raises(BadFile, match="closed: open it again"):
            use()
    assert inode.pids == []


def test_a_handle_for_reading_cannot_write(inode: Inode) -> None:
    with pytest.raises(AccessDenied, match="open it with mode 'w', or fork it"):
        OpenFile(inode, OpenMode.READ).writable()
    assert OpenFile(inode, OpenMode.WRITE).writable() is inode
