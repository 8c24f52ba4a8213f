"""The tail of a file: who reads it, who writes over it, and how it is computed again."""

from collections.abc import Callable

import pytest

from kvfs.access import Who
from kvfs.fs import Kvfs
from kvfs.fsck import counts
from kvfs.openfile import OpenFile
from sdk.abi.errors import Busy, InvalidArgument, KernelPanic
from sdk.abi.values import OpenMode

Make = Callable[[int], OpenFile]


@pytest.mark.parametrize(("n", "valid"), [(1, True), (2, False), (3, True), (4, True)])
def test_abandoning_a_write_in_place_costs_the_tail_that_it_writes_over(
    fs: Kvfs, make: Make, n: int, valid: bool
) -> None:
    f = make(5)
    claim = fs.claim(f)
    lease = fs.lease(claim, range(n))
    assert fs.tail_valid(f) is valid
    fs.abandon(lease)
    assert (fs.length(f), fs.tail_valid(f)) == (5, valid)


def test_the_last_token_is_computed_again_for_its_tail(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    fs.abandon(fs.lease(claim, [1, 2]))
    lease = fs.lease(claim, [4], n_again=1)
    assert not fs.tail_valid(f)
    fs.commit(lease, 2.0)
    assert (fs.tokens(f), fs.positions(f), fs.tail_valid(f)) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], True)


def test_to_compute_the_last_token_again_spoils_no_tail_that_is_there(fs: Kvfs, make: Make) -> None:
    f = make(5)
    lease = fs.lease(fs.claim(f), [4], n_again=1)
    assert (lease.copies, fs.tail_valid(f)) == ([], True)
    fs.abandon(lease)
    assert fs.tail_valid(f)


def test_the_last_token_can_be_computed_again_with_more_after_it(fs: Kvfs, make: Make) -> None:
    f = make(9)
    fs.truncate(f, 8, 1.0)
    child = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    lease = fs.lease(fs.claim(child), [7, 20], n_again=1)
    assert (lease.n_before, lease.n_new, lease.positions.tolist()) == (7, 2, [7, 8])
    assert lease.copies == [(f.inode.table[1], lease.pages[1])], "the full page is shared, and would be written"
    fs.commit(lease, 2.0)
    assert (fs.tokens(child, 6), fs.tail_valid(child), fs.tail_valid(f)) == ([6, 7, 20], True, False)


@pytest.mark.parametrize(
    ("tokens", "positions", "n_again"),
    [([9], None, 1), ([4], [5], 1), ([4, 4], None, 2)],
)
def test_only_the_last_token_can_be_computed_again(
    fs: Kvfs, make: Make, tokens: list[int], positions: list[int] | None, n_again: int
) -> None:
    claim = fs.claim(make(5))
    with pytest.raises(KernelPanic, match="computed again"):
        fs.lease(claim, tokens, positions, n_again=n_again)


def test_an_empty_file_has_no_token_to_compute_again(fs: Kvfs, make: Make) -> None:
    claim = fs.claim(make(0))
    with pytest.raises(KernelPanic, match="computed again"):
        fs.lease(claim, [4], n_again=1)


def test_the_tail_is_read_by_many_and_on_any_handle(fs: Kvfs, make: Make) -> None:
    fs.create("/a", who=Who("ann", root=True), now=0.0, device="w0")
    f = fs.fork(make(5), "/b", who=Who("ann", root=True), now=0.0)
    reader = fs.open("/b", OpenMode.READ, who=Who("bob", root=True), now=0.0)
    first, second = fs.lease_tail(f), fs.lease_tail(reader)
    assert (first.n_before, first.n_new, first.pages, first.copies) == (5, 0, f.inode.table, [])
    assert (first.tokens.tolist(), first.positions.tolist()) == ([], [])
    fs.commit(first, 9.0)
    fs.abandon(second)
    assert (fs.tail_valid(f), fs.fstat(f).modified_s) == (True, 0.0)


def test_a_tail_that_is_read_is_not_written_over(fs: Kvfs, make: Make) -> None:
    f = make(5)
    reading = fs.lease_tail(f)
    writing = fs.lease(fs.claim(f), [1])
    assert writing.copies == [(reading.pages[1], writing.pages[1])]
    fs.commit(writing, 1.0)
    assert counts(fs).pages == 3, "the page is kept for its reader"
    fs.commit(reading, 1.0)
    assert counts(fs).pages == 2


def test_a_tail_that_is_being_written_over_cannot_be_read(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    lease = fs.lease(claim, [1, 2])
    assert not fs.tail_valid(f)
    with pytest.raises(Busy, match="wait for it"):
        fs.lease_tail(f)
    fs.abandon(lease)
    fs.release(claim, 1.0)
    with pytest.raises(InvalidArgument, match="truncate the last token and append it again"):
        fs.lease_tail(f)


def test_a_tail_is_read_while_the_next_token_is_written_behind_it(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    first = fs.lease(claim, [1])
    reading = fs.lease_tail(f)
    second = fs.lease(claim, [2])
    assert second.copies == [(first.pages[1], second.pages[1])], "or it would write over what is read"
    fs.commit(first, 1.0)
    fs.commit(reading, 1.0)
    fs.commit(second, 1.0)
    assert (fs.length(f), fs.tail_valid(f)) == (7, True)


def test_an_empty_file_has_no_tail(fs: Kvfs, make: Make) -> None:
    f = make(0)
    assert not fs.tail_valid(f)
    with pytest.raises(InvalidArgument, match="append tokens first"):
        fs.lease_tail(f)


def test_pages_of_a_tail_lease_outlive_truncation_and_the_file(fs: Kvfs, make: Make) -> None:
    f = make(9)
    lease = fs.lease_tail(f)
    fs.truncate(f, 1, 1.0)
    fs.close(f, 1.0)
    assert counts(fs).pages == 3
    fs.commit(lease, 1.0)
    assert (counts(fs).pages, counts(fs).inodes) == (0, 0)
