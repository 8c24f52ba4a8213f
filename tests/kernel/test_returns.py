"""Who comes back to the device unasked, with a batcher and a real null worker."""

import math

from sdk.abi.errors import Errno
from sdk.abi.values import Advice
from tests.kernel.rig import Rig, cached, forget


def test_pages_are_back_before_their_program_is():
    rig = Rig(n_pages=10)
    away = rig.pred(16, pid=1)
    rig.finish()
    rig.returns = {1: rig.now + 10.0}
    job = rig.pred(30, pid=2)
    rig.finish()
    assert away.file.inode.n_host > 0
    rig.fs.truncate(job.file, 0, rig.now)
    rig.step()
    due = rig.batcher.due(rig.now)
    assert rig.now < due < rig.returns[1]
    rig.now = due
    rig.step()
    assert away.file.inode.n_host == 0
    rig.close()


def test_what_is_needed_comes_back_when_there_is_room_and_not_before():
    rig = Rig(n_pages=12)
    away = rig.pred(20, pid=1)
    rig.finish()
    other = rig.pred(40, pid=2)
    rig.finish()
    assert away.file.inode.n_host
    rig.fs.advise(away.file, Advice.WILLNEED, rig.now)
    rig.memory.look_soon()
    assert rig.plan() is None, "somebody has the pages"
    rig.fs.truncate(other.file, 0, rig.now)
    rig.memory.look_soon()
    rig.step()
    assert not away.file.inode.n_host
    rig.close()


def test_a_dropped_file_is_computed_beside_others_in_small_parts():
    rig = Rig(max_tokens=64, n_pages=128)
    file = rig.pred(60, pid=1).file
    rig.finish()
    for n in (1, 40):
        rig.pred(n, pid=2)
        rig.finish()
    rig.batcher.costs.token_s = 0.001
    rig.fs.drop([file.inode.ino], rig.now)
    rig.fs.place(file, rig.name)
    rig.fs.advise(file, Advice.WILLNEED, rig.now)
    rig.generate("x", 30, pid=3)
    batch = rig.plan()
    added = [r.n_new for r in batch.head.rows if not r.job]
    assert len(added) == 1
    assert 0 < added[0] < 10
    rig.finish()
    rig.step()
    assert rig.fs.tail_valid(file), "when nobody else computes it is done at once"
    assert rig.accounts[1].n_recomputed_tokens == 60, "whoever has it open pays"
    rig.close()


def test_advice_may_take_what_nobody_has_open_and_no_more():
    rig = Rig(n_pages=12)
    away = rig.pred(20, pid=1)
    rig.finish()
    rig.pred(28, pid=2)
    rig.finish()
    kept = cached(rig, "/a", 16)
    assert away.file.inode.n_host
    rig.fs.advise(away.file, Advice.WILLNEED, rig.now)
    for _ in range(3):
        rig.memory.look_soon()
        rig.step()
    assert kept.n_host
    assert not away.file.inode.n_host
    forget(rig, "/a")
    rig.close()


def test_a_file_that_cannot_be_computed_is_given_up():
    rig = Rig()
    file = rig.pred(20, pid=1).file
    rig.finish()
    rig.fs.drop([file.inode.ino], rig.now)
    rig.fs.place(file, rig.name)
    rig.fs.pin(file, "t", 5, math.inf)
    rig.fs.advise(file, Advice.WILLNEED, rig.now)
    rig.backend.refuse = lambda batch: Errno.EIO
    rig.memory.look_soon()
    rig.step()
    assert rig.fs.wanted(rig.now) == []
    rig.backend.refuse = lambda batch: None
    rig.close()
