import pytest

from kvfs.access import R, W, Who, X
from kvfs.inode import Inode
from kvfs.openfile import OpenFile
from sdk.abi.errors import AccessDenied, BadFile
from sdk.abi.values import OpenMode


@pytest.fixture
def inode() -> Inode:
    return Inode(7, Who("ann"), 0.0)


def test_a_handle_holds_its_inode_until_it_is_closed(inode: Inode) -> None:
    f, other = OpenFile(inode, R, 7), OpenFile(inode, R, 8)
    assert (f.live(), inode.pids, inode.is_held) == (inode, [7, 8], True)
    assert f.close() is inode
    assert (inode.pids, inode.is_held) == ([8], True)
    other.close()
    assert (inode.pids, inode.is_held) == ([], False)


def test_a_closed_handle_is_good_for_nothing(inode: Inode) -> None:
    f = OpenFile(inode, R | W)
    f.close()
    for use in (f.live, f.writable, f.close):
        with pytest.raises(BadFile, match="closed: open it again"):
            use()
    assert inode.pids == []


def test_a_handle_for_reading_cannot_write(inode: Inode) -> None:
    with pytest.raises(AccessDenied, match="open it with mode 'w', or fork it"):
        OpenFile(inode, R).writable()
    assert OpenFile(inode, R | W).writable() is inode


def test_a_handle_without_the_right_to_fork(inode: Inode) -> None:
    with pytest.raises(AccessDenied, match="ask 'ann' for 'x' on it"):
        OpenFile(inode, R | W).forkable()
    assert OpenFile(inode, R | X).forkable() is inode


def test_the_mode_of_a_handle(inode: Inode) -> None:
    assert (OpenFile(inode, R | X).mode, OpenFile(inode, R | W).mode) == (OpenMode.READ, OpenMode.WRITE)
