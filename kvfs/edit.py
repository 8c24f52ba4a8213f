"""Plans of edits: the tokens that a file is to be made of, the pages it can share, and the slots that are copied.

An edit is a list of *pieces*, runs of tokens of files that are there, put one after another. Cutting spans out of a
file, joining files and replacing a part of one are nothing else. Positions come out in one of two modes:

    keep    each token stays at its position. Positions must not decrease from one piece to the next
    pack    tokens are at 0, 1, 2 …; K is turned by the distance that its token moves

A page of the new file is shared with a source where all its tokens are one page of that source, from the first slot
on, at the same positions; so the pages of an unchanged beginning are, and of any span that lies right. The rest is
*runs*: slots of one page that go to slots of one other page, and by how much their K turns.

K/V is a function of the token and of all that came before it when it was computed. A span in a new place keeps what
it knows of its old one, so it is not what computing the new file from its tokens would give. `Edited` says from which
token on that is so; all tokens behind it are computed with a look at it.

Called by editing.py. Pure: facts in, plans out. Never add here: who may edit, allocation, leases.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from kvfs.cow import n_pages_for
from kvfs.inode import Edited, Inode
from kvfs.table import PageTable
from sdk.abi.errors import InvalidArgument
from sdk.abi.values import PositionMode


class Piece(NamedTuple):
    """Tokens start … stop-1 of a file, at least one."""

    source: Inode
    start: int
    stop: int


class Run(NamedTuple):
    """Slots to copy: of one page, to one page."""

    page: int  # of the source's device
    slot: int
    place: int  # of the page in the new table
    slot_to: int
    n: int
    delta: int  # of positions


class Layout(NamedTuple):
    """The new page table, before its fresh pages have numbers."""

    n_pages: int
    shared: dict[int, int]  # index in the table → the page
    runs: list[Run]

    @property
    def n_fresh(self) -> int:
        return self.n_pages - len(self.shared)


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The same tokens in as few pieces as can be. Raises InvalidArgument for a piece that its file does not have."""
    found: list[Piece] = []
    for piece in pieces:
        n_tokens = len(piece.source.tokens)
        if not 0 <= piece.start <= piece.stop <= n_tokens:
            raise InvalidArgument(f"there are no tokens {piece.start} to {piece.stop}: the file has {n_tokens}")
        if found and found[-1].source is piece.source and found[-1].stop == piece.start:
            found[-1] = Piece(piece.source, found[-1].start, piece.stop)
        elif piece.start < piece.stop:
            found.append(piece)
    return found


def sequence(pieces: Sequence[Piece], mode: PositionMode) -> "tuple[array[int], array[int]]":
    """The new file's tokens and positions, u32. Raises InvalidArgument where positions would decrease."""
    tokens, positions = array("I"), array("I")
    for source, start, stop in pieces:
        at = source.positions[start:stop]
        if mode is PositionMode.KEEP and positions and at[0] < positions[-1]:
            raise InvalidArgument(
                f"position {at[0]} would come after {positions[-1]}: give the parts in their order, or positions='pack'"
            )
        tokens.extend(source.tokens[start:stop])
        positions.extend(at)
    return tokens, array("I", range(len(tokens))) if mode is PositionMode.PACK else positions


def edited(pieces: Sequence[Piece], positions: "array[int]") -> Edited | None:
    """From which token on the new file's K/V is not what computing it gives. An unchanged beginning of a file is as
    much edited as that is."""
    if not pieces:
        return None
    source, start, stop = pieces[0]
    n_same = 0 if start else _n_equal(source.positions[:stop], positions[:stop])
    of_source = source.edited
    if of_source is not None and of_source.at < n_same:
        return of_source if n_same == len(positions) else Edited(of_source.at)
    return None if n_same == len(positions) else Edited(n_same)


def _n_equal(a: "array[int]", b: "array[int]") -> int:
    """How long a beginning two arrays of one length have in common."""
    return len(a) if a == b else next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)


def lay_out(pieces: Sequence[Piece], positions: "array[int]", page_size: int) -> Layout:
    """Which pages are shared, and what is copied. No page is twice in the table, so a span that is taken twice is
    copied once. All sources have their K/V in pages."""
    n_total = len(positions)
    shared: dict[int, int] = {}
    runs: list[Run] = []
    taken: set[int] = set()
    at = 0
    for source, start, stop in pieces:
        while start < stop:
            index, slot_to = divmod(at, page_size)
            entry, slot = source.table[start // page_size], start % page_size
            n = min(stop - start, page_size - slot_to)  # to the end of the page that is written
            is_page = slot == slot_to == 0 and (n == page_size or at + n == n_total)
            if is_page and entry not in taken and positions[at : at + n] == source.positions[start : start + n]:
                shared[index] = entry
                taken.add(entry)
            else:
                n = min(n, page_size - slot)
                runs += _runs(source, start, entry, slot, positions[at : at + n], index, slot_to)
            start, at = start + n, at + n
    return Layout(n_pages_for(n_total, page_size), shared, runs)


def _runs(
    source: Inode, start: int, page: int, slot: int, positions: "array[int]", index: int, slot_to: int
) -> Iterable[Run]:
    """Neighbours that go from one page to one page, cut where they move by different distances."""
    deltas = (new - old for new, old in zip(positions, source.positions[start : start + len(positions)], strict=True))
    for delta, group in groupby(deltas):
        n = sum(1 for _ in group)
        yield Run(page, slot, index, slot_to, n, delta)
        slot, slot_to = slot + n, slot_to + n


def table(layout: Layout, fresh: Iterable[int]) -> "PageTable[int]":
    """The page table, with the numbers of its fresh pages."""
    pages = iter(fresh)
    return array("I", [layout.shared[i] if i in layout.shared else next(pages) for i in range(layout.n_pages)])
