from array import array

import pytest

from kvfs import fsck
from kvfs.access import OPERATOR, Who
from kvfs.fs import Kvfs
from kvfs.inode import Edited, Residency
from kvfs.loads import n_common
from kvfs.quota import Allowed
from sdk.abi.errors import Busy, KernelPanic, NoSpace

NUMBERS = array("I", range(40))


@pytest.fixture
def fs():
    fs = Kvfs()
    fs.add_device("d", n_pages=20, page_size=4)
    yield fs
    for f in list(fs.open_files):
        fs.close(f, 9.0)
    assert fsck.check(fs) == []
    assert all(pool.n_free == pool.n_pages for pool in fs.pools.values())


def stored(fs, n=10):
    """A file whose tokens have been read from disk, and nothing else."""
    f = fs.create(None, who=OPERATOR, now=0.0)
    fs.read_back(f.inode, NUMBERS[:n], NUMBERS[:n])
    return f


def load(fs, f, n=10):
    return fs.load(f, "d", NUMBERS[:n], NUMBERS[:n], 1.0)


def test_a_file_gets_its_pages(fs):
    f = stored(fs)
    out = load(fs, f)
    assert fs.residency(f) is Residency.MOVING
    assert fsck.check(fs) == []
    assert len(out.pages_to) == 3
    fs.commit_load(out, 10, True, None, 2.0)
    assert fs.residency(f) is Residency.RESIDENT
    assert fs.tail_valid(f)
    assert f.inode.table.tolist() == out.pages_to
    with pytest.raises(KernelPanic):
        fs.commit_load(out, 10, True, None, 2.0)


def test_without_its_tail_the_last_token_is_computed_again(fs):
    f = stored(fs)
    fs.commit_load(load(fs, f), 10, False, None, 2.0)
    assert (fs.residency(f), f.inode.n_kv) == (Residency.PARTIAL, 9)


def test_a_part_of_it(fs):
    f = stored(fs)
    fs.commit_load(load(fs, f), 4, True, None, 2.0)
    assert (f.inode.n_kv, len(f.inode.table), fs.tail_valid(f)) == (4, 1, False)


def test_relatives_are_served_as_far_as_they_agree(fs):
    f = stored(fs)
    same, cut = (fs.fork(f, None, who=OPERATOR, now=0.0) for _ in range(2))
    fs.truncate(cut, 6, 0.0)
    other = stored(fs)  # equal, and no relative
    out = load(fs, same)
    late = fs.fork(same, None, who=OPERATOR, now=1.0)
    assert late.inode.moving
    fs.commit_load(out, 10, True, None, 2.0)
    assert [x.inode.n_kv for x in (f, same, late, cut, other)] == [10, 10, 10, 5, 0]
    assert [fs.tail_valid(x) for x in (f, same, late, cut)] == [True, True, True, False]
    assert fs.devices()["d"].n_free == 20 - 3
    assert fsck.check(fs) == []


def test_a_relative_gets_no_more_than_its_owner_may_have(fs):
    f, eve = stored(fs), Who("eve")
    fs.quotas.user("eve").allowed = Allowed(pages=2)
    hers = fs.fork(f, None, who=eve, now=0.0)
    fs.commit_load(load(fs, f), 10, True, None, 2.0)
    assert (f.inode.n_kv, hers.inode.n_kv) == (10, 0)
    assert fsck.check(fs) == []


def test_what_becomes_of_the_file_meanwhile(fs):
    cut, closed = stored(fs), stored(fs)
    loads = [load(fs, cut), load(fs, closed)]
    fs.truncate(cut, 5, 1.0)
    fs.close(closed, 1.0)
    for out in loads:
        fs.commit_load(out, 10, True, None, 2.0)
    assert cut.inode.n_kv == 4


def test_edited_context_comes_along(fs):
    f, edited = stored(fs), Edited(7)
    fork = fs.fork(f, None, who=OPERATOR, now=0.0)
    fs.truncate(fork, 6, 0.0)
    fs.commit_load(load(fs, f), 10, True, edited, 2.0)
    assert (f.inode.edited, fork.inode.edited) == (edited, None)


def test_a_device_that_goes(fs):
    f = stored(fs)
    out = load(fs, f)
    fs.remove_device("d", now=1.0)
    assert not out.is_out
    fs.abandon_load(out)
    assert fs.residency(f) is Residency.PARTIAL


def test_giving_up(fs):
    f = stored(fs)
    out = load(fs, f)
    fs.abandon_load(out)
    assert fs.devices()["d"].n_free == 20
    assert fs.residency(f) is Residency.PARTIAL


def test_what_is_refused(fs):
    f, large, empty = stored(fs), stored(fs, 40), fs.create(None, who=OPERATOR, now=0.0)
    big = array("I", range(81))
    fs.read_back(large.inode, big, big)
    with pytest.raises(NoSpace):
        fs.load(large, "d", big, big, 1.0)
    with pytest.raises(Busy):
        load(fs, empty)
    out = load(fs, f)
    with pytest.raises(Busy):
        load(fs, f)
    fs.abandon_load(out)


def test_n_common(fs):
    f = stored(fs, 10)
    for n in range(11):
        tokens = NUMBERS[:10]
        if n < 10:
            tokens[n] = 99
        assert n_common(f.inode, tokens, NUMBERS[:10]) == n
        assert n_common(f.inode, NUMBERS[:10], tokens) == n
        assert n_common(f.inode, NUMBERS[:n], NUMBERS[:n]) == n
