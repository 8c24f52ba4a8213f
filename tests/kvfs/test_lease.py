"""Leases that append: what one has, and how it ends."""

from collections.abc import Callable

import pytest

from kvfs.access import Who
from kvfs.fs import Kvfs
from kvfs.fsck import counts
from kvfs.openfile import OpenFile
from sdk.abi.errors import InvalidArgument, KernelPanic, NoSpace

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


def test_abandoning_a_copy_goes_back_to_the_shared_page(fs: Kvfs, make: Make) -> None:
    f = make(5)
    fs.fork(f, None, who=Who("ann", root=True), now=1.0)
    lease = fs.lease(fs.claim(f), [1])
    assert lease.copies == [(f.inode.table[1], lease.pages[1])]
    fs.abandon(lease)
    assert (counts(fs).pages, fs.fstat(f).n_shared_pages, fs.tail_valid(f)) == (2, 2, True)


def test_no_space_changes_nothing(fs: Kvfs, make: Make) -> None:
    make(4 * 30)
    f = make(5)
    claim = fs.claim(f)
    with pytest.raises(NoSpace, match="0 of its 32 pages free and 1 are needed"):
        fs.lease(claim, range(4))
    assert (fs.length(f), fs.tail_valid(f), counts(fs).leases) == (5, True, 0)
    fs.commit(fs.lease(claim, range(3)), 1.0)
    assert fs.length(f) == 8


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
