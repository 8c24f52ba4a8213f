"""Leases that compute lost K/V again."""

from collections.abc import Callable

import pytest

from kvfs.access import Who
from kvfs.fs import Kvfs
from kvfs.fsck import counts
from kvfs.inode import Residency
from kvfs.lease import LeaseKind
from kvfs.openfile import OpenFile
from sdk.abi.errors import Busy, InvalidArgument, KernelPanic

Make = Callable[[int], OpenFile]


def test_a_file_is_computed_again_in_pieces(fs: Kvfs, make: Make) -> None:
    f = make(0)
    claim = fs.claim(f)
    fs.commit(fs.lease(claim, range(9), range(50, 59)), 1.0)
    fs.drop([f.inode.ino], 1.0)
    fs.place(f, "w0")
    for n_before, n in [(0, 5), (5, 3), (8, 1)]:
        assert fs.residency(f) is Residency.PARTIAL
        lease = fs.lease_rebuild(f, 5 if n == 5 else 3)
        assert (lease.kind, lease.n_before, lease.n_new) == (LeaseKind.REBUILD, n_before, n)
        assert lease.tokens.tolist() == list(range(n_before, n_before + n))
        assert lease.positions.tolist() == list(range(50 + n_before, 50 + n_before + n))
        assert not fs.tail_valid(f)
        fs.commit(lease, 2.0)
    assert (fs.residency(f), fs.tail_valid(f), fs.fstat(f).modified_s) == (Residency.RESIDENT, True, 1.0)


def test_abandoning_a_rebuild_gives_back_its_pages(fs: Kvfs, make: Make) -> None:
    f = dropped(fs, make(9))
    fs.abandon(fs.lease_rebuild(f, 9))
    assert (counts(fs).pages, fs.residency(f)) == (0, Residency.PARTIAL)


def dropped(fs: Kvfs, f: OpenFile) -> OpenFile:
    fs.drop([f.inode.ino], 1.0)
    fs.place(f, "w0")
    return f


def test_a_fork_of_what_is_half_computed_goes_on_by_itself(fs: Kvfs, make: Make) -> None:
    f = dropped(fs, make(9))
    fs.commit(fs.lease_rebuild(f, 6), 1.0)
    child = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    lease = fs.lease_rebuild(child, 9)
    assert (lease.n_before, lease.copies) == (6, [(f.inode.table[1], lease.pages[1])])
    fs.commit(lease, 1.0)
    assert (fs.residency(f), fs.residency(child)) == (Residency.PARTIAL, Residency.RESIDENT)


def test_a_rebuild_is_alone(fs: Kvfs, make: Make) -> None:
    f = dropped(fs, make(9))
    fs.lease_rebuild(f, 2)
    claim = fs.claim(f)
    for use in (
        lambda: fs.lease_rebuild(f, 2),
        lambda: fs.lease(claim, [1]),
        lambda: fs.lease_tail(f),
        lambda: fs.adopt(f),
    ):
        with pytest.raises(Busy):
            use()


def test_what_cannot_be_computed_again(fs: Kvfs, make: Make) -> None:
    f = make(9)
    with pytest.raises(KernelPanic, match="all its K/V is there"):
        fs.lease_rebuild(f, 1)
    fs.drop([f.inode.ino], 1.0)
    with pytest.raises(InvalidArgument, match="place it first"):
        fs.lease_rebuild(f, 1)
    with pytest.raises(InvalidArgument, match="place it first"):
        fs.adopt(f)
    with pytest.raises(KernelPanic, match="0 tokens are to be computed again"):
        fs.lease_rebuild(f, 0)


@pytest.mark.parametrize("n", [0, 3, 5, 7])
def test_a_rebuild_of_a_file_that_is_cut_meanwhile_counts_for_nothing(fs: Kvfs, make: Make, n: int) -> None:
    f = dropped(fs, make(9))
    fs.commit(fs.lease_rebuild(f, 5), 1.0)
    lease = fs.lease_rebuild(f, 3)
    fs.truncate(f, n, 2.0)
    claim = fs.claim(f)
    if n <= 5:
        fs.commit(fs.lease(claim, [20]), 3.0)
    fs.commit(lease, 3.0)
    assert (f.inode.n_kv, fs.tail_valid(f)) == ((n + 1, True) if n <= 5 else (5, False))
    assert counts(fs).pages == -(-f.inode.n_kv // 4)


def test_a_rebuild_counts_when_what_is_cut_lies_beyond_it(fs: Kvfs, make: Make) -> None:
    f = dropped(fs, make(9))
    lease = fs.lease_rebuild(f, 5)
    fs.truncate(f, 5, 2.0)
    fs.commit(lease, 3.0)
    assert (fs.residency(f), fs.tail_valid(f)) == (Residency.RESIDENT, True)
