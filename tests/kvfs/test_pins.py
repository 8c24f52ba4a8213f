"""What is pinned stays, for as long as it was said; what is wanted is known until it is there."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs.access import OPERATOR, Who
from kvfs.fs import Kvfs
from kvfs.inode import Residency
from kvfs.openfile import OpenFile
from kvfs.table import is_host
from sdk.abi.values import Advice, OpenMode

Make = Callable[[int], OpenFile]
Append = Callable[[OpenFile, int], None]


def tiers(f: OpenFile) -> str:
    """`d` for each page on the device, `h` for each in host memory."""
    return "".join("h" if is_host(entry) else "d" for entry in f.inode.table)


def kept(fs: Kvfs, now: float = 1.0) -> list[int]:
    return list(fs.pinned("w0", now).values())


def out(fs: Kvfs, *files: OpenFile) -> int:
    """Swap out what may go; the number of pages."""
    move = fs.swap_out([f.inode.ino for f in files], 1.0, fs.pinned("w0", 1.0))
    if move is None:
        return 0
    fs.commit_move(move, 1.0)
    return len(move.pairs)


def named(fs: Kvfs, append: Append, n: int) -> OpenFile:
    f = fs.create("/a", who=OPERATOR, now=0.0, device="w0")
    append(f, n)
    return f


# --- how long ---


def test_a_pin_without_a_time_ends_with_its_handle(fs: Kvfs, append: Append) -> None:
    f = named(fs, append, 9)
    reader = fs.open("/a", OpenMode.READ, who=OPERATOR, now=0.0)
    fs.pin(reader, "t", 3, math.inf)
    assert kept(fs, 1e9) == [3]
    fs.close(f, 1.0)
    assert kept(fs) == [3]
    fs.close(reader, 1.0)
    assert kept(fs) == []


def test_a_pin_with_a_time_outlives_its_handle_if_the_file_has_a_name(fs: Kvfs, make: Make, append: Append) -> None:
    anonymous, f = make(9), named(fs, append, 9)
    for x in (anonymous, f):
        fs.pin(x, "t", 2, 10.0)
        fs.close(x, 1.0)
    assert kept(fs, 9.0) == [2]
    assert kept(fs, 10.0) == []


@pytest.mark.parametrize("replaced", [False, True])
def test_a_pin_ends_with_the_last_name(fs: Kvfs, append: Append, make: Make, replaced: bool) -> None:
    f = named(fs, append, 9)
    fs.link("/a", "/b", who=OPERATOR, now=1.0)
    fs.pin(f, "t", 2, math.inf)
    fs.unlink("/a", who=OPERATOR, now=1.0)
    assert kept(fs) == [2]
    if replaced:
        fs.create("/c", who=OPERATOR, now=1.0)
        fs.rename("/c", "/b", who=OPERATOR, now=1.0)
    else:
        fs.unlink("/b", who=OPERATOR, now=1.0)
    assert kept(fs) == []
    fs.pin(f, "t", 2, math.inf)
    assert kept(fs) == [2], "it is a file without a name now, and may be pinned as such"


def test_unpinning_ends_what_is_ones_own(fs: Kvfs, append: Append) -> None:
    f = named(fs, append, 9)
    other = fs.open("/a", OpenMode.READ, who=OPERATOR, now=0.0)
    left = fs.open("/a", OpenMode.READ, who=OPERATOR, now=0.0)
    fs.pin(left, "t", 1, 50.0)
    fs.close(left, 1.0)
    fs.pin(f, "t", 2, 50.0)
    assert len(fs.pins.pins) == 1, "another pin takes the place of what a closed handle of the tenant has left"
    fs.pin(other, "u", 3, 50.0)
    assert fs.unpin(f, "t") == 1
    assert kept(fs) == [3]
    assert fs.unpin(f, "t") == 0


@pytest.mark.parametrize(("n_pages", "until_s", "stays"), [(3, 60.0, False), (3, 40.0, True), (2, 60.0, True)])
def test_a_pin_does_not_shorten_what_a_closed_handle_has_left(
    fs: Kvfs, append: Append, n_pages: int, until_s: float, stays: bool
) -> None:
    left = named(fs, append, 9)
    f = fs.open("/a", OpenMode.READ, who=OPERATOR, now=0.0)
    fs.pin(left, "t", 3, 50.0)
    fs.close(left, 1.0)
    fs.pin(f, "t", n_pages, until_s)
    assert len(fs.pins.pins) == 1 + stays
    fs.pin(f, "t", 3, math.inf)
    fs.close(f, 2.0)
    assert kept(fs, 49.0) == ([3] if stays else []), "one that goes with its handle takes the place of its own alone"
    assert kept(fs, 50.0) == []


def test_forks_do_not_inherit(fs: Kvfs, make: Make) -> None:
    f = make(9)
    fs.pin(f, "t", 3, math.inf)
    child = fs.fork(f, None, who=OPERATOR, now=1.0)
    fs.close(f, 1.0)
    assert kept(fs) == []
    assert out(fs, child) == 3


# --- what stays ---


def test_pinned_pages_stay_and_those_behind_them_leave(fs: Kvfs, make: Make) -> None:
    f = make(9)
    fs.pin(f, "t", 1, math.inf)
    assert fs.reclaimable([f.inode.ino], fs.pinned("w0", 1.0)) == 2
    assert out(fs, f) == 2
    assert tiers(f) == "dhh"
    assert fs.drop([f.inode.ino], 1.0, fs.pinned("w0", 1.0)) == 2
    assert (f.inode.n_kv, tiers(f), fs.device_of(f)) == (4, "d", "w0")


def test_a_fork_cannot_take_a_pinned_page_away(fs: Kvfs, make: Make) -> None:
    f = make(9)
    child = fs.fork(f, None, who=OPERATOR, now=1.0)
    fs.pin(f, "t", 2, math.inf)
    both = [f.inode.ino, child.inode.ino]
    assert fs.reclaimable(both, fs.pinned("w0", 1.0)) == 1
    assert fs.leaving(both, fs.pinned("w0", 1.0)) == both
    assert out(fs, f, child) == 1
    assert (tiers(f), tiers(child)) == ("ddh", "ddh")
    fs.unpin(f, "t")
    assert out(fs, child, f) == 2


def test_a_relative_that_could_not_be_used_keeps_what_it_has_pinned(fs: Kvfs, make: Make) -> None:
    f = make(9)
    child = fs.fork(f, None, who=OPERATOR, now=1.0)
    fs.pin(child, "t", 2, math.inf)
    assert out(fs, f, child) == 1
    assert fs.residency(child) is Residency.SWAPPED
    assert out(fs, f) == 0, "the pages are shared with one that is pinned, though not resident"


def test_no_more_than_the_share_is_kept_and_the_oldest_pin_first(fs: Kvfs, make: Make) -> None:
    first, second = make(40), make(40)
    for f in (first, second):
        fs.pin(f, "t", 10, math.inf)
    assert fs.pins.limit(fs.pools["w0"]) == 16
    assert kept(fs) == [10, 6]
    assert [fs.fstat(f, 1.0).n_pinned_pages for f in (first, second)] == [10, 6]
    fs.drop([second.inode.ino], 1.0)
    fs.place(second, "w0")
    assert [fs.fstat(f, 1.0).n_pinned_pages for f in (first, second)] == [10, 10], "to be brought back"


def test_room_is_of_all_and_of_the_tenant(fs: Kvfs, make: Make) -> None:
    pool = fs.pools["w0"]
    f, other = make(40), make(4)

    def room(file: OpenFile, tenant: str, share: float = 0.5) -> int:
        return fs.pins.room(file.inode, tenant, share, 1.0)

    assert room(f, "t") == 8
    fs.pin(f, "t", 6, math.inf)
    assert (room(other, "t"), room(other, "u")) == (2, 8)
    assert (room(f, "t"), room(f, "u")) == (8, 8), "what one has pinned of a file may be pinned again"
    assert room(other, "u", 1.0) == 10, "what may be pinned in all"
    fs.pin(fs.dup(f, None, who=OPERATOR, now=1.0), "t", 4, math.inf)
    assert fs.pins.n_pinned(pool, 1.0) == {"t": 6}, "a file counts once for a tenant"
    fs.truncate(f, 8, 1.0)
    assert fs.pins.n_pinned(pool, 1.0) == {"t": 2}, "a file that is cut counts for what it has"
    assert fs.pins.room(fs.create(None, who=OPERATOR, now=1.0).inode, "t", 1.0, 1.0) == 0, "it is on no device"


# --- what is wanted ---


def test_what_is_needed_is_wanted_until_it_is_there(fs: Kvfs, make: Make) -> None:
    f = make(9)
    fs.advise(f, Advice.WILLNEED, 1.0)
    assert fs.wanted(1.0) == []
    out(fs, f)
    fs.advise(f, Advice.WILLNEED, 1.0)
    assert [(w.inode, w.n_tokens, w.is_pinned) for w in fs.wanted(1.0)] == [(f.inode, 9, False)]
    fs.commit_move(fs.swap_in(f, 1.0), 1.0)
    assert fs.wanted(1.0) == []
    out(fs, f)
    assert fs.wanted(1.0) == [], "it was there, and that is all that was asked"


def test_what_is_pinned_is_wanted_for_as_long_as_it_is_pinned(fs: Kvfs, make: Make) -> None:
    f = make(9)
    fs.pin(f, "t", 2, 10.0)
    for _ in range(2):
        fs.drop([f.inode.ino], 1.0)  # a worker was lost, say
        assert [(w.n_tokens, w.is_pinned) for w in fs.wanted(1.0)] == [(2, True)], "of a page size nothing is known"
        fs.place(f, "w0")
        assert [w.n_tokens for w in fs.wanted(1.0)] == [8]
        fs.commit(fs.lease_rebuild_ino(f.inode.ino, 8), 1.0)
        assert fs.wanted(1.0) == []
    fs.drop([f.inode.ino], 1.0)
    assert fs.wanted(10.0) == []


def test_a_file_that_is_used_again_is_needed(fs: Kvfs, make: Make, append: Append) -> None:
    f = make(9)
    fs.advise(f, Advice.DONTNEED, 1.0)
    assert fs.unneeded("w0") == {f.inode.ino}
    fs.fork(f, None, who=OPERATOR, now=2.0)
    assert fs.unneeded("w0") == set()


def test_nothing_is_remembered_of_a_file_that_is_gone(fs: Kvfs, make: Make) -> None:
    f = make(9)
    fs.pin(f, "t", 1, math.inf)
    fs.advise(f, Advice.WILLNEED, 1.0)
    fs.close(f, 1.0)
    assert not fs.pins.pins
    assert not fs.pins.advice


def test_stat_says_what_is_pinned(fs: Kvfs, append: Append) -> None:
    f = named(fs, append, 9)
    fs.pin(f, "t", 1, 10.0)
    assert (fs.fstat(f, 1.0).n_pinned_pages, fs.fstat(f, 1.0).pinned_until_s) == (1, 10.0)
    fs.pin(fs.open("/a", OpenMode.READ, who=Who("u", root=True), now=1.0), "u", 2, math.inf)
    stat = fs.stat("/a", who=OPERATOR, now=1.0)
    assert (stat.n_pinned_pages, stat.pinned_until_s) == (2, None)
    fs.unpin(f, "t")
    assert fs.stat("/a", who=OPERATOR, now=20.0).n_pinned_pages == 2


@given(st.lists(st.tuples(st.sampled_from("puc"), st.integers(0, 3), st.integers(0, 40)), max_size=30))
def test_pins_are_what_a_list_of_them_says(steps: list[tuple[str, int, int]]) -> None:
    """Against a plain model: (file, pages, until) of each handle, the oldest first, up to the limit."""
    fs = Kvfs()
    fs.add_device("w0", n_pages=32, page_size=4)
    files = [fs.create(None, who=OPERATOR, now=0.0, device="w0") for _ in range(4)]
    for f in files:
        claim = fs.claim(f)
        fs.commit(fs.lease(claim, range(28)), 0.0)
        fs.release(claim, 0.0)
    model: dict[int, tuple[int, float]] = {}
    now = 0.0
    for what, i, n in steps:
        if what == "p":
            fs.pin(files[i], "t", n % 9, now + n)
            model.pop(i, None)
            model[i] = (min(n % 9, 7), now + n)
        elif what == "u":
            fs.unpin(files[i], "t")
            model.pop(i, None)
        elif what == "c":
            now += n / 4
        left, expected = 16, {}
        for j, (n_pages, until) in model.items():
            if until > now and min(n_pages, left):
                expected[files[j].inode.ino] = min(n_pages, left)
                left -= min(n_pages, left)
        assert fs.pinned("w0", now) == expected
