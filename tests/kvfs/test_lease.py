from collections.abc import Callable

import pytest

from kvfs.access import Who
from kvfs.fs import Kvfs
from kvfs.fsck import counts
from kvfs.inode import Residency
from kvfs.lease import Claim, Lease, LeaseKind
from kvfs.openfile import OpenFile
from sdk.abi.errors import AccessDenied, BadFile, Busy, InvalidArgument, KernelPanic, NoSpace
from sdk.abi.values import OpenMode

Make = Callable[[int], OpenFile]


def test_claim_lease_commit(fs: Kvfs, make: Make) -> None:
    f = make(0)
    claim = fs.claim(f)
    lease = fs.lease(claim, [10, 11, 12, 13, 14])
    assert (lease.device, lease.n_before, lease.n_new, len(lease.pages), lease.copies) == ("w0", 0, 5, 2, [])
    assert (lease.tokens.tolist(), lease.positions.tolist()) == ([10, 11, 12, 13, 14], [0, 1, 2, 3, 4])
    assert (fs.length(f), fs.tail_valid(f)) == (0, False), "nothing is in the file before the commit"
    fs.commit(lease, 4.0)
    assert (fs.tokens(f, 3), fs.tail_valid(f), fs.fstat(f).modified_s) == ([13, 14], True, 4.0)
    fs.release(claim, 4.0)
    assert counts(fs)[4:] == (1, 0, 0, 0)


def test_positions_go_on_from_the_last_one(fs: Kvfs, make: Make) -> None:
    f = make(0)
    claim = fs.claim(f)
    fs.commit(fs.lease(claim, [1, 2], [5, 100]), 1.0)
    assert fs.next_position(claim) == 101
    fs.commit(fs.lease(claim, [3, 4]), 1.0)
    assert fs.positions(f) == [5, 100, 101, 102]


@pytest.mark.parametrize(
    ("tokens", "positions"),
    [
        ([], None),
        ([1], []),
        ([1], [1, 2]),
        ([-1], None),
        ([2**32], None),
        ([1], [-1]),
        ([1.5], None),
        (["a"], None),
        ("ab", None),
        ([1, 2], [2**32 - 1, 2**32]),
    ],
)
def test_bad_tokens_change_nothing(fs: Kvfs, make: Make, tokens: list[int], positions: list[int] | None) -> None:
    f = make(3)
    claim = fs.claim(f)
    with pytest.raises(InvalidArgument):
        fs.lease(claim, tokens, positions)
    assert (counts(fs).leases, counts(fs).pages, fs.tail_valid(f)) == (0, 1, True)


def test_positions_cannot_go_on_beyond_32_bits(fs: Kvfs, make: Make) -> None:
    claim = fs.claim(make(0))
    fs.commit(fs.lease(claim, [1], [2**32 - 1]), 1.0)
    with pytest.raises(InvalidArgument, match=r"from 0 to 2\^32-1"):
        fs.lease(claim, [2])


def test_a_file_must_be_placed_before_it_is_written(fs: Kvfs) -> None:
    claim = fs.claim(fs.create(None, who=Who("ann", root=True), now=0.0))
    with pytest.raises(InvalidArgument, match="place it first"):
        fs.lease(claim, [1])


def test_one_claim_at_a_time(fs: Kvfs, make: Make) -> None:
    f = make(3)
    claim = fs.claim(f)
    with pytest.raises(Busy, match="wait for it, or fork the file"):
        fs.claim(f)
    with pytest.raises(Busy):
        fs.truncate(f, 1, 1.0)
    fs.truncate_claimed(claim, 1, 1.0)
    assert fs.tokens(f) == [0]
    fs.release(claim, 1.0)
    fs.release(fs.claim(f), 1.0)


def test_a_claim_needs_a_handle_to_write(fs: Kvfs) -> None:
    f = fs.create("/a", who=Who("ann", root=True), now=0.0)
    with pytest.raises(AccessDenied):
        fs.claim(fs.open("/a", OpenMode.READ, who=Who("ann", root=True), now=0.0))
    fs.close(f, 0.0)
    with pytest.raises(BadFile):
        fs.claim(f)


def test_a_claim_keeps_the_file_and_can_be_asked_about_it(fs: Kvfs, make: Make) -> None:
    f = make(3)
    claim = fs.claim(f)
    fs.close(f, 1.0)
    fs.commit(fs.lease(claim, [7]), 1.0)
    assert (fs.tokens(claim), fs.tail_valid(claim), fs.device_of(claim)) == ([0, 1, 2, 7], True, "w0")
    fs.commit(fs.lease_tail(claim), 1.0)
    fs.release(claim, 1.0)
    assert (counts(fs).inodes, counts(fs).pages) == (0, 0)


def test_a_decode_step_hands_out_the_table_itself(fs: Kvfs, make: Make) -> None:
    f = make(5)
    lease = fs.lease(fs.claim(f), [1])
    assert lease.pages is f.inode.table
    fs.commit(lease, 1.0)


def test_abandoning_gives_back_the_fresh_pages_alone(fs: Kvfs, make: Make) -> None:
    f = make(8)
    table = f.inode.table
    lease = fs.lease(fs.claim(f), range(9))
    assert counts(fs).pages == 5
    fs.abandon(lease)
    assert (counts(fs).pages, f.inode.table, fs.length(f)) == (2, table, 8)
    assert fs.tail_valid(f), "the batch wrote fresh pages alone"


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


def test_abandoning_a_copy_goes_back_to_the_shared_page(fs: Kvfs, make: Make) -> None:
    f = make(5)
    fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    lease = fs.lease(fs.claim(f), [1])
    assert lease.copies == [(f.inode.table[1], lease.pages[1])]
    fs.abandon(lease)
    assert (counts(fs).pages, fs.fstat(f).n_shared_pages, fs.tail_valid(f)) == (2, 2, True)


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


def test_no_space_changes_nothing(fs: Kvfs, make: Make) -> None:
    make(4 * 30)
    f = make(5)
    claim = fs.claim(f)
    with pytest.raises(NoSpace, match="0 of its 32 pages free and 1 are needed"):
        fs.lease(claim, range(4))
    assert (fs.length(f), fs.tail_valid(f), counts(fs).leases) == (5, True, 0)
    fs.commit(fs.lease(claim, range(3)), 1.0)
    assert fs.length(f) == 8


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


@pytest.mark.parametrize("kind", ["append", "tail"])
@pytest.mark.parametrize("first", ["commit", "abandon"])
@pytest.mark.parametrize("second", ["commit", "abandon"])
def test_a_lease_ends_once(fs: Kvfs, make: Make, kind: str, first: str, second: str) -> None:
    f = make(5)
    lease = fs.lease_tail(f) if kind == "tail" else fs.lease(fs.claim(f), [1])
    end = {"commit": lambda: fs.commit(lease, 1.0), "abandon": lambda: fs.abandon(lease)}
    end[first]()
    with pytest.raises(KernelPanic, match=r"a lease is .* that is .* story: "):
        end[second]()


def test_what_a_claim_cannot_do_with_a_lease_out(fs: Kvfs, make: Make) -> None:
    claim = fs.claim(make(5))
    fs.lease(claim, [1])
    for use in (
        lambda: fs.lease(claim, [4], n_again=1),
        lambda: fs.truncate_claimed(claim, 0, 1.0),
        lambda: fs.release(claim, 1.0),
    ):
        with pytest.raises(KernelPanic, match="the claim has a lease out"):
            use()
    fs.lease(claim, [2])
    with pytest.raises(KernelPanic, match="the claim has a lease out"):
        fs.lease(claim, [3])


def test_a_released_claim_is_good_for_nothing(fs: Kvfs, make: Make) -> None:
    claim = fs.claim(make(5))
    fs.release(claim, 1.0)
    for use in (
        lambda: fs.lease(claim, [2]),
        lambda: fs.truncate_claimed(claim, 0, 1.0),
        lambda: fs.release(claim, 1.0),
        lambda: fs.length(claim),
    ):
        with pytest.raises(KernelPanic, match="a released claim is used"):
            use()


# --- one batch ahead ---


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


# --- computing again ---


def test_a_file_is_computed_again_in_pieces(fs: Kvfs, make: Make) -> None:
    f = make(0)
    claim = fs.claim(f)
    fs.commit(fs.lease(claim, range(9), range(50, 59)), 1.0)
    fs.drop([f.inode.ino], 1.0)
    fs.place(f, "w0")
    for n_before, n in [(0, 5), (5, 3), (8, 1)]:
        assert fs.residency(f) is Residency.PARTIAL
        lease = fs.lease_rebuild(f, 5 if n == 5 else 3)
        assert (lease.kind, lease.n_before, lease.n_new) == (LeaseKind.REBUILD, n_before, n)
        assert lease.tokens.tolist() == list(range(n_before, n_before + n))
        assert lease.positions.tolist() == list(range(50 + n_before, 50 + n_before + n))
        assert not fs.tail_valid(f)
        fs.commit(lease, 2.0)
    assert (fs.residency(f), fs.tail_valid(f), fs.fstat(f).modified_s) == (Residency.RESIDENT, True, 1.0)


def test_abandoning_a_rebuild_gives_back_its_pages(fs: Kvfs, make: Make) -> None:
    f = dropped(fs, make(9))
    fs.abandon(fs.lease_rebuild(f, 9))
    assert (counts(fs).pages, fs.residency(f)) == (0, Residency.PARTIAL)


def dropped(fs: Kvfs, f: OpenFile) -> OpenFile:
    fs.drop([f.inode.ino], 1.0)
    fs.place(f, "w0")
    return f


def test_a_fork_of_what_is_half_computed_goes_on_by_itself(fs: Kvfs, make: Make) -> None:
    f = dropped(fs, make(9))
    fs.commit(fs.lease_rebuild(f, 6), 1.0)
    child = fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    lease = fs.lease_rebuild(child, 9)
    assert (lease.n_before, lease.copies) == (6, [(f.inode.table[1], lease.pages[1])])
    fs.commit(lease, 1.0)
    assert (fs.residency(f), fs.residency(child)) == (Residency.PARTIAL, Residency.RESIDENT)


def test_a_rebuild_is_alone(fs: Kvfs, make: Make) -> None:
    f = dropped(fs, make(9))
    fs.lease_rebuild(f, 2)
    claim = fs.claim(f)
    for use in (
        lambda: fs.lease_rebuild(f, 2),
        lambda: fs.lease(claim, [1]),
        lambda: fs.lease_tail(f),
        lambda: fs.adopt(f),
    ):
        with pytest.raises(Busy):
            use()


def test_what_cannot_be_computed_again(fs: Kvfs, make: Make) -> None:
    f = make(9)
    with pytest.raises(KernelPanic, match="all its K/V is there"):
        fs.lease_rebuild(f, 1)
    fs.drop([f.inode.ino], 1.0)
    with pytest.raises(InvalidArgument, match="place it first"):
        fs.lease_rebuild(f, 1)
    with pytest.raises(InvalidArgument, match="place it first"):
        fs.adopt(f)
    with pytest.raises(KernelPanic, match="0 tokens are to be computed again"):
        fs.lease_rebuild(f, 0)


@pytest.mark.parametrize("n", [0, 3, 5, 7])
def test_a_rebuild_of_a_file_that_is_cut_meanwhile_counts_for_nothing(fs: Kvfs, make: Make, n: int) -> None:
    f = dropped(fs, make(9))
    fs.commit(fs.lease_rebuild(f, 5), 1.0)
    lease = fs.lease_rebuild(f, 3)
    fs.truncate(f, n, 2.0)
    claim = fs.claim(f)
    if n <= 5:
        fs.commit(fs.lease(claim, [20]), 3.0)
    fs.commit(lease, 3.0)
    assert (f.inode.n_kv, fs.tail_valid(f)) == ((n + 1, True) if n <= 5 else (5, False))
    assert counts(fs).pages == -(-f.inode.n_kv // 4)


def test_a_rebuild_counts_when_what_is_cut_lies_beyond_it(fs: Kvfs, make: Make) -> None:
    f = dropped(fs, make(9))
    lease = fs.lease_rebuild(f, 5)
    fs.truncate(f, 5, 2.0)
    fs.commit(lease, 3.0)
    assert (fs.residency(f), fs.tail_valid(f)) == (Residency.RESIDENT, True)


# --- a batch that was taken for granted, and failed ---


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
