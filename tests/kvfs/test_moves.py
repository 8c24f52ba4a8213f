"""What becomes of files while their pages are on the way."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from kvfs.access import Who
from kvfs.fs import Kvfs
from kvfs.fsck import counts
from kvfs.inode import Residency
from kvfs.moves import Transfer
from kvfs.openfile import OpenFile

Make = Callable[[int], OpenFile]


class Way(NamedTuple):
    """A transfer that is out, and how it ends."""

    transfer: Transfer
    commit: Callable[[], None]
    abandon: Callable[[], None]


Begin = Callable[[OpenFile], Way]


@pytest.fixture(params=["out", "in", "migration"])
def begin(request: pytest.FixtureRequest, fs: Kvfs) -> Begin:
    """Puts a file under way."""
    fs.add_device("w1", n_pages=16, page_size=4, n_host_pages=4)

    def begin(f: OpenFile) -> Way:
        if request.param == "migration":
            migration = fs.migrate([f.inode.ino], "w1", 1.0)
            return Way(migration, lambda: fs.commit_migration(migration, 2.0), lambda: fs.abandon_migration(migration))
        move = fs.swap_out([f.inode.ino], 1.0)
        assert move is not None
        if request.param == "in":
            fs.commit_move(move, 1.0)
            move = fs.swap_in(f, 1.0)
        return Way(move, lambda: fs.commit_move(move, 2.0), lambda: fs.abandon_move(move))

    return begin


def test_a_fork_made_meanwhile_goes_along(fs: Kvfs, make: Make, begin: Begin) -> None:
    f = make(9)
    transfer, commit, _ = begin(f)
    child = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    assert (fs.residency(child), sorted(transfer.members)) == (Residency.MOVING, [f.inode.ino, child.inode.ino])
    commit()
    assert f.inode.table == child.inode.table == transfer.entries_to
    assert (fs.device_of(child), fs.residency(child), fs.tail_valid(child)) == (
        fs.device_of(f),
        fs.residency(f),
        True,
    )
    assert counts(fs).pages + counts(fs).host_pages == 3


def test_a_fork_stays_behind_when_the_move_is_abandoned(fs: Kvfs, make: Make, begin: Begin) -> None:
    f = make(9)
    transfer, _, abandon = begin(f)
    before = fs.device_of(f)
    child = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    abandon()
    assert f.inode.table == child.inode.table == transfer.entries_from
    assert (fs.device_of(f), f.inode.moving, child.inode.moving) == (before, False, False)


def test_a_file_that_is_cut_meanwhile_keeps_the_rest(fs: Kvfs, make: Make, begin: Begin) -> None:
    f = make(9)
    transfer, commit, _ = begin(f)
    fs.truncate(f, 5, 1.0)
    assert counts(fs).pages + counts(fs).host_pages == 6, "both ends are kept to the end of the move"
    commit()
    assert (f.inode.table, fs.tokens(f)) == (transfer.entries_to[:2], [0, 1, 2, 3, 4])
    assert counts(fs).pages + counts(fs).host_pages == 2


def test_a_file_that_is_emptied_meanwhile_is_an_empty_file(fs: Kvfs, make: Make, begin: Begin) -> None:
    f = make(9)
    _, commit, _ = begin(f)
    fs.truncate(f, 0, 1.0)
    assert fs.residency(f) is Residency.MOVING
    commit()
    assert (fs.residency(f), counts(fs).pages, counts(fs).host_pages) == (Residency.RESIDENT, 0, 0)


def test_a_file_that_goes_meanwhile_leaves_nothing(fs: Kvfs, make: Make, begin: Begin) -> None:
    f = make(9)
    transfer, commit, _ = begin(f)
    fs.close(f, 1.0)
    assert (transfer.members, counts(fs).inodes) == ({}, 0)
    assert counts(fs).pages + counts(fs).host_pages == 6
    commit()
    assert (counts(fs).pages, counts(fs).host_pages, counts(fs).transfers) == (0, 0, 0)
