"""Moved, dropped or killed: what becomes of those who make room, with a batcher and a real null worker."""

import pytest

from kvfs.access import OPERATOR
from kvfs.quota import Allowed
from sdk.abi.values import OpenMode
from tests.kernel.rig import Rig, cached, forget, swap_out


def test_the_oom_killer_says_why():
    rig = Rig(n_pages=12, n_host_pages=2, mode="swap", max_rows=8)
    rig.generate("a" * 16, 24, pid=1)
    rig.generate("b" * 16, 24, pid=2)
    rig.finish()
    assert len(rig.results[0].tokens) == 24
    assert [pid for pid, _ in rig.killed] == [2]
    assert "out of memory" in rig.killed[0][1]
    rig.close()


@pytest.mark.parametrize("pid", [1, 2])
def test_nobody_is_killed_for_the_young_or_for_himself(pid):
    """Main memory is full, and what program 1 has open may not be dropped: whoever wants more is told so."""
    rig = Rig(n_pages=12, n_host_pages=4, mode="swap")
    files = [rig.pred(16, pid=1).file for _ in range(3)]
    rig.finish()
    assert sum(f.inode.n_host for f in files) == 0
    jobs = [rig.pred(16, pid=pid), rig.pred(16, pid=pid)]
    rig.finish()
    assert rig.killed == []
    assert rig.counters.n_oom_kills == 0
    assert sorted(type(rig.results[job.number - 1]).__name__ for job in jobs) == ["NoSpace", "list"]
    rig.close()


def test_what_is_safe_on_disk_is_dropped_and_not_moved():
    rig = Rig(n_pages=12)
    rig.fs.n_durable = lambda inode: 20
    file = rig.pred(20, pid=1).file
    rig.finish()
    rig.pred(36, pid=2)
    rig.finish()
    assert (file.inode.n_kv, rig.counters.n_pages_dropped, rig.counters.n_pages_out) == (0, 5, 0)
    rig.close()


@pytest.mark.parametrize("n_host_pages_max", [0, 5, 9])
def test_what_is_beyond_its_owners_quota_of_main_memory_is_dropped(n_host_pages_max):
    rig = Rig(n_pages=12)
    files = [rig.pred(20, pid=1).file for _ in range(2)]
    rig.finish()
    for file in files:
        file.inode.bill.allowed = Allowed(host_pages=n_host_pages_max)
    rig.pred(44, pid=2)
    rig.finish()
    n_moved = 5 if n_host_pages_max >= 5 else 0
    assert (rig.counters.n_pages_out, rig.counters.n_pages_dropped) == (n_moved, 10 - n_moved)
    assert sum(f.inode.n_host for f in files) == n_moved
    rig.close()


def test_full_main_memory_is_made_room_in_before_a_program_loses_its_kv():
    rig = Rig(n_pages=12, n_host_pages=8)
    kept = cached(rig, "/a", 24)
    rig.now += 5.0
    one = rig.pred(28, pid=1)
    rig.finish()
    assert kept.n_host
    rig.returns = {1: rig.now + 50.0}
    rig.pred(36, pid=2)
    rig.finish()
    assert (kept.n_kv, kept.n_host) == (0, 0)
    assert one.file.inode.n_host == 7
    assert (rig.counters.n_recomputed_tokens, rig.counters.n_pages_dropped) == (0, 6)
    forget(rig, "/a")
    rig.close()


def test_main_memory_is_not_made_room_in_by_what_is_pinned_on_the_device():
    rig = Rig(n_pages=16, n_host_pages=8)
    pinned = cached(rig, "/a", 32)
    handle = rig.fs.open("/a", OpenMode.READ, who=OPERATOR, now=rig.now)
    rig.fs.pin(handle, "t", 4, 1e6)
    rig.fs.close(handle, rig.now)
    swap_out(rig, pinned, 4)
    rig.pred(24, pid=1)
    rig.finish()
    rig.returns = {1: rig.now + 50.0}
    rig.now += 5.0
    rig.pred(36, pid=2)
    rig.finish()
    assert rig.counters.n_evicted_away == 1
    assert (pinned.n_kv, pinned.n_host) == (32, 4)
    forget(rig, "/a")
    rig.close()
