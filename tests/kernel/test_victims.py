"""Who makes room, with a batcher and a real null worker; the order as a function of facts is test_eviction.py's."""

from sdk.abi.values import Advice
from tests.kernel.rig import Rig, cached, forget


def test_a_little_more_is_made_free_than_is_asked_for():
    rig = Rig(n_pages=128)
    paths = [f"/{i}" for i in range(122)]
    for path in paths:
        cached(rig, path, 4)
    rig.pred(40, pid=1)
    rig.finish()
    assert rig.counters.n_evicted_cached == 4 + 2
    forget(rig, *paths)
    rig.close()


def test_what_is_not_needed_leaves_first():
    rig = Rig(n_pages=14)
    first, second = rig.pred(16, pid=1), rig.pred(16, pid=2)
    rig.finish()
    rig.now += 1.0
    rig.fs.lease_tail(second.file)
    rig.fs.commit(next(iter(rig.fs.leases)), rig.now)
    rig.fs.advise(second.file, Advice.DONTNEED, rig.now)
    rig.pred(28, pid=3)
    rig.finish()
    assert (bool(first.file.inode.n_host), bool(second.file.inode.n_host)) == (False, True)
    assert rig.counters.n_evicted_unneeded == 1
    rig.close()


def test_what_nobody_has_open_makes_room_before_what_programs_have():
    rig = Rig(n_pages=12)
    idle = rig.pred(16, pid=1)
    rig.finish()
    rig.returns = {1: rig.now + 50.0}
    kept = cached(rig, "/a", 16)
    rig.now += 1.0
    assert (kept.n_host, rig.counters.n_pages_out) == (0, 0), "without pressure nothing moves"
    rig.pred(20, pid=2)
    rig.finish()
    assert kept.n_host
    assert (idle.file.inode.n_host, rig.counters.n_evicted_cached, rig.counters.n_evicted_away) == (0, 1, 0)
    forget(rig, "/a")
    rig.close()


def test_the_one_that_is_back_latest_goes_first():
    rig = Rig(n_pages=11)
    soon, late = rig.pred(16, pid=1), rig.pred(16, pid=2)
    rig.finish()
    rig.returns = {1: rig.now + 5.0, 2: rig.now + 50.0}
    rig.pred(16, pid=3)
    rig.finish()
    assert soon.file.inode.n_host == 0
    assert late.file.inode.n_host > 0
    rig.close()
