"""Batches that were taken for granted, and failed: their leases are disowned."""

from collections.abc import Callable

import pytest

from kvfs.access import Who
from kvfs.fs import Kvfs
from kvfs.fsck import counts
from kvfs.inode import Residency
from kvfs.openfile import OpenFile
from sdk.abi.errors import KernelPanic

Make = Callable[[int], OpenFile]


def test_tokens_whose_batch_failed_are_computed_again(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    before = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    lease = fs.lease(claim, range(20, 26))
    fs.commit(lease, 1.0)
    after = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    fs.disown(lease)
    assert (fs.residency(before), fs.tail_valid(before)) == (Residency.RESIDENT, True)
    for file in (f, after):
        assert (file.inode.n_kv, fs.length(file), fs.residency(file)) == (4, 11, Residency.PARTIAL)
    fs.commit(fs.lease_rebuild(f, 20), 2.0)
    assert (fs.tokens(f, 5), fs.tail_valid(f)) == ([20, 21, 22, 23, 24, 25], True)


def test_a_write_in_place_that_failed_costs_no_more_than_its_own_tokens(fs: Kvfs, make: Make) -> None:
    f = make(5)
    lease = fs.lease(fs.claim(f), [20, 21])
    child = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    fs.commit(lease, 1.0)
    fs.disown(lease)
    assert (f.inode.n_kv, child.inode.n_kv, fs.residency(child)) == (5, 5, Residency.RESIDENT)


@pytest.mark.parametrize("older_first", [True, False])
def test_a_copy_of_what_failed_has_failed_too(fs: Kvfs, make: Make, older_first: bool) -> None:
    f = make(5)
    first = fs.lease(fs.claim(f), [20])
    fs.commit(first, 1.0)
    child = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    second = fs.lease(fs.claim(child), [21])
    assert second.copies == [(first.pages[1], second.pages[1])]
    fs.commit(second, 1.0)
    for lease in (first, second) if older_first else (second, first):
        fs.disown(lease)
    assert (f.inode.n_kv, child.inode.n_kv) == (5, 4), "the copy was not done, so all of its page is missing"


def test_leases_that_stand_on_what_failed_end_with_it(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    first = fs.lease(claim, [20])
    fs.commit(first, 1.0)
    second, third = fs.lease(claim, [21]), fs.lease(claim, range(4))
    fs.disown(first)
    assert (f.inode.n_kv, counts(fs).leases, counts(fs).pages) == (5, 0, 2)
    with pytest.raises(KernelPanic, match="committed that is lost"):
        fs.commit(second, 1.0)
    fs.abandon(third)
    fs.abandon(second)


def test_there_is_nothing_to_disown_in_what_is_not_committed_or_not_there(fs: Kvfs, make: Make) -> None:
    f, g = make(5), make(5)
    claim = fs.claim(f)
    abandoned, reading = fs.lease(claim, [1]), fs.lease_tail(g)
    fs.abandon(abandoned)
    fs.commit(reading, 1.0)
    cut = fs.lease(claim, range(6))
    fs.commit(cut, 1.0)
    fs.truncate_claimed(claim, 5, 1.0)
    gone = fs.lease(fs.claim(g), range(4))
    fs.commit(gone, 1.0)
    fs.release(next(c for c in fs.claims if c.inode is g.inode), 1.0)
    fs.close(g, 1.0)
    for lease in (abandoned, reading, cut, gone):
        fs.disown(lease)
    assert (f.inode.n_kv, fs.residency(f)) == (5, Residency.RESIDENT)
