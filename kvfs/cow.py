"""The algebra of page tables: share, grow, cut. What is written where, and what must be copied first.

A page table is an immutable value: these functions return new ones and never change what they are given. So a
lease, a fork and the file itself may share one array, and a table handed to a batch cannot change under it.

**Writing in place.** A table's last page is written when it has room, or when the file's last token is computed
again. That is done in place only if exactly one table holds the page; then no other file, fork or reader can see
the write. Otherwise the page is copied first and the copy takes its place, for the writer alone. All pages before
the last are full, nobody ever writes them, and sharing them is free.

**The tail** of a page is the hidden state of the newest token written into it. Copying a page copies its tail.
A write in place destroys the tail of the file as it was, at the moment the batch runs; a write into fresh pages,
copies among them, leaves it alone. Hence a file that is forked *while* it is written in place has its tokens
below the write intact and shared, and no tail.

Called by `inode.py` and `lease.py`. Never add here anything that knows of files, names or calls.
"""

from kvfs.pages import NO_PAGES, PagePool, PageTable

Copies = list[tuple[int, int]]


def n_pages_for(n_tokens: int, page_size: int) -> int:
    """Pages that hold `n_tokens` tokens."""
    return -(-n_tokens // page_size)


def share(pool: PagePool, table: "PageTable[int]") -> "PageTable[int]":
    """The table of one more reader of the same pages."""
    pool.hold(table)
    return table


def grow(
    pool: PagePool, table: "PageTable[int]", n_before: int, n_new: int
) -> tuple["PageTable[int]", "PageTable[int]", Copies]:
    """The table for `n_before` + `n_new` tokens; the pages of it that are fresh; the (source, destination) copies
    to be done before the write. `table` covers `n_before` tokens, or one more that is written again, and keeps its
    hold on all its pages, the source of a copy included. Raises NoSpace with nothing changed."""
    n_fresh = -(-(n_before + n_new) // pool.page_size) - len(table)
    if len(table) * pool.page_size > n_before and pool.refs[table[-1]] > 1:
        fresh = pool.alloc(n_fresh + 1)  # not beside the shared page: that room is for the file that has it
        return table[:-1] + fresh, fresh, [(table[-1], fresh[0])]
    if not n_fresh:
        return table, NO_PAGES, []
    fresh = pool.alloc(n_fresh, after=table[-1] if table else None)
    return table + fresh, fresh, []


def cut(pool: PagePool, table: "PageTable[int]", n_tokens: int) -> "PageTable[int]":
    """The table for the first `n_tokens` tokens; the pages beyond are dropped."""
    n_keep = n_pages_for(n_tokens, pool.page_size)
    pool.drop(table[n_keep:])
    return table[:n_keep]
