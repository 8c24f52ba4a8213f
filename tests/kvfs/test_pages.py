from array import array
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs.fs import Kvfs
from kvfs.fsck import check_pool
from kvfs.pages import DeviceUsage, PagePool
from sdk.abi.errors import InvalidArgument, KernelPanic, NoSpace


def n_runs(pages: "array[int]") -> int:
    """Consecutive runs that a table is made of."""
    return 1 + sum(b != a + 1 for a, b in pairwise(pages))


@pytest.mark.parametrize(("n_pages", "page_size"), [(0, 16), (16, 0), (-1, 16), (2**31, 16)])
def test_a_pool_needs_a_slot(n_pages: int, page_size: int) -> None:
    with pytest.raises(InvalidArgument):
        PagePool("w0", n_pages, page_size)


def test_alloc_gives_each_page_once() -> None:
    pool = PagePool("w0", 10, 16)
    assert sorted([*pool.alloc(3), *pool.alloc(6), *pool.alloc(1)]) == list(range(10))
    assert pool.usage() == DeviceUsage(n_pages=10, n_free=0, n_files=0, page_size=16, n_host_pages=0, n_host_free=0)


def test_no_space_leaves_everything_as_it_was() -> None:
    pool = PagePool("w0", 4, 16)
    pool.alloc(3)
    before = (list(pool.refs), sorted(pool.extents()), pool.n_free)
    with pytest.raises(NoSpace, match=r"w0 has 1 of its 4 pages free and 2 are needed: close"):
        pool.alloc(2)
    assert (list(pool.refs), sorted(pool.extents()), pool.n_free) == before


def test_a_new_file_is_one_run_in_the_middle_of_the_free_pages() -> None:
    pool = PagePool("w0", 100, 16)
    assert pool.alloc(10).tolist() == list(range(45, 55))


def test_a_file_goes_on_after_its_last_page() -> None:
    pool = PagePool("w0", 100, 16)
    pages = pool.alloc(2)
    for _ in range(20):
        pages += pool.alloc(1, after=pages[-1])
    assert n_runs(pages) == 1


def test_a_run_goes_on_elsewhere_when_its_neighbour_is_used() -> None:
    pool = PagePool("w0", 8, 16)
    taken = pool.alloc(8)
    pool.drop(taken[2:4])
    pool.drop(taken[6:8])
    assert sorted(pool.alloc(4, after=1)) == [2, 3, 6, 7]


def test_the_last_page_has_no_neighbour() -> None:
    pool = PagePool("w0", 4, 16)
    pool.drop(pool.alloc(4)[:2])
    assert sorted(pool.alloc(1, after=3)) in ([0], [1])


def test_files_that_grow_side_by_side_keep_one_run_each() -> None:
    pool = PagePool("w0", 1024, 16)
    files = [pool.alloc(1) for _ in range(8)]
    for _ in range(60):
        for i, pages in enumerate(files):
            files[i] = pages + pool.alloc(1, after=pages[-1])
    assert [n_runs(pages) for pages in files] == [1] * 8


def test_a_large_file_takes_the_largest_extents_first() -> None:
    pool = PagePool("w0", 64, 16)
    taken = pool.alloc(64)
    pool.drop(taken[0:3])
    pool.drop(taken[10:40])
    pool.drop(taken[50:55])
    assert sorted(pool.alloc(35)) == [*range(10, 40), *range(50, 55)]


def test_a_shared_page_is_free_when_its_last_table_drops_it() -> None:
    pool = PagePool("w0", 4, 16)
    pages = pool.alloc(2)
    pool.hold(pages)
    pool.drop(pages)
    assert (pool.n_free, pool.n_shared(pages)) == (2, 0)
    pool.hold(pages[:1])
    assert pool.n_shared(pages) == 1
    pool.drop(pages)
    assert pool.n_free == 3


def test_double_free_is_a_panic() -> None:
    pool = PagePool("w0", 4, 16)
    pages = pool.alloc(1)
    pool.drop(pages)
    with pytest.raises(KernelPanic, match=f"page {pages[0]} of w0 is not in use"):
        pool.drop(pages)


@pytest.mark.parametrize("page", [2, 4, 2**32 - 1])
def test_pages_that_are_free_or_do_not_exist_cannot_be_shared_or_given_back(page: int) -> None:
    pool = PagePool("w0", 4, 16)
    pool.drop(pool.alloc(4)[2:3])
    with pytest.raises(KernelPanic):
        pool.hold(array("I", [page]))
    with pytest.raises(KernelPanic):
        pool.drop(array("I", [page]))


def test_a_table_of_both_tiers_is_held_and_dropped_as_a_whole() -> None:
    pool = PagePool("w0", 4, 16, 2)
    table = pool.alloc(2) + pool.host.alloc(1) + pool.alloc(1)
    pool.hold(table)
    assert (pool.n_shared(table), pool.usage().n_host_free, pool.n_host_used) == (4, 1, 1)
    pool.drop(table)
    assert (pool.n_shared(table), pool.n_free) == (0, 1)
    pool.drop(table)
    assert (pool.n_free, pool.usage().n_host_free) == (4, 2)
    for use in (pool.hold, pool.drop):
        with pytest.raises(KernelPanic, match="host page 0 of w0 is not in use"):
            use(table[2:3])


Operation = st.tuples(st.sampled_from(["alloc", "alloc", "grow", "hold", "drop", "cut"]), st.integers(0, 99))


@settings(max_examples=100, deadline=None)
@given(n_pages=st.integers(1, 40), operations=st.lists(Operation, max_size=60))
def test_the_pool_against_a_dict_of_counts(n_pages: int, operations: list[tuple[str, int]]) -> None:
    fs = Kvfs()
    fs.add_device("w0", n_pages=n_pages, page_size=1)
    pool, counts = fs.pools["w0"], dict.fromkeys(range(n_pages), 0)
    tables: list[array[int]] = []
    for name, x in operations:
        i = x % max(1, len(tables))
        if name in ("alloc", "grow") or not tables:
            after = tables[i][-1] if name == "grow" and tables else None
            n = x % 9 + 1 if after is None else x % 3 + 1
            if n > sum(c == 0 for c in counts.values()):
                with pytest.raises(NoSpace):
                    pool.alloc(n, after)
                continue
            pages = pool.alloc(n, after)
            assert all(counts[p] == 0 for p in pages)
            if after is not None and counts.get(after + 1) == 0:
                assert pages[0] == after + 1
            tables.append(pages)
            counts.update(dict.fromkeys(pages, 1))
        elif name == "hold":
            pool.hold(tables[i])
            tables.append(tables[i])
            counts.update({p: counts[p] + 1 for p in tables[i]})
        else:
            k = 0 if name == "drop" else x % len(tables[i])
            dropped, tables[i] = tables[i][k:][::-1], tables[i][:k]  # backwards, as no file does
            pool.drop(dropped)
            counts.update({p: counts[p] - 1 for p in dropped})
            tables = [t for t in tables if t]
        assert dict(enumerate(pool.refs)) == counts
        assert [line for line in check_pool(fs, pool) if "references" not in line] == []
