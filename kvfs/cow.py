"""The algebra of page tables: share, grow, cut. What is written where, and what must be copied first.

A page table is an immutable value: these functions return new ones and never change what they are given. So a
lease, a fork and the file itself may share one array, and a table handed to a batch cannot change under it.

**Writing in place.** A table's last page is written when it has room, or when the file's last token is computed
again. That is done in place only if exactly one table holds the page; then no other file, fork or reader can see
the write. Otherwise the page is copied first and the copy takes its place, for the writer alone. All pages before
the last are full, nobody ever writes them, and sharing them is free. (In another file such a page may be the last,
and not full: that file has fewer tokens in it, and copies it.)

**Tails.** With each page the worker keeps two hidden states. A batch saves the one after its row's last token: the
tail of a file of n tokens is beside the page of token n-1, in the place n & 1. Copying a page copies both. So a
batch destroys the tail after n only if it ends in that very page with another length of the same parity: an append
of one token never does, in place or not. Hence a file can be forked while the next token is being written behind
it, and the fork knows what comes next; and the token after next may be on its way already, which overwrites the
tail of the file as committed, but not that of the file as it will be once the first of the two is committed.

Called by `inode.py` and `lease.py`. Never add here anything that knows of files, names or calls.
"""

from kvfs.pages import PagePool
from kvfs.table import NO_PAGES, PageTable

Copies = list[tuple[int, int]]


def n_pages_for(n_tokens: int, page_size: int) -> int:
    """Pages that hold `n_tokens` tokens."""
    return -(-n_tokens // page_size)


def share(pool: PagePool, table: "PageTable[int]") -> "PageTable[int]":
    """The table of one more reader of the same pages."""
    pool.hold(table)
    return table


def grow(
    pool: PagePool, table: "PageTable[int]", n_before: int, n_new: int, *, aside: bool = False
) -> tuple["PageTable[int]", "PageTable[int]", Copies]:
    """The table for `n_before` + `n_new` tokens; the pages of it that are fresh; the (source, destination) copies
    to be done before the write. `table` covers `n_before` tokens, or one more that is written again, and keeps its
    hold on all its pages, the source of a copy included. With `aside` nothing that is there is written over, though
    nobody shares it now. Raises NoSpace with nothing changed."""
    page_size = pool.page_size
    n_slots = len(table) * page_size
    n_beyond = n_before + n_new - n_slots
    if n_slots > n_before and (aside or pool.refs[table[-1]] > 1):
        fresh = pool.alloc(1 - (-n_beyond // page_size))  # not beside the shared page: that is room for who has it
        return table[:-1] + fresh, fresh, [(table[-1], fresh[0])]
    if n_beyond <= 0:
        return table, NO_PAGES, []
    fresh = pool.alloc(-(-n_beyond // page_size), after=table[-1] if table else None)
    return table + fresh, fresh, []


def overwrites_tail(pages: "PageTable[int]", n_end: int, table: "PageTable[int]", n_tokens: int) -> bool:
    """Whether a batch that ends with `n_end` tokens in `pages` destroys the tail after `n_tokens` tokens in `table`.

    To end at the same length is to write the same tail again."""
    return n_end != n_tokens and not (n_end - n_tokens) & 1 and bool(table) and pages[-1] == table[-1]


def cut(pool: PagePool, table: "PageTable[int]", n_tokens: int) -> "PageTable[int]":
    """The table for the first `n_tokens` tokens; the pages beyond are dropped."""
    n_keep = n_pages_for(n_tokens, pool.page_size)
    pool.drop(table[n_keep:])
    return table[:n_keep]
