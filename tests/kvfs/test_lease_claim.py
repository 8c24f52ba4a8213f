"""Claims: the right to write a file, before any batch does."""

from collections.abc import Callable

import pytest

from kvfs.access import Who
from kvfs.fs import Kvfs
from kvfs.fsck import counts
from kvfs.openfile import OpenFile
from sdk.abi.errors import AccessDenied, BadFile, Busy, KernelPanic
from sdk.abi.values import OpenMode

Make = Callable[[int], OpenFile]


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
