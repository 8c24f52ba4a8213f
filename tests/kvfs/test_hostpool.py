import pytest

from kvfs.hostpool import HostPool
from kvfs.table import host_entry, is_host, n_host, page_number
from sdk.abi.errors import InvalidArgument, KernelPanic, NoSpace


def test_entries_tell_the_tiers_apart() -> None:
    pool = HostPool("w0", 3)
    entries = pool.alloc(2)
    assert [is_host(entry) for entry in entries] == [True, True]
    assert sorted(page_number(entry) for entry in entries) == [0, 1]
    assert n_host(entries) == 2
    assert (is_host(5), page_number(5)) == (False, 5)


def test_a_page_is_free_when_its_last_holder_drops_it() -> None:
    pool = HostPool("w0", 2)
    (entry,) = pool.alloc(1)
    pool.hold(entry)
    pool.drop(entry)
    assert pool.n_free == 1
    pool.drop(entry)
    assert pool.n_free == 2


def test_no_space_changes_nothing() -> None:
    pool = HostPool("w0", 2)
    with pytest.raises(NoSpace, match="the host memory of w0 has 2 of its 2 pages free and 3 are needed: drop files"):
        pool.alloc(3)
    assert pool.n_free == 2
    with pytest.raises(NoSpace):
        HostPool("w0", 0).alloc(1)


@pytest.mark.parametrize("page", [0, 2])
def test_pages_that_are_free_or_do_not_exist_cannot_be_held_or_given_back(page: int) -> None:
    pool = HostPool("w0", 2)
    for use in (pool.hold, pool.drop):
        with pytest.raises(KernelPanic, match=f"host page {page} of w0 is not in use"):
            use(host_entry(page))


@pytest.mark.parametrize("n_pages", [-1, 2**31])
def test_there_are_not_more_pages_than_entries(n_pages: int) -> None:
    with pytest.raises(InvalidArgument):
        HostPool("w0", n_pages)
