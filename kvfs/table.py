"""Page tables: what a file's list of pages is made of, and how an entry says on which tier its page is.

A page table is an array of u32 entries, in the order of the tokens. It is an immutable value: replaced, never
changed, so that files, forks, leases and batches may share one. An entry is the number of a page on the device, or
of one in the host memory of the same worker, with the top bit set. A batch can only use tables without host entries.

Used all over kvfs; no other module knows of the bit. Never add here who holds a page.
"""

from array import array

PageTable = array  # of "I"
NO_PAGES: "PageTable[int]" = array("I")
HOST = 1 << 31  # and above: host entries
N_PAGES_MAX = HOST  # of one tier


def is_host(entry: int) -> bool:
    """Whether the page is in host memory."""
    return entry >= HOST


def host_entry(page: int) -> int:
    """The entry for a page in host memory."""
    return page | HOST


def page_number(entry: int) -> int:
    """The number of the page on its tier."""
    return entry & ~HOST


def n_host(table: "PageTable[int]") -> int:
    """How many entries are in host memory."""
    return sum(entry >= HOST for entry in table)
