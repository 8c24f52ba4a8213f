"""Leases whose tokens do not see all before them: the file is edited from there on, and its K/V is its own."""

from collections.abc import Callable

from kvfs.access import Who
from kvfs.fs import Kvfs
from kvfs.openfile import OpenFile

Make = Callable[[int], OpenFile]


def append(fs: Kvfs, f: OpenFile, tokens: list[int], *, masked: bool) -> None:
    """One call, in one batch."""
    claim = fs.claim(f)
    lease = fs.lease(claim, tokens)
    lease.masked = masked
    fs.commit(lease, 1.0)
    fs.release(claim, 1.0)


def test_it_is_edited_from_the_first_masked_token_on(fs: Kvfs, make: Make) -> None:
    f = make(6)
    append(fs, f, [60, 61], masked=True)
    assert f.inode.edited is not None
    append(fs, f, [62], masked=False)
    append(fs, f, [63], masked=True)
    assert f.inode.edited.at == 6
    fs.truncate(f, 7, 2.0)
    assert f.inode.edited.at == 6
    fs.truncate(f, 6, 2.0)
    assert f.inode.edited is None


def test_an_abandoned_lease_edits_nothing(fs: Kvfs, make: Make) -> None:
    f = make(6)
    claim = fs.claim(f)
    lease = fs.lease(claim, [60])
    lease.masked = True
    fs.abandon(lease)
    fs.release(claim, 1.0)
    assert f.inode.edited is None


def test_forks_that_go_on_under_other_masks_share_no_page_beyond_it(fs: Kvfs, make: Make) -> None:
    """Both have the same tokens. One loses its K/V, and takes none of what the other has seen less for."""
    f = make(8)
    append(fs, f, [80, 81, 82, 83], masked=True)
    child = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    assert child.inode.edited is f.inode.edited
    for file, masked in ((f, True), (child, False)):
        append(fs, file, [84, 85, 86, 87, 88], masked=masked)
    assert child.inode.edited is not f.inode.edited
    fs.drop([child.inode.ino], 2.0)
    fs.place(child, "w0")
    assert fs.adopt(child) == 8
    fs.commit(fs.lease_rebuild(child, 100), 3.0)
    assert child.inode.edited is None
