"""What leaves a device and comes back, and for whom."""

from collections.abc import Callable

import pytest

from kvfs.access import Who
from kvfs.fs import Kvfs
from kvfs.fsck import counts
from kvfs.inode import Residency
from kvfs.moves import Move, MoveKind
from kvfs.openfile import OpenFile
from kvfs.table import is_host
from sdk.abi.errors import Busy, CrossDevice, KernelPanic, NoDevice, NoSpace

Make = Callable[[int], OpenFile]
Append = Callable[[OpenFile, int], None]


def out(fs: Kvfs, *files: OpenFile) -> Move:
    move = fs.swap_out([f.inode.ino for f in files], 1.0)
    assert move is not None
    fs.commit_move(move, 1.0)
    return move


def tiers(f: OpenFile) -> str:
    """`d` for each page on the device, `h` for each in host memory."""
    return "".join("h" if is_host(entry) else "d" for entry in f.inode.table)


def fork(fs: Kvfs, f: OpenFile) -> OpenFile:
    return fs.fork(f, None, who=Who("ann", root=True), now=1.0)


# --- out ---


def test_a_file_goes_out_and_comes_back_with_its_tail(fs: Kvfs, make: Make) -> None:
    f = make(9)
    table = f.inode.table
    assert fs.reclaimable([f.inode.ino]) == 3
    move = fs.swap_out([f.inode.ino], 1.0)
    assert move is not None
    assert (move.kind, move.device, [page for page, _ in move.pairs]) == (MoveKind.OUT, "w0", table.tolist())
    assert sorted(page for _, page in move.pairs) == [0, 1, 2]
    assert (fs.residency(f), counts(fs).pages, fs.devices()["w0"].n_host_free) == (Residency.MOVING, 3, 5)
    fs.commit_move(move, 2.0)
    assert (fs.residency(f), tiers(f), counts(fs).pages) == (Residency.SWAPPED, "hhh", 0)
    assert (fs.n_host_pages(f), fs.tail_valid(f), fs.tokens(f)) == (3, True, list(range(9)))
    back = fs.swap_in(f, 3.0)
    assert (back.kind, [page for page, _ in back.pairs]) == (MoveKind.IN, [page for _, page in move.pairs])
    fs.commit_move(back, 3.0)
    assert (fs.residency(f), tiers(f), counts(fs).host_pages) == (Residency.RESIDENT, "ddd", 0)
    fs.commit(fs.lease_tail(f), 4.0)


@pytest.mark.parametrize("kind", list(MoveKind))
def test_an_abandoned_move_changes_nothing(fs: Kvfs, make: Make, kind: MoveKind) -> None:
    f = make(9)
    if kind is MoveKind.IN:
        out(fs, f)
    before = (f.inode.table, counts(fs), fs.residency(f))
    move = fs.swap_out([f.inode.ino], 1.0) if kind is MoveKind.OUT else fs.swap_in(f, 1.0)
    assert move is not None
    fs.abandon_move(move)
    assert (f.inode.table, counts(fs), fs.residency(f)) == before
    uses: list[Callable[[], None]] = [lambda: fs.abandon_move(move), lambda: fs.commit_move(move, 1.0)]
    for use in uses:
        with pytest.raises(KernelPanic, match="that is abandoned"):
            use()


def test_what_others_compute_with_stays(fs: Kvfs, make: Make, append: Append) -> None:
    f = make(6)
    child = fork(fs, f)
    append(child, 3)
    assert fs.reclaimable([child.inode.ino]) == 2
    out(fs, child)
    assert (tiers(child), tiers(f), fs.residency(f)) == ("dhh", "dd", Residency.RESIDENT)
    append(f, 1)
    assert fs.reclaimable([f.inode.ino]) == 2, "nobody beside the one that is out already holds the first"
    out(fs, f)
    assert (tiers(f), tiers(child), counts(fs).pages) == ("hh", "hhh", 0)
    assert f.inode.table[0] == child.inode.table[0], "still shared, and moved once"


def test_files_that_share_leave_together(fs: Kvfs, make: Make) -> None:
    f = make(6)
    children = [fork(fs, f) for _ in range(3)]
    inos = [x.inode.ino for x in (f, *children)]
    assert [fs.reclaimable(inos[:n]) for n in range(5)] == [0, 0, 0, 0, 2]
    assert fs.swap_out(inos[:3], 1.0) is None
    assert fs.residency(f) is Residency.RESIDENT
    move = out(fs, f, *children)
    assert len(move.pairs) == 2
    fs.commit_move(fs.swap_in_ino(inos[0], 1.0), 1.0)
    assert {fs.residency(x) for x in (f, *children)} == {Residency.RESIDENT}
    assert fs.fstat(f).n_shared_pages == 2


def test_a_reader_keeps_pages_where_they_are(fs: Kvfs, make: Make) -> None:
    f = make(6)
    child = fork(fs, f)
    reading = fs.lease_tail(child)
    assert fs.reclaimable([f.inode.ino, child.inode.ino]) == 0
    assert fs.swap_out([f.inode.ino], 1.0) is None
    with pytest.raises(KernelPanic, match="and a batch or a move has it"):
        fs.swap_out([child.inode.ino], 1.0)
    fs.commit(reading, 1.0)
    assert fs.reclaimable([f.inode.ino, child.inode.ino]) == 2


def test_bystanders_on_another_device_have_nothing_to_do_with_it(fs: Kvfs, make: Make) -> None:
    fs.add_device("w1", n_pages=32, page_size=4)
    f = make(6)
    child = fork(fs, f)
    fs.drop([child.inode.ino], 1.0)
    fs.place(child, "w1")
    while fs.residency(child) is Residency.PARTIAL and child.inode.n_kv < 4:
        fs.commit(fs.lease_rebuild(child, 4), 1.0)
    out(fs, f)
    assert (tiers(f), tiers(child), fs.residency(child)) == ("hh", "d", Residency.PARTIAL)


def test_a_move_that_has_a_file_keeps_others_off(fs: Kvfs, make: Make) -> None:
    f = make(6)
    child = fork(fs, f)
    fs.truncate(child, 5, 1.0)
    move = fs.swap_out([f.inode.ino, child.inode.ino], 1.0)
    assert move is not None
    assert fs.reclaimable([f.inode.ino]) == 0
    claim = fs.claim(f)
    uses: list[Callable[[], object]] = [
        lambda: fs.lease(claim, [1]),
        lambda: fs.lease_tail(f),
        lambda: fs.lease_rebuild(f, 1),
    ]
    for use in uses:
        with pytest.raises(Busy, match="is being moved: wait"):
            use()
    with pytest.raises(Busy):
        fs.swap_in(child, 1.0)
    with pytest.raises(KernelPanic):
        fs.swap_out([f.inode.ino], 1.0)


def test_when_host_memory_is_full_nothing_changes(fs: Kvfs, make: Make) -> None:
    f = make(4 * 9)
    with pytest.raises(NoSpace, match="has 8 of its 8 pages free and 9 are needed"):
        fs.swap_out([f.inode.ino], 1.0)
    assert (fs.residency(f), fs.devices()["w0"].n_host_free) == (Residency.RESIDENT, 8)


def test_when_the_device_is_full_nothing_comes_back(fs: Kvfs, make: Make) -> None:
    f = make(8)
    out(fs, f)
    make(4 * 31)
    with pytest.raises(NoSpace):
        fs.swap_in(f, 1.0)
    assert (fs.residency(f), tiers(f)) == (Residency.SWAPPED, "hh")


def test_a_file_comes_back_beside_what_stayed(fs: Kvfs, make: Make, append: Append) -> None:
    f = make(4)
    child = fork(fs, f)
    append(child, 8)
    table = child.inode.table
    out(fs, child)
    fs.commit_move(fs.swap_in(child, 1.0), 1.0)
    assert child.inode.table == table


def test_there_must_be_something_to_bring_back(fs: Kvfs, make: Make) -> None:
    with pytest.raises(KernelPanic, match="none of its pages is in host memory"):
        fs.swap_in(make(4), 1.0)
    with pytest.raises(KernelPanic, match="there is no file #99"):
        fs.swap_in_ino(99, 1.0)


def test_files_without_pages_have_nothing_to_move(fs: Kvfs, make: Make) -> None:
    f, unplaced = make(0), fs.create(None, who=Who("ann", root=True), now=0.0)
    assert fs.swap_out([f.inode.ino, unplaced.inode.ino], 1.0) is None
    assert fs.reclaimable([]) == 0


def test_files_of_two_devices_do_not_move_together(fs: Kvfs, make: Make) -> None:
    fs.add_device("w1", n_pages=8, page_size=4)
    f, g = make(4), make(4)
    fs.commit_migration(fs.migrate([g.inode.ino], "w1", 1.0), 1.0)
    with pytest.raises(KernelPanic, match="together with files on w0"):
        fs.swap_out([f.inode.ino, g.inode.ino], 1.0)


def test_a_file_that_comes_back_brings_what_it_shares(fs: Kvfs, make: Make) -> None:
    f = make(9)
    out(fs, f)
    child = fork(fs, f)
    fs.truncate(f, 4, 1.0)
    assert (tiers(f), tiers(child)) == ("h", "hhh")
    back = fs.swap_in(f, 1.0)
    assert (len(back.pairs), fs.residency(child)) == (1, Residency.MOVING)
    fs.commit_move(back, 1.0)
    assert (tiers(f), tiers(child), fs.residency(child)) == ("d", "dhh", Residency.SWAPPED)


def test_a_file_is_in_one_move_at_a_time(fs: Kvfs, make: Make) -> None:
    f = make(9)
    half = fork(fs, f)
    fs.drop([half.inode.ino], 1.0)
    fs.place(half, "w0")
    assert fs.adopt(half) == 8
    fs.truncate(f, 4, 1.0)
    out(fs, f)
    assert (tiers(f), tiers(half), fs.residency(half)) == ("h", "hd", Residency.SWAPPED)
    move = fs.swap_out([half.inode.ino], 1.0)
    assert move is not None
    assert (fs.residency(half), fs.residency(f)) == (Residency.MOVING, Residency.SWAPPED)
    with pytest.raises(Busy, match="a file that shares pages with this one is being moved"):
        fs.swap_in(f, 1.0)
    fs.commit_move(move, 1.0)
    fs.commit_move(fs.swap_in(f, 1.0), 1.0)
    assert (tiers(f), tiers(half), fs.residency(f)) == ("d", "dh", Residency.RESIDENT)


# --- from device to device ---


def test_files_migrate_with_all_their_pages_and_tails(fs: Kvfs, make: Make, append: Append) -> None:
    fs.add_device("w1", n_pages=8, page_size=4)
    f = make(6)
    child = fork(fs, f)
    append(child, 6)
    migration = fs.migrate([f.inode.ino, child.inode.ino], "w1", 1.0)
    assert (migration.device_from, migration.device_to) == ("w0", "w1")
    assert list(migration.entries_from) == list(dict.fromkeys([*f.inode.table, *child.inode.table]))
    assert len(migration.entries_to) == 4 == 8 - fs.devices()["w1"].n_free
    assert (fs.device_of(f), fs.residency(f)) == ("w0", Residency.MOVING)
    fs.commit_migration(migration, 2.0)
    assert (fs.device_of(f), fs.device_of(child), fs.devices()["w0"].n_free) == ("w1", "w1", 32)
    assert (fs.residency(f), fs.tail_valid(f), fs.fstat(f).n_shared_pages) == (Residency.RESIDENT, True, 1)
    assert [usage.n_files for usage in fs.devices().values()] == [0, 2]
    append(f, 1)


def test_pages_in_host_memory_migrate_and_stay_there(fs: Kvfs, make: Make) -> None:
    fs.add_device("w1", n_pages=8, page_size=4, n_host_pages=8)
    f = make(6)
    child = fork(fs, f)
    out(fs, f, child)
    fs.commit_migration(fs.migrate([f.inode.ino, child.inode.ino], "w1", 1.0), 2.0)
    assert (tiers(f), tiers(child), fs.device_of(child)) == ("hh", "hh", "w1")
    assert (fs.devices()["w0"].n_host_free, fs.devices()["w1"].n_host_free) == (8, 6)
    fs.commit_move(fs.swap_in(f, 3.0), 3.0)
    assert (tiers(child), fs.residency(child), fs.tail_valid(child)) == ("dd", Residency.RESIDENT, True)


@pytest.mark.parametrize(
    ("n_pages", "n_host_pages", "there"),
    [
        (9, 9, ("ddd", "hh")),
        (3, 9, ("ddd", "hh")),
        (4, 1, ("ddd", "dh")),
        (9, 0, ("ddd", "dd")),
        (3, 1, None),
        (2, 9, None),
    ],
)
def test_where_a_tier_is_full_pages_migrate_to_the_other(
    fs: Kvfs, make: Make, n_pages: int, n_host_pages: int, there: tuple[str, str] | None
) -> None:
    fs.add_device("w1", n_pages=n_pages, page_size=4, n_host_pages=n_host_pages)
    f, swapped = make(12), make(8)
    out(fs, swapped)
    if there is None:
        with pytest.raises(NoSpace):
            fs.migrate([f.inode.ino, swapped.inode.ino], "w1", 1.0)
        assert fs.devices()["w1"].n_free == n_pages
        return
    fs.commit_migration(fs.migrate([f.inode.ino, swapped.inode.ino], "w1", 1.0), 2.0)
    assert (tiers(f), tiers(swapped)) == there


def test_what_is_shared_with_those_who_stay_is_copied(fs: Kvfs, make: Make) -> None:
    fs.add_device("w1", n_pages=8, page_size=4)
    f = make(6)
    child = fork(fs, f)
    migration = fs.migrate([child.inode.ino], "w1", 1.0)
    lease = fs.lease(fs.claim(f), [7])
    assert lease.copies, "while it is fetched nobody writes the page"
    fs.commit_migration(migration, 2.0)
    assert (fs.device_of(f), fs.device_of(child), counts(fs).pages) == ("w0", "w1", 5)


def test_a_file_without_its_kv_migrates_as_it_is(fs: Kvfs, make: Make) -> None:
    fs.add_device("w1", n_pages=8, page_size=4)
    f, empty = make(6), make(0)
    fs.drop([f.inode.ino], 1.0)
    fs.place(f, "w0")
    fs.commit(fs.lease_rebuild(f, 5), 1.0)
    fs.commit_migration(fs.migrate([f.inode.ino, empty.inode.ino], "w1", 1.0), 1.0)
    assert (fs.device_of(f), f.inode.n_kv, fs.residency(f)) == ("w1", 5, Residency.PARTIAL)
    assert fs.device_of(empty) == "w1"


def test_an_abandoned_migration_changes_nothing(fs: Kvfs, make: Make) -> None:
    fs.add_device("w1", n_pages=8, page_size=4)
    f = make(6)
    fs.abandon_migration(fs.migrate([f.inode.ino], "w1", 1.0))
    assert (fs.device_of(f), fs.residency(f), fs.devices()["w1"].n_free) == ("w0", Residency.RESIDENT, 8)


def test_what_cannot_migrate(fs: Kvfs, make: Make) -> None:
    fs.add_device("w1", n_pages=2, page_size=4)
    fs.add_device("w2", n_pages=8, page_size=16)
    f, read = make(9), make(5)
    unplaced = fs.create(None, who=Who("ann", root=True), now=0.0)
    fs.lease_tail(read)
    with pytest.raises(NoSpace):
        fs.migrate([f.inode.ino], "w1", 1.0)
    with pytest.raises(NoDevice):
        fs.migrate([f.inode.ino], "w9", 1.0)
    with pytest.raises(CrossDevice, match="pages of w0 do not fit w2: drop these files"):
        fs.migrate([f.inode.ino], "w2", 1.0)
    for files, device in (([f], "w0"), ([unplaced], "w1"), ([f, unplaced], "w1"), ([read], "w1")):
        with pytest.raises(KernelPanic):
            fs.migrate([x.inode.ino for x in files], device, 1.0)
    with pytest.raises(KernelPanic, match="no file is to be migrated"):
        fs.migrate([], "w1", 1.0)
    assert counts(fs).transfers == 0


# --- given up ---


def test_what_is_dropped_is_free_but_for_what_others_share(fs: Kvfs, make: Make, append: Append) -> None:
    f = make(6)
    child = fork(fs, f)
    append(child, 6)
    assert fs.drop([child.inode.ino], 2.0) == 2
    assert (fs.residency(child), fs.device_of(child), fs.residency(f)) == (Residency.PARTIAL, None, Residency.RESIDENT)
    out(fs, f)
    assert fs.drop([f.inode.ino, f.inode.ino], 2.0) == 2, "pages of main memory count, too"
    assert counts(fs).host_pages == 0


def test_a_file_in_a_batch_is_not_dropped(fs: Kvfs, make: Make) -> None:
    f, g = make(6), make(6)
    fs.lease_tail(f)
    with pytest.raises(KernelPanic, match="and a batch has it"):
        fs.drop([g.inode.ino, f.inode.ino], 2.0)
    assert fs.residency(g) is Residency.RESIDENT


def test_a_file_that_is_dropped_leaves_its_move(fs: Kvfs, make: Make) -> None:
    f = make(6)
    child = fork(fs, f)
    move = fs.swap_out([f.inode.ino, child.inode.ino], 1.0)
    assert move is not None
    assert fs.drop([f.inode.ino], 1.0) == 0
    assert (fs.residency(f), fs.residency(child)) == (Residency.PARTIAL, Residency.MOVING)
    fs.commit_move(move, 2.0)
    assert (tiers(f), tiers(child)) == ("", "hh")


# --- what it costs ---


def test_byte_seconds_follow_the_kv_through_all_tiers() -> None:
    """Integrated by hand: three pages of 100 bytes, shared, swapped, dropped, computed again, closed, unlinked."""
    fs = Kvfs()
    fs.add_device("w0", n_pages=16, page_size=4, n_host_pages=16, page_bytes=100)
    ann, bob = Who("ann", root=True, pid=1), Who("bob", root=True, pid=2)

    def used(now: float) -> list[float]:
        bills = [fs.quota("ann", now).kv_byte_s, fs.quota("bob", now).kv_byte_s]
        return bills + [fs.quotas.process(pid).kv_byte_s for pid in (1, 2)]

    f = fs.create("/a", who=ann, now=0.0, device="w0")
    claim = fs.claim(f)
    fs.commit(fs.lease(claim, range(10)), 0.0)
    fs.release(claim, 0.0)
    assert used(10.0) == [3000, 0, 3000, 0]
    child = fs.fork(f, None, who=bob, now=10.0)
    assert used(20.0) == [6000, 3000, 6000, 3000], "shared pages count for each"
    move = fs.swap_out([f.inode.ino, child.inode.ino], 20.0)
    assert move is not None
    fs.commit_move(move, 22.0)
    assert used(30.0) == [9000, 6000, 9000, 6000], "main memory counts as the device does"
    fs.commit_move(fs.swap_in(f, 30.0), 31.0)
    fs.drop([f.inode.ino], 40.0)
    assert used(50.0) == [12000, 12000, 12000, 12000], "what is dropped is free"
    fs.place(f, "w0")
    fs.commit(fs.lease_rebuild(f, 10), 50.0)
    fs.close(f, 60.0)
    assert used(70.0) == [18000, 18000, 15000, 18000], "who has a file open pays while he has, its owner while it is"
    fs.unlink("/a", who=ann, now=70.0)
    fs.close(child, 80.0)
    fs.end_process(bob, 80.0)
    assert 2 not in fs.quotas.processes
    assert used(90.0)[:2] == [18000, 21000]
