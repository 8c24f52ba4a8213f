import errno
from array import array

import pytest

from kvfs.store.store import Commit, Store
from kvfs.store.tree import ROOT, SetDirectory, SetFile, SetName
from sdk.abi.errors import NoSpace
from tests.kvfs.store.crashes import all_points
from tests.kvfs.store.fuzz import fuzz
from tests.kvfs.store.simdisk import SimDisk
from tests.kvfs.store.workload import GEOMETRY, Workload, attributes, finish, found


def save(store, ino, tokens, name="a", n_kv=0):
    positions = array("I", range(len(tokens)))
    writer = store.begin(ino, GEOMETRY, array("I", tokens), positions, n_kv, False)
    writer.add(bytes(range(24)) * writer.head.n_pages)
    finish(writer)
    file = SetFile(ino, attributes(0o644), writer.version, writer.n_bytes, len(tokens))
    store.commit([Commit([file, SetName(ROOT, name, ino)], writer)])


def test_every_crash_point_of_some_workloads():
    assert sum(all_points(seed, 12) for seed in range(20)) > 1000


def test_mutated_files_are_never_read_wrong():
    outcomes = fuzz(10_000, 0)
    assert min(outcomes[kind] for kind in ("head", "page", "journal", "intact")) > 100


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("for_ever", [False, True])
def test_an_error_at_the_nth_call(error, for_ever):
    """For every n: the caller is told, what was acknowledged stays, and the store goes on when the disk does."""
    n_calls = 0
    for at in range(1, 80):
        disk = SimDisk()
        workload = Workload(5, Store(disk))
        disk.fail_at, disk.error, disk.fails_for_ever = at + disk.n_calls, error, for_ever
        workload.run(14)
        n_calls = disk.n_calls
        doubt = workload.possible
        assert found(Store(SimDisk(disk.files()))) in doubt
        if for_ever:
            disk.fail_at = None
        workload.run(3)
        while len(workload.possible) > 1:  # until an operation succeeds
            workload.step()
        after = Store(SimDisk(disk.files()))
        assert found(after) == workload.state
        assert set(after.disk.listdir()) - {"journal"} == {f"{file.version}.kv" for file in after.tree.files.values()}
    assert 30 < n_calls < 80


def test_a_failed_save_leaves_the_old_version():
    disk = SimDisk()
    store = Store(disk)
    save(store, 2, [1, 2, 3])
    for at in range(1, 8):
        disk.fail_at = disk.n_calls + at
        with pytest.raises(OSError, match="the disk says no"):
            save(store, 2, [4, 5])
        disk.fail_at = None
        assert list(store.read_start(store.tree.files[2].version).tokens) == [1, 2, 3]
        killed = Store(SimDisk(disk.files()))  # which may find the record, though nobody knows whether it is on disk
        assert list(killed.read_start(killed.tree.files[2].version).tokens) in ([1, 2, 3], [4, 5])
    save(store, 2, [4, 5])
    assert list(store.read_start(store.tree.files[2].version).tokens) == [4, 5]
    assert len(disk.names) == 2


def test_files_that_are_committed_together_share_the_syncs():
    n_calls = {}
    for n in (1, 10):
        disk = SimDisk()
        store = Store(disk)
        save(store, 1000, [1], "first")
        commits = []
        for ino in range(2, 2 + n):
            writer = store.begin(ino, GEOMETRY, array("I", [ino]), array("I", [0]), 0, False)
            finish(writer)
            file = SetFile(ino, attributes(0o644), writer.version, writer.n_bytes, 1)
            commits.append(Commit([file, SetName(ROOT, f"{ino}", ino)], writer))
        disk.n_calls = 0
        store.commit(commits)
        n_calls[n] = disk.n_calls
        assert len(found(Store(SimDisk(disk.files())))) == n + 1
    assert n_calls[1] == n_calls[10] == 3  # the directory, the record, its sync


def test_the_size_is_limited():
    store = Store(SimDisk(), 1000)
    save(store, 2, [1] * 8, n_kv=8)
    with pytest.raises(NoSpace, match="--kv-dir-size is 1000 bytes"):
        save(store, 3, [1] * 100, "b")
    save(store, 2, [2] * 70)  # takes the place of the first
    with pytest.raises(NoSpace):
        store.begin(3, GEOMETRY, array("I", [1] * 30), array("I", [1] * 30), 0, False)


def test_versions_being_written_count():
    store = Store(SimDisk(), 1000)
    tokens = array("I", [1] * 40)
    first = store.begin(2, GEOMETRY, tokens, tokens, 0, False)
    with pytest.raises(NoSpace):
        store.begin(3, GEOMETRY, tokens, tokens, 0, False)
    first.discard()
    store.begin(3, GEOMETRY, tokens, tokens, 0, False).discard()
    assert store.n_bytes == 0
    assert store.disk.listdir() == []


def test_starting_writes_nothing():
    disk = SimDisk()
    save(Store(disk), 2, [1])
    before, disk.n_calls = disk.files(), 0
    Store(disk)
    assert disk.files() == before
    assert disk.n_calls == 3  # open, read, list


def test_files_are_kept_when_the_journal_is_damaged():
    disk = SimDisk()
    store = Store(disk)
    save(store, 2, [1], "a")
    save(store, 3, [2], "b")
    journal = bytearray(disk.names["journal"].data)
    journal[60] ^= 1  # in the first record
    files = disk.files() | {"journal": bytes(journal)}
    disk = SimDisk(files)
    store = Store(disk)
    assert store.recovered.n_damaged > 0
    assert store.recovered.n_lost == 1
    assert sorted(disk.names) == ["2.kv", "journal", "lost-1.kv"]
    assert list(found(store)) == ["/b"]


@pytest.mark.parametrize("left", ["torn", "empty", "zeros", "gone"])
def test_nothing_is_removed_when_the_journal_is_not_whole(left):
    disk = SimDisk()
    store = Store(disk)
    for ino, name in enumerate("abc", 2):
        save(store, ino, [ino], name)
    files = disk.files()
    journal = files.pop("journal")
    kept = {"torn": journal[:-5], "empty": b"", "zeros": bytes(len(journal))}
    disk = SimDisk(files | ({"journal": kept[left]} if left in kept else {}))
    lost = ["lost-3.kv"] if left == "torn" else ["lost-1.kv", "lost-2.kv", "lost-3.kv"]
    for again in (False, True):
        store = Store(disk)
        assert store.recovered.n_lost == (0 if again else len(lost))
        assert [name for name in sorted(disk.names) if name.startswith("lost")] == lost
    save(store, 9, [9], "d")
    assert "4.kv" in disk.names, "the number of a file that is lost is not used again"
    assert [name for name in sorted(disk.names) if name.startswith("lost")] == lost


def test_a_journal_that_grows_is_made_short(monkeypatch):
    monkeypatch.setattr("kvfs.store.journal.SMALL_BYTES", 2000)
    disk = SimDisk()
    store = Store(disk)
    for i in range(200):
        save(store, 2, [i])
    assert len(disk.fds) == 1
    assert len(disk.names["journal"].data) < 3000
    assert list(Store(SimDisk(disk.files())).read_start(200).tokens) == [199]


def test_a_directory_and_what_is_in_it():
    disk = SimDisk()
    store = Store(disk)
    store.commit([Commit([SetDirectory(2, attributes(0o700)), SetName(ROOT, "d", 2)])])
    positions = array("I")
    writer = store.begin(3, GEOMETRY, positions, positions, 0, False)
    finish(writer)
    file = SetFile(3, attributes(0o600), writer.version, writer.n_bytes, 0)
    store.commit([Commit([file, SetName(2, "f", 3)], writer)])
    assert set(found(Store(SimDisk(disk.files())))) == {"/d", "/d/f"}
