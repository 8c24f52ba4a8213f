"""Adopting: sharing what a relative has computed already."""

from collections.abc import Callable

import pytest

from kvfs.access import Who
from kvfs.family import n_common_pages
from kvfs.fs import Kvfs
from kvfs.fsck import counts
from kvfs.inode import Inode, Residency
from kvfs.openfile import OpenFile
from sdk.abi.errors import Busy

Make = Callable[[int], OpenFile]
Append = Callable[[OpenFile, int], None]


def dropped_fork(fs: Kvfs, f: OpenFile) -> OpenFile:
    child = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    fs.drop([child.inode.ino], 1.0)
    fs.place(child, "w0")
    return child


def test_full_pages_of_a_relative_are_shared(fs: Kvfs, make: Make) -> None:
    f = make(11)
    child = dropped_fork(fs, f)
    assert fs.adopt(child) == 8
    assert (child.inode.table, counts(fs).pages) == (f.inode.table[:2], 3)
    lease = fs.lease_rebuild(child, 100)
    assert (lease.n_before, lease.n_new, lease.copies) == (8, 3, [])
    fs.commit(lease, 2.0)
    assert (fs.residency(child), fs.tail_valid(child)) == (Residency.RESIDENT, True)


def test_the_last_token_is_left_to_be_computed(fs: Kvfs, make: Make) -> None:
    assert fs.adopt(dropped_fork(fs, make(8))) == 4


def test_the_relative_with_most_in_common_is_chosen(fs: Kvfs, make: Make, append: Append) -> None:
    f = make(6)
    child = dropped_fork(fs, f)
    fs.commit(fs.lease_rebuild(child, 6), 1.0)
    append(child, 10)  # 6, 7, … as `f` will have
    fs.drop([child.inode.ino], 1.0)
    fs.place(child, "w0")
    other = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    append(f, 3)
    claim = fs.claim(other)
    fs.commit(fs.lease(claim, [6, 7, 99, 9, 10, 11, 12]), 1.0)
    assert fs.adopt(child) == 8
    assert child.inode.table == f.inode.table[:2]
    append(f, 4)
    assert fs.adopt(child) == 12, "and again when there is more"
    assert fs.adopt(child) == 12


def test_positions_must_be_the_same_too(fs: Kvfs, make: Make) -> None:
    f = make(0)
    fs.commit(fs.lease(fs.claim(f), range(8), [0, 1, 2, 3, 4, 5, 7, 8]), 1.0)
    child = dropped_fork(fs, f)
    child.inode.positions[6] = 6
    assert fs.adopt(child) == 4
    child.inode.positions[6] = 7


def test_nothing_is_taken_from_strangers_or_other_devices_or_what_moves(fs: Kvfs, make: Make) -> None:
    fs.add_device("w1", n_pages=8, page_size=4)
    f, _ = make(9), make(9)
    child = dropped_fork(fs, f)
    fs.place(child, "w1")
    assert fs.adopt(child) == 0
    fs.place(child, "w0")
    migration = fs.migrate([f.inode.ino], "w1", 1.0)
    assert fs.adopt(child) == 0
    fs.commit_migration(migration, 2.0)
    fs.place(child, "w1")
    assert fs.adopt(child) == 8


def test_pages_in_host_memory_are_not_taken(fs: Kvfs, make: Make, append: Append) -> None:
    f = make(4)
    anchor = fs.fork(f, None, who=Who("ann", root=True), now=1.0)  # keeps the first page on the device
    append(f, 8)
    child = dropped_fork(fs, f)
    move = fs.swap_out([f.inode.ino], 1.0)
    assert move is not None
    fs.commit_move(move, 1.0)
    assert fs.adopt(child) == 4
    assert child.inode.table == anchor.inode.table


def test_a_file_that_has_its_kv_or_waits_for_it_adopts_nothing(fs: Kvfs, make: Make) -> None:
    f = make(9)
    assert fs.adopt(f) == 9
    move = fs.swap_out([f.inode.ino], 1.0)
    assert move is not None
    with pytest.raises(Busy):
        fs.adopt(f)
    fs.commit_move(move, 1.0)
    with pytest.raises(Busy):
        fs.adopt(f)


@pytest.mark.parametrize("n", range(12))
def test_the_common_beginning_in_pages(n: int) -> None:
    a, b = Inode(1, Who("ann"), 0.0), Inode(2, Who("ann"), 0.0)
    for inode, tokens in ((a, range(12)), (b, [*range(n), *[99] * (12 - n)])):
        inode.tokens.extend(tokens)
        inode.positions.extend(range(12))
    assert n_common_pages(a, b, 5, 2) == min(n // 2, 5)
    assert n_common_pages(a, b, 0, 2) == 0


def test_families_that_come_to_share_pages_are_one(fs: Kvfs, make: Make) -> None:
    who = Who("ann", root=True)
    a, b, alone, other = make(4), make(4), make(4), make(4)
    sons = [fs.fork(b, None, who=who, now=1.0) for _ in range(2)]
    fs.families.unite(a.inode, b.inode)  # into the larger one
    fs.families.unite(alone.inode, other.inode)
    assert {f.inode.family for f in (a, b, *sons)} == {b.inode.ino}
    assert set(fs.families.members) == {b.inode.ino, alone.inode.ino}
    fs.families.unite(alone.inode, a.inode)
    fs.families.unite(alone.inode, b.inode)
    assert list(fs.families.members) == [b.inode.ino]
    assert len(list(fs.families.of(alone.inode))) == 6
