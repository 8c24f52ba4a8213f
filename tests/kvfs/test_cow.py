from array import array

import pytest

from kvfs import cow
from kvfs.pages import PagePool
from kvfs.table import NO_PAGES
from sdk.abi.errors import NoSpace


@pytest.fixture
def pool() -> PagePool:
    return PagePool("w0", 16, 4)


@pytest.mark.parametrize(("n_tokens", "n_pages"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_pages_cover_tokens(n_tokens: int, n_pages: int) -> None:
    assert cow.n_pages_for(n_tokens, 4) == n_pages


def test_an_empty_table_grows_from_nothing(pool: PagePool) -> None:
    table, fresh, copies = cow.grow(pool, NO_PAGES, 0, 9)
    assert (len(table), table, copies) == (3, fresh, [])


def test_a_page_with_room_is_written_in_place_by_its_only_holder(pool: PagePool) -> None:
    table = pool.alloc(2)
    grown, fresh, copies = cow.grow(pool, table, 5, 3)
    assert grown is table
    assert (len(fresh), copies) == (0, [])


def test_growth_beyond_the_last_page_goes_on_behind_it(pool: PagePool) -> None:
    table = pool.alloc(2)
    grown, fresh, copies = cow.grow(pool, table, 5, 4)
    assert grown == table + fresh
    assert (fresh.tolist(), copies) == ([table[-1] + 1], [])


def test_a_shared_page_with_room_is_copied(pool: PagePool) -> None:
    table = pool.alloc(2)
    pool.hold(table)
    grown, fresh, copies = cow.grow(pool, table, 5, 4)
    assert grown == table[:1] + fresh
    assert copies == [(table[1], fresh[0])]
    assert pool.refs[table[1]] == 2, "the file keeps its hold on the source"


def test_the_first_page_of_a_fork_leaves_room_behind_the_shared_one(pool: PagePool) -> None:
    table = pool.alloc(2)
    pool.hold(table)
    _, fresh, _ = cow.grow(pool, table, 5, 1)
    assert fresh[0] != table[1] + 1


def test_a_full_shared_page_is_not_copied(pool: PagePool) -> None:
    table = pool.alloc(2)
    pool.hold(table)
    grown, fresh, copies = cow.grow(pool, table, 8, 1)
    assert (grown, copies) == (table + fresh, [])


def test_a_token_computed_again_is_written_even_where_the_page_is_full(pool: PagePool) -> None:
    table = pool.alloc(2)
    assert cow.grow(pool, table, 7, 1)[0] is table
    pool.hold(table)
    grown, fresh, copies = cow.grow(pool, table, 7, 2)
    assert grown == table[:1] + fresh
    assert (len(fresh), copies) == (2, [(table[1], fresh[0])])


def test_no_space_changes_nothing(pool: PagePool) -> None:
    table = pool.alloc(16)
    pool.hold(table)
    before = list(pool.refs)
    with pytest.raises(NoSpace):
        cow.grow(pool, table, 63, 1)
    assert pool.refs == before


def test_cut_drops_the_pages_beyond_and_keeps_the_partial_one(pool: PagePool) -> None:
    table = pool.alloc(4)
    given = array("I", table)
    assert cow.cut(pool, table, 5) == table[:2]
    assert (pool.n_free, table) == (14, given)


def test_share_holds_every_page(pool: PagePool) -> None:
    table = pool.alloc(3)
    assert cow.share(pool, table) is table
    assert [pool.refs[p] for p in table] == [2, 2, 2]


@pytest.mark.parametrize(
    ("n_end", "n_tokens", "destroyed"),
    [(6, 5, False), (7, 5, True), (8, 5, False), (5, 5, False), (5, 7, True)],
)
def test_a_tail_is_destroyed_by_a_batch_that_ends_in_its_page_with_the_same_parity(
    pool: PagePool, n_end: int, n_tokens: int, destroyed: bool
) -> None:
    table = pool.alloc(2)
    assert cow.overwrites_tail(table, n_end, table, n_tokens) is destroyed
    assert not cow.overwrites_tail(table + pool.alloc(1), n_end + 4, table, n_tokens)


def test_an_empty_file_has_no_tail_to_destroy(pool: PagePool) -> None:
    assert not cow.overwrites_tail(pool.alloc(1), 2, NO_PAGES, 0)


def test_a_page_can_be_set_aside_though_nobody_shares_it() -> None:
    pool = PagePool("w0", 8, 4)
    table = pool.alloc(2)
    pages, fresh, copies = cow.grow(pool, table, 6, 1, aside=True)
    assert (pages[0], copies) == (table[0], [(table[1], fresh[0])])
    full = cow.grow(pool, table, 8, 1, aside=True)  # nothing is written over
    assert full[2] == []
