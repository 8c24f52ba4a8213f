from collections.abc import Callable

import pytest

from kvfs.access import OPERATOR, Who
from kvfs.fs import Kvfs
from kvfs.inode import N_EVENTS, Inode, Residency
from kvfs.openfile import OpenFile
from sdk.abi.errors import Busy, CrossDevice, InvalidArgument, KernelPanic, NoDevice
from sdk.abi.values import FileKind, Stat

Make = Callable[[int], OpenFile]


def test_stat_of_a_file(fs: Kvfs, make: Make) -> None:
    f = make(9)
    child = fs.fork(f, "/child", who=Who("bob", root=True), now=3.0)
    assert fs.fstat(child) == fs.stat("/child", who=OPERATOR, now=1.0)
    assert fs.stat("/child", who=OPERATOR, now=1.0) == Stat(
        ino=child.inode.ino,
        kind=FileKind.FILE,
        n_tokens=9,
        n_resident=9,
        n_pages=3,
        n_host_pages=0,
        n_shared_pages=3,
        n_links=1,
        n_open=1,
        owner="bob",
        mode=0o755,
        worker="w0",
        created_s=3.0,
        modified_s=3.0,
        group="ann",
        used_s=3.0,
        n_opens=1,
    )
    assert (fs.fstat(f).created_s, fs.fstat(f).modified_s, fs.fstat(f).n_links) == (0.0, 1.0, 0)


def test_a_file_without_pages_is_on_no_worker_and_may_be_placed_anew(fs: Kvfs) -> None:
    fs.add_device("w1", n_pages=8, page_size=4)
    f = fs.create(None, who=Who("ann", root=True), now=0.0)
    assert fs.device_of(f) is None
    for device in ("w0", "w1", "w1"):
        fs.place(f, device)
        assert (fs.device_of(f), fs.fstat(f).worker) == (device, None)
    assert [usage.n_files for usage in fs.devices().values()] == [0, 1]
    with pytest.raises(NoDevice, match="choose one of"):
        fs.place(f, "w2")


def test_a_file_with_pages_stays_where_it_is(fs: Kvfs, make: Make) -> None:
    fs.add_device("w1", n_pages=8, page_size=4)
    f = make(1)
    fs.place(f, "w0")
    with pytest.raises(CrossDevice, match="on w0, not on w1"):
        fs.place(f, "w1")
    fs.truncate(f, 0, 2.0)
    fs.place(f, "w1")
    assert fs.device_of(f) == "w1"


def test_a_file_whose_first_batch_is_in_flight_stays_where_it_is(fs: Kvfs, make: Make) -> None:
    fs.add_device("w1", n_pages=8, page_size=4)
    f = make(0)
    claim = fs.claim(f)
    fs.place(f, "w0")
    lease = fs.lease(claim, [1])
    with pytest.raises(Busy):
        fs.place(f, "w1")
    fs.abandon(lease)
    fs.place(f, "w1")


def test_truncation_frees_the_pages_beyond_and_takes_the_tail(fs: Kvfs, make: Make) -> None:
    f = make(9)
    fs.truncate(f, 9, 5.0)
    assert (fs.tail_valid(f), fs.fstat(f).modified_s) == (True, 1.0)
    fs.truncate(f, 4, 5.0)
    assert (fs.tokens(f), fs.positions(f), fs.fstat(f).n_pages) == ([0, 1, 2, 3], [0, 1, 2, 3], 1)
    assert (fs.tail_valid(f), fs.fstat(f).modified_s) == (False, 5.0)
    fs.truncate(f, 0, 6.0)
    assert (fs.length(f), fs.next_position(f), fs.fstat(f).n_pages, fs.device_of(f)) == (0, 0, 0, "w0")


@pytest.mark.parametrize("n", [-1, 10])
def test_truncation_does_not_lengthen(fs: Kvfs, make: Make, n: int) -> None:
    with pytest.raises(InvalidArgument, match="this file has 9"):
        fs.truncate(make(9), n, 1.0)


def test_stat_of_a_file_that_is_in_both_tiers(fs: Kvfs, make: Make, append: Callable[..., None]) -> None:
    f = make(6)
    child = fs.fork(f, None, who=Who("bob", root=True), now=3.0)
    append(child, 5)
    move = fs.swap_out([child.inode.ino], 4.0)
    assert move is not None
    fs.commit_move(move, 4.0)
    stat = fs.fstat(child)
    assert (stat.n_tokens, stat.n_resident, stat.n_pages, stat.n_host_pages) == (11, 4, 1, 2)
    assert (stat.n_shared_pages, stat.worker) == (1, "w0")


def test_a_file_without_its_kv_can_be_used_as_a_file(fs: Kvfs, make: Make) -> None:
    f = make(5)
    assert fs.drop([f.inode.ino], 2.0) == 2
    assert (fs.tokens(f), fs.tail_valid(f), fs.device_of(f)) == ([0, 1, 2, 3, 4], False, None)
    assert (fs.fstat(f).n_resident, fs.fstat(f).n_pages, fs.fstat(f).worker) == (0, 0, None)
    child = fs.fork(f, "/child", who=Who("ann", root=True), now=3.0)
    assert (fs.residency(child), fs.tokens(child)) == (Residency.PARTIAL, [0, 1, 2, 3, 4])
    with pytest.raises(Busy, match="has to be computed again first"):
        fs.lease_tail(f)
    fs.truncate(f, 2, 3.0)
    assert fs.residency(f) is Residency.PARTIAL
    fs.truncate(f, 0, 3.0)
    assert (fs.residency(f), fs.device_of(f)) == (Residency.RESIDENT, None)


def test_an_empty_file_loses_nothing_with_its_device(fs: Kvfs, make: Make) -> None:
    f = make(0)
    fs.remove_device("w0", now=2.0)
    assert (fs.residency(f), fs.device_of(f)) == (Residency.RESIDENT, None)


def test_a_file_without_pages_is_placed_where_one_likes_when_nothing_has_it(fs: Kvfs, make: Make) -> None:
    fs.add_device("w1", n_pages=8, page_size=4)
    f = make(5)
    fs.drop([f.inode.ino], 2.0)
    fs.place(f, "w0")
    lease = fs.lease_rebuild(f, 2)
    with pytest.raises(Busy):
        fs.place(f, "w1")
    fs.abandon(lease)
    fs.place(f, "w1")
    g = make(1)
    migration = fs.migrate([g.inode.ino], "w1", 2.0)
    fs.truncate(g, 0, 3.0)
    with pytest.raises(Busy, match="or a move of this file is in flight"):
        fs.place(g, "w1")
    fs.commit_migration(migration, 4.0)
    assert fs.device_of(g) == "w1"


def test_a_panic_tells_the_story_of_the_inode(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    fs.release(claim, 2.5)
    with pytest.raises(
        KernelPanic,
        match=r"file #2: a released claim is used \[5 tokens, 5 of them in 2 pages, resident, w0; .* 2\.500 release\]",
    ):
        fs.release(claim, 2.5)


def test_a_story_is_bounded() -> None:
    inode = Inode(2, Who("ann"), 0.0)
    for i in range(1000):
        inode.note(f"event {i}")
    assert len(inode.story) == N_EVENTS
    assert "event 999" in str(inode.panic("what"))
