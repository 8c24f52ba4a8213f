from collections.abc import Callable
from typing import Any

import pytest

from kvfs.access import OPERATOR, Who
from kvfs.fs import Kvfs
from kvfs.fsck import check, counts
from kvfs.inode import Residency
from kvfs.openfile import OpenFile
from kvfs.pages import DeviceUsage
from kvfs.tiers import FileFacts
from sdk.abi.errors import (
    AccessDenied,
    BadFile,
    Busy,
    FileExists,
    KernelPanic,
    NoDevice,
    QuotaExceeded,
)
from sdk.abi.values import OpenMode

Make = Callable[[int], OpenFile]
Append = Callable[[OpenFile, int], None]
ANN: dict[str, Any] = {"who": Who("ann", root=True), "now": 1.0}


# --- handles ---


def test_a_file_lives_as_long_as_a_name_or_a_handle(fs: Kvfs, append: Append) -> None:
    f = fs.create("/a", **ANN)
    append(f, 5)
    fs.unlink("/a", who=OPERATOR, now=2.0)
    assert (fs.length(f), fs.readdir("/", who=OPERATOR, now=1.0)) == (5, [])
    fs.close(f, 3.0)
    assert (counts(fs).inodes, counts(fs).pages) == (0, 0)


def test_a_named_file_persists_when_it_is_closed(fs: Kvfs, append: Append) -> None:
    f = fs.create("/a", **ANN)
    append(f, 5)
    fs.close(f, 2.0)
    again = fs.open("/a", OpenMode.READ, who=Who("bob", root=True), now=3.0)
    assert (fs.tokens(again), fs.tail_valid(again)) == ([0, 1, 2, 3, 4], True)


def test_the_second_close_is_refused(fs: Kvfs, make: Make) -> None:
    f = make(1)
    fs.close(f, 1.0)
    for use in (lambda: fs.close(f, 1.0), lambda: fs.length(f), lambda: fs.fork(f, None, **ANN)):
        with pytest.raises(BadFile):
            use()


def test_only_the_owner_writes(fs: Kvfs) -> None:
    fs.create("/a", **ANN)
    with pytest.raises(AccessDenied, match="belongs to 'ann' .* may not write it: open it with mode 'r', and fork it"):
        fs.open("/a", OpenMode.WRITE, who=Who("bob"), now=1.0)
    f = fs.open("/a", OpenMode.READ, who=Who("bob"), now=1.0)
    with pytest.raises(AccessDenied):
        fs.truncate(f, 0, 1.0)
    assert fs.fstat(fs.fork(f, None, who=Who("bob"), now=1.0)).owner == "bob"


def test_create_on_a_device_that_is_not_there_leaves_no_file(fs: Kvfs) -> None:
    with pytest.raises(NoDevice):
        fs.create("/a", who=Who("ann", root=True), now=1.0, device="w9")
    assert counts(fs).inodes == 0


def test_the_number_of_files_is_limited() -> None:
    fs = Kvfs(max_files=3)
    fs.mkdir("/d", **ANN)
    f = fs.create(None, **ANN)
    fs.create("/d/a", **ANN)
    for use in (lambda: fs.create("/b", **ANN), lambda: fs.mkdir("/e", **ANN), lambda: fs.fork(f, None, **ANN)):
        with pytest.raises(QuotaExceeded, match="there are 3 files"):
            use()
    fs.close(f, 1.0)
    fs.mkdir("/e", **ANN)
    assert check(fs) == []


def test_slices_are_those_of_a_list(fs: Kvfs, make: Make) -> None:
    f = make(5)
    for start, stop in [(0, None), (2, None), (1, 3), (-2, None), (0, -1), (7, 9)]:
        assert fs.tokens(f, start, stop) == [0, 1, 2, 3, 4][start:stop]
        assert fs.positions(f, start, stop) == [0, 1, 2, 3, 4][start:stop]


# --- forks ---


def test_a_fork_shares_pages_until_one_of_the_two_writes(fs: Kvfs, make: Make, append: Append) -> None:
    f = make(5)
    child = fs.fork(f, None, **ANN)
    assert (counts(fs).pages, fs.tokens(child), fs.tail_valid(child)) == (2, [0, 1, 2, 3, 4], True)
    append(child, 1)
    assert (counts(fs).pages, fs.length(f), fs.length(child)) == (3, 5, 6)
    append(f, 1)
    assert counts(fs).pages == 3, "f is the only holder of its last page by now, and writes in place"
    fs.truncate(child, 2, 2.0)
    assert (fs.tokens(f), fs.tokens(child)) == ([0, 1, 2, 3, 4, 5], [0, 1])


def test_forks_outlive_their_parent(fs: Kvfs, make: Make) -> None:
    f = make(9)
    children = [fs.fork(f, None, **ANN) for _ in range(3)]
    fs.close(f, 2.0)
    assert [fs.tokens(child) for child in children] == [list(range(9))] * 3
    assert counts(fs).pages == 3


def test_a_fork_of_an_unplaced_file_is_unplaced(fs: Kvfs) -> None:
    child = fs.fork(fs.create(None, **ANN), None, **ANN)
    assert (fs.device_of(child), fs.length(child)) == (None, 0)


def test_a_fork_in_the_middle_of_a_write_sees_what_is_committed(fs: Kvfs, make: Make) -> None:
    f = make(5)
    lease = fs.lease(fs.claim(f), [9, 9, 9, 9])
    child = fs.fork(f, None, **ANN)
    assert (fs.tokens(child), fs.tail_valid(child)) == ([0, 1, 2, 3, 4], True)
    fs.commit(lease, 2.0)
    assert (fs.length(f), fs.length(child), fs.tail_valid(f)) == (9, 5, True)
    write = fs.lease(fs.claim(child), [7])
    assert write.copies == [(f.inode.table[1], write.pages[1])]


def test_a_fork_in_the_middle_of_a_write_over_the_tail_has_none(fs: Kvfs, make: Make) -> None:
    f = make(5)
    lease = fs.lease(fs.claim(f), [9, 9])
    child = fs.fork(f, None, **ANN)
    fs.commit(lease, 2.0)
    assert (fs.tail_valid(f), fs.tail_valid(child)) == (True, False)


@pytest.mark.parametrize(("n", "shared"), [(4, False), (5, True)])
def test_a_fork_keeps_the_tail_when_the_write_goes_elsewhere(fs: Kvfs, make: Make, n: int, shared: bool) -> None:
    f = make(n)
    if shared:
        fs.fork(f, None, **ANN)
    fs.lease(fs.claim(f), [9])
    assert fs.tail_valid(f)
    assert fs.tail_valid(fs.fork(f, None, **ANN))


def test_forks_that_grow_side_by_side_keep_their_runs() -> None:
    fs = Kvfs()
    fs.add_device("w0", n_pages=4096, page_size=4)
    f = fs.create(None, who=Who("ann", root=True), now=0.0, device="w0")
    claim = fs.claim(f)
    fs.commit(fs.lease(claim, range(10)), 0.0)
    forks = [fs.fork(f, None, **ANN) for _ in range(8)]
    claims = [fs.claim(child) for child in forks]
    for token in range(200):
        for claim in claims:
            fs.commit(fs.lease(claim, [token]), 1.0)
    for child in forks:
        private = child.inode.table[2:]
        assert private.tolist() == list(range(private[0], private[0] + len(private)))


# --- devices ---


def test_devices_come_and_go(fs: Kvfs, make: Make) -> None:
    make(5)
    assert fs.devices() == {"w0": DeviceUsage(32, 30, 1, page_size=4, n_host_pages=8, n_host_free=8)}
    with pytest.raises(FileExists):
        fs.add_device("w0", n_pages=1, page_size=1)
    fs.remove_device("w0", now=2.0)
    assert fs.devices() == {}
    with pytest.raises(NoDevice):
        fs.remove_device("w0", now=2.0)


def test_removing_a_device_ends_its_leases(fs: Kvfs, make: Make) -> None:
    f, g = make(5), make(5)
    claim = fs.claim(f)
    first, second, reading = fs.lease(claim, [1]), fs.lease(claim, [2]), fs.lease_tail(g)
    fs.remove_device("w0", now=2.0)
    assert counts(fs).leases == 0
    for lease in (first, second, reading):
        fs.abandon(lease)
        with pytest.raises(KernelPanic):
            fs.abandon(lease)
    with pytest.raises(Busy, match="has to be computed again first"):
        fs.lease(claim, [1])
    fs.release(claim, 3.0)


def test_a_result_that_comes_after_the_device_is_gone_is_a_bug(fs: Kvfs, make: Make) -> None:
    lease = fs.lease(fs.claim(make(5)), [1])
    fs.remove_device("w0", now=2.0)
    with pytest.raises(KernelPanic, match="committed that is lost"):
        fs.commit(lease, 2.0)


def test_a_file_held_by_nothing_but_a_lease_goes_with_its_device(fs: Kvfs, make: Make) -> None:
    f = make(5)
    lease = fs.lease_tail(f)
    fs.close(f, 1.0)
    fs.remove_device("w0", now=2.0)
    assert counts(fs).inodes == 0
    fs.abandon(lease)


def test_a_file_outlives_its_device_and_is_computed_again_on_another(fs: Kvfs, make: Make) -> None:
    f = make(9)
    fs.fork(f, "/child", **ANN)
    fs.remove_device("w0", now=2.0)
    assert (fs.tokens(f), fs.residency(f), fs.device_of(f)) == (list(range(9)), Residency.PARTIAL, None)
    child = fs.fork(f, None, **ANN)
    fs.add_device("w1", n_pages=8, page_size=4)
    fs.place(f, "w1")
    claim = fs.claim(f)
    with pytest.raises(Busy, match="has to be computed again first"):
        fs.lease(claim, [1])
    fs.commit(fs.lease_rebuild(f, 100), 3.0)
    assert (fs.residency(f), fs.tail_valid(f), fs.device_of(f)) == (Residency.RESIDENT, True, "w1")
    fs.commit(fs.lease(claim, [9]), 3.0)
    fs.place(child, "w1")
    assert fs.adopt(child) == 8
    assert counts(fs).pages == 3


def test_a_claim_survives_the_loss_of_a_file_without_tokens(fs: Kvfs, make: Make) -> None:
    f = make(0)
    claim = fs.claim(f)
    fs.lease(claim, [1])
    fs.remove_device("w0", now=2.0)
    assert (fs.residency(f), fs.device_of(f)) == (Residency.RESIDENT, None)
    fs.add_device("w1", n_pages=4, page_size=4)
    fs.place(claim, "w1")
    fs.commit(fs.lease(claim, [1]), 3.0)
    assert (fs.device_of(f), fs.tokens(f)) == ("w1", [1])


def test_removing_a_device_ends_its_moves(fs: Kvfs, make: Make) -> None:
    f, g = make(5), make(5)
    inner = fs.swap_out([f.inode.ino], 1.0)
    assert inner is not None
    fs.add_device("w1", n_pages=8, page_size=4)
    outer = fs.migrate([g.inode.ino], "w1", 1.0)
    fs.remove_device("w0", now=2.0)
    assert (fs.residency(f), fs.residency(g), fs.device_of(g)) == (Residency.PARTIAL, Residency.PARTIAL, None)
    assert fs.devices()["w1"].n_free == 8
    fs.abandon_move(inner)
    fs.abandon_migration(outer)
    with pytest.raises(KernelPanic, match="abandoned that is abandoned"):
        fs.abandon_move(inner)


def test_files_on_their_way_to_a_device_that_goes_stay_where_they_are(fs: Kvfs, make: Make) -> None:
    f = make(5)
    fs.add_device("w1", n_pages=8, page_size=4)
    migration = fs.migrate([f.inode.ino], "w1", 1.0)
    fs.remove_device("w1", now=2.0)
    assert (fs.residency(f), fs.device_of(f), fs.tail_valid(f)) == (Residency.RESIDENT, "w0", True)
    with pytest.raises(KernelPanic, match="committed that is lost"):
        fs.commit_migration(migration, 3.0)


# --- facts ---


def test_facts_of_the_files_on_a_device(fs: Kvfs, make: Make) -> None:
    f = fs.create("/a", who=Who("ann", root=True, pid=7), now=1.0, device="w0")
    fs.commit(fs.lease(fs.claim(f), range(6)), 3.0)
    fs.open("/a", OpenMode.READ, who=Who("bob", root=True, pid=9), now=4.0)
    fs.open("/a", OpenMode.READ, who=Who("bob", root=True, pid=9), now=4.0)
    fs.lease_tail(f)
    fs.create(None, **ANN)
    assert fs.placed("w0") == [FileFacts(f.inode.ino, (7, 9), 6, 6, 2, 0, True, 1, False, 4.0, f.inode.tenant)]
    with pytest.raises(NoDevice):
        fs.placed("w9")


def test_a_file_is_used_when_it_is_opened_forked_written_or_read(fs: Kvfs, append: Append) -> None:
    f = fs.create("/a", who=Who("ann", root=True), now=0.5, device="w0")

    def used_s() -> float:
        return fs.placed("w0")[0].used_s

    assert used_s() == 0.5
    append(f, 1)
    assert used_s() == 1.0
    fs.open("/a", OpenMode.READ, who=Who("bob", root=True), now=2.0)
    assert used_s() == 2.0
    fs.fork(f, None, who=Who("bob", root=True), now=3.0)
    assert used_s() == 3.0
    fs.commit(fs.lease_tail(f), 4.0)
    assert used_s() == 4.0


def test_a_family_are_the_files_forked_from_one_another(fs: Kvfs, make: Make) -> None:
    f, stranger = make(1), make(1)
    child = fs.fork(f, None, **ANN)
    grandchild = fs.fork(child, None, **ANN)
    fs.close(f, 2.0)
    assert fs.family(child) == fs.family(grandchild) != fs.family(stranger)


# --- the claimed ---


def test_a_claimed_file_is_not_truncated_by_others(fs: Kvfs, make: Make) -> None:
    f = make(5)
    fs.claim(f)
    with pytest.raises(Busy, match="wait for it, or truncate a fork"):
        fs.truncate(f, 5, 1.0)
