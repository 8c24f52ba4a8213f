"""Two leases of one claim: a batch that is on its way behind the one that runs."""

from collections.abc import Callable

import pytest

from kvfs.access import Who
from kvfs.fs import Kvfs
from kvfs.fsck import counts
from kvfs.lease import Claim, Lease
from kvfs.openfile import OpenFile
from sdk.abi.errors import InvalidArgument, KernelPanic, NoSpace
from sdk.abi.values import OpenMode

Make = Callable[[int], OpenFile]


def test_the_second_lease_goes_on_where_the_first_ends(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    first = fs.lease(claim, [10, 11], [20, 30])
    second = fs.lease(claim, [12, 13])
    assert (first.n_before, second.n_before, second.positions.tolist()) == (5, 7, [31, 32])
    assert second.pages == first.pages + second.fresh
    assert (len(second.fresh), fs.length(f)) == (1, 5)
    fs.commit(first, 1.0)
    assert (fs.tokens(f, 5), fs.fstat(f).n_pages) == ([10, 11], 2)
    third = fs.lease(claim, [14])
    assert third.pages is second.pages
    fs.commit(second, 2.0)
    fs.commit(third, 3.0)
    assert (fs.tokens(f, 5), fs.positions(f, 5)) == ([10, 11, 12, 13, 14], [20, 30, 31, 32, 33])
    assert (fs.tail_valid(f), fs.fstat(f).n_pages) == (True, 3)


def test_a_chained_token_is_told_before_it_is_committed(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    first = fs.lease(claim, [10])
    second = fs.lease(claim, [0], chained=True)
    assert (second.chained, second.tokens.tolist(), second.positions.tolist()) == (True, [0], [6])
    fs.commit(first, 1.0)
    with pytest.raises(KernelPanic, match="before its token is known"):
        fs.commit(second, 1.0)
    with pytest.raises(InvalidArgument):
        fs.resolve(second, 2**32)
    fs.resolve(second, 77)
    with pytest.raises(KernelPanic, match="waits for none"):
        fs.resolve(second, 78)
    fs.commit(second, 1.0)
    assert fs.tokens(f, 5) == [10, 77]


def test_the_first_lease_may_be_chained_to_a_look_at_the_tail(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    reading, writing = fs.lease_tail(f), fs.lease(claim, [0], chained=True)
    fs.commit(reading, 1.0)
    fs.resolve(writing, 9)
    fs.commit(writing, 1.0)
    assert fs.tokens(f) == [0, 1, 2, 3, 4, 9]


@pytest.mark.parametrize(("tokens", "n_again"), [([0, 0], 0), ([4], 1)])
def test_what_is_chained_is_one_new_token(fs: Kvfs, make: Make, tokens: list[int], n_again: int) -> None:
    claim = fs.claim(make(5))
    with pytest.raises(KernelPanic, match="are chained; it can be one new one"):
        fs.lease(claim, tokens, n_again=n_again, chained=True)


def test_a_lease_that_waits_for_no_token_is_told_none(fs: Kvfs, make: Make) -> None:
    claim = fs.claim(make(5))
    with pytest.raises(KernelPanic, match="waits for none"):
        fs.resolve(fs.lease(claim, [1]), 2)
    lease = fs.lease(claim, [0], chained=True)
    fs.abandon(lease)
    with pytest.raises(KernelPanic, match="waits for none, and is abandoned"):
        fs.resolve(lease, 2)


def test_leases_of_a_claim_end_in_order(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    first, second = fs.lease(claim, [1]), fs.lease(claim, [2])
    with pytest.raises(KernelPanic, match="committed before an older one"):
        fs.commit(second, 1.0)
    with pytest.raises(KernelPanic, match="abandoned before a newer one"):
        fs.abandon(first)
    fs.abandon(second)
    fs.abandon(first)
    assert fs.length(f) == 5


def test_a_surplus_token_leaves_what_comes_next(fs: Kvfs, make: Make) -> None:
    """A generation that stops late: the token after the last was on its way when it was found to be over."""
    f = make(5)
    claim = fs.claim(f)
    first, surplus = fs.lease(claim, [1]), fs.lease(claim, [2])
    assert not fs.tail_valid(f), "the second writes where the tail of 5 tokens is"
    fs.commit(first, 1.0)
    assert fs.tail_valid(f), "and not where that of 6 is"
    fs.abandon(surplus)
    assert (fs.length(f), fs.tail_valid(f)) == (6, True)


def test_an_abandoned_lease_ahead_may_have_cost_the_tail_of_the_first(fs: Kvfs, make: Make) -> None:
    f = make(4)
    claim = fs.claim(f)
    first, second = fs.lease(claim, [1]), fs.lease(claim, [2, 3])
    fs.abandon(second)
    assert fs.tail_valid(f)
    fs.commit(first, 1.0)
    assert (fs.length(f), fs.tail_valid(f)) == (5, False)


def test_two_appends_in_flight_cost_the_tail_until_the_first_is_committed(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    first, second = fs.lease(claim, [1]), fs.lease(claim, [2])
    child = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    fs.abandon(second)
    fs.abandon(first)
    assert (fs.tail_valid(f), fs.tail_valid(child)) == (False, False)


def fork_between(fs: Kvfs, f: OpenFile) -> tuple[Claim, Lease, Lease]:
    """The first lease writes in place; then the file is forked; so the second copies the page."""
    claim = fs.claim(f)
    first = fs.lease(claim, [10])
    fs.fork(f, "/child", who=Who("ann", root=True), now=1.0)
    second = fs.lease(claim, [11])
    assert (first.copies, second.copies) == ([], [(first.pages[1], second.pages[1])])
    assert second.pages[:1] == first.pages[:1]
    return claim, first, second


def test_a_fork_between_two_leases_makes_the_second_one_copy(fs: Kvfs, make: Make) -> None:
    f = make(5)
    _, first, second = fork_between(fs, f)
    child = fs.open("/child", OpenMode.READ, who=Who("ann", root=True), now=1.0)
    fs.commit(first, 1.0)
    assert f.inode.table == child.inode.table == first.pages
    fs.commit(second, 1.0)
    assert (fs.tokens(f, 5), f.inode.table) == ([10, 11], second.pages)
    assert (fs.tokens(child), fs.tail_valid(child), fs.fstat(child).n_shared_pages) == ([0, 1, 2, 3, 4], True, 1)


def test_abandoning_the_copy_alone_leaves_the_page_shared(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim, first, second = fork_between(fs, f)
    fs.commit(first, 1.0)
    fs.abandon(second)
    assert (f.inode.table, fs.tail_valid(f), counts(fs).pages) == (first.pages, True, 2)
    later = fs.lease(claim, [12])
    assert later.copies == [(first.pages[1], later.pages[1])]


def test_abandoning_both_leaves_everything_as_it_was(fs: Kvfs, make: Make) -> None:
    f = make(5)
    table = f.inode.table
    _, first, second = fork_between(fs, f)
    fs.abandon(second)
    fs.abandon(first)
    assert (f.inode.table, fs.tail_valid(f), counts(fs).pages) == (table, True, 2)


def test_no_space_for_the_second_lease_leaves_the_first(fs: Kvfs, make: Make) -> None:
    make(4 * 30)
    f = make(4)
    claim = fs.claim(f)
    first = fs.lease(claim, range(4))
    with pytest.raises(NoSpace):
        fs.lease(claim, [1])
    fs.commit(first, 1.0)
    assert fs.length(f) == 8
