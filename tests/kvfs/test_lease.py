from collections.abc import Callable

import pytest

from kvfs.fs import Kvfs
from kvfs.fsck import counts
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
    assert counts(fs)[3:] == (1, 0, 0)


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
    claim = fs.claim(fs.create(None, owner="ann", now=0.0))
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
    f = fs.create("/a", owner="ann", now=0.0)
    with pytest.raises(AccessDenied):
        fs.claim(fs.open("/a", OpenMode.READ, owner="ann", now=0.0))
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


def test_abandoning_a_write_in_place_costs_the_tail(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    fs.abandon(fs.lease(claim, [1]))
    assert (fs.length(f), fs.tail_valid(f)) == (5, False)
    fs.commit(fs.lease(claim, [4], n_again=1), 2.0)
    assert (fs.tokens(f), fs.positions(f), fs.tail_valid(f)) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], True)


def test_abandoning_a_copy_goes_back_to_the_shared_page(fs: Kvfs, make: Make) -> None:
    f = make(5)
    fs.fork(f, None, owner="ann", now=1.0)
    lease = fs.lease(fs.claim(f), [1])
    assert lease.copies == [(f.inode.table[1], lease.pages[1])]
    fs.abandon(lease)
    assert (counts(fs).pages, fs.fstat(f).n_shared_pages, fs.tail_valid(f)) == (2, 2, True)


def test_the_last_token_can_be_computed_again_with_more_after_it(fs: Kvfs, make: Make) -> None:
    f = make(9)
    fs.truncate(f, 8, 1.0)
    child = fs.fork(f, None, owner="ann", now=1.0)
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
    fs.create("/a", owner="ann", now=0.0, device="w0")
    f = fs.fork(make(5), "/b", owner="ann", now=0.0)
    reader = fs.open("/b", OpenMode.READ, owner="bob", now=0.0)
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


def test_a_tail_that_is_being_written_cannot_be_read(fs: Kvfs, make: Make) -> None:
    f = make(5)
    claim = fs.claim(f)
    lease = fs.lease(claim, [1])
    assert not fs.tail_valid(f)
    with pytest.raises(Busy, match="wait for it"):
        fs.lease_tail(f)
    fs.abandon(lease)
    fs.release(claim, 1.0)
    with pytest.raises(InvalidArgument, match="truncate the last token and append it again"):
        fs.lease_tail(f)


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
        lambda: fs.lease(claim, [2]),
        lambda: fs.truncate_claimed(claim, 0, 1.0),
        lambda: fs.release(claim, 1.0),
    ):
        with pytest.raises(KernelPanic, match="the claim has a lease out"):
            use()


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
