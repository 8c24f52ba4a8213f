"""Memory pressure, with a batcher and a real null worker: what is done about whoever finds no room."""

import math

import pytest

from kvfs.access import OPERATOR, Who
from sdk.abi.errors import Errno
from tests.kernel.rig import Rig, cached, forget, swap_out


def test_a_file_that_never_fits_is_an_error():
    rig = Rig(n_pages=4)
    rig.pred(40)
    rig.finish()
    assert rig.results[0].errno == Errno.ENOSPC
    rig.close()


@pytest.mark.parametrize("mode", ["auto", "swap", "recompute"])
def test_idle_files_make_room_and_come_back(mode):
    rig = Rig(n_pages=8, mode=mode)
    old = rig.pred(20, pid=1)
    rig.finish()
    rig.pred(20, pid=2)
    rig.finish()
    assert rig.fs.devices()[rig.name].n_free <= 3
    rig.check()
    rig.pred(1, file=old.file, pid=1)
    rig.finish()
    assert all(isinstance(r, list) for r in rig.results.values())
    assert (rig.counters.n_pages_out > 0) == (mode != "recompute")
    assert (rig.counters.n_recomputed_tokens > 0) == (mode == "recompute")
    rig.close()


def test_an_older_program_takes_from_a_younger_and_never_the_reverse():
    rig = Rig(n_pages=12, max_rows=8)
    rig.generate("a" * 16, 30, pid=1)
    rig.generate("b" * 16, 30, pid=2)
    rig.finish()
    assert [len(r.tokens) for r in rig.results.values()] == [30, 30]
    assert rig.counters.n_preempted > 0
    rig.close()


@pytest.mark.parametrize("mode", ["auto", "swap", "recompute"])
def test_pinned_pages_stay_whoever_wants_them(mode):
    rig = Rig(n_pages=16, mode=mode)
    file = rig.pred(32, pid=2).file
    rig.finish()
    rig.fs.pin(file, "t", 6, 100.0)
    rig.pred(36, pid=1)
    rig.finish()
    assert (file.inode.n_kv - file.inode.n_host * 4) // 4 == 6
    assert rig.counters.n_evicted_idle == 1
    rig.pred(44, pid=1)
    rig.finish()
    assert rig.results[2].errno == Errno.ENOSPC
    assert "6 pages are pinned" in str(rig.results[2])
    rig.now = 101.0
    rig.pred(44, pid=1)
    rig.finish()
    assert isinstance(rig.results[3], list)
    rig.close()


def test_a_younger_program_at_work_keeps_what_is_pinned():
    rig = Rig(n_pages=16, max_rows=8)
    young = rig.generate("b" * 16, 30, pid=2)
    rig.step()
    rig.fs.pin(young.file, "t", 4, math.inf)
    rig.generate("a" * 24, 20, pid=1)
    for _ in range(200):
        rig.step()
        assert young.file.inode.n_kv - 4 * young.file.inode.n_host >= 16
    rig.finish()
    assert [len(r.tokens) for r in rig.results.values()] == [30, 20]
    assert rig.counters.n_preempted > 0
    rig.close()


def test_one_tenant_cannot_flush_anothers_cache():
    rig = Rig(n_pages=20)
    ann, bob = Who("ann", tenant="ann", root=True), Who("bob", tenant="bob", root=True)
    hers = [cached(rig, "/a", 32, ann), cached(rig, "/b", 16, ann)]
    file = rig.fs.create(None, who=bob, now=rig.now, device=rig.name)
    for n_tokens in (32, 8):
        rig.pred(n_tokens, file=file, pid=1)
        rig.finish()
    there = [inode.n_kv // 4 - inode.n_host for inode in hers]
    assert sum(there) == 10, "her share of 20 pages; two of her twelve were beyond it"
    rig.pred(1, file=file, pid=1)
    rig.finish()
    assert rig.results[4].errno == Errno.ENOSPC
    assert [inode.n_kv // 4 - inode.n_host for inode in hers] == there
    forget(rig, "/a")
    rig.pred(1, file=file, pid=1)
    rig.finish()
    assert isinstance(rig.results[5], list)
    forget(rig, "/b")
    rig.fs.close(file, rig.now)
    rig.close()


def test_a_file_that_makes_room_is_not_moved_in_by_the_same_plan():
    """It lost what it had in main memory to an older want, though its own would have found room beside that."""
    rig = Rig(n_pages=14, mode="recompute")
    young = rig.pred(32, pid=2).file
    rig.finish()
    swap_out(rig, young.inode, 5)
    rig.pred(40, pid=1)
    rig.pred(1, file=young, pid=2)
    rig.plan()
    assert (young.inode.n_kv, young.inode.n_host) == (0, 0)
    rig.finish()
    assert all(isinstance(r, list) for r in rig.results.values())
    rig.close()


def test_nobody_is_told_that_there_is_no_room_while_pages_arrive_from_elsewhere():
    """Whoever has them may leave again."""
    rig = Rig(n_pages=8)
    rig.fs.add_device("elsewhere", n_pages=8, page_size=4)
    file = rig.fs.create(None, who=OPERATOR, now=rig.now, device="elsewhere")
    claim = rig.fs.claim(file)
    rig.fs.commit(rig.fs.lease(claim, range(20)), rig.now)
    rig.fs.release(claim, rig.now)
    migration = rig.fs.migrate([file.inode.ino], rig.name, rig.now)
    rig.pred(20, pid=1)
    for _ in range(3):
        rig.step()
    assert rig.results == {0: None}
    rig.fs.abandon_migration(migration)
    rig.finish()
    assert isinstance(rig.results[0], list)
    rig.fs.close(file, rig.now)
    rig.close()


def test_nor_while_pages_are_loaded_from_disk():
    rig = Rig(n_pages=8)
    file = rig.pred(20, pid=2).file
    rig.finish()
    rig.fs.drop([file.inode.ino], rig.now)
    load = rig.fs.load(file, rig.name, file.inode.tokens[:], file.inode.positions[:], rig.now)
    rig.pred(20, pid=1)
    for _ in range(3):
        rig.step()
    assert rig.results[1] is None
    rig.fs.abandon_load(load)
    rig.finish()
    assert isinstance(rig.results[1], list)
    rig.close()
