"""Shared prefixes on a CPU: forks of one prompt read its keys together, as the rows of one matrix product.

Attention over a prefix and over the rest combine exactly through their log-sum-exps (cascade or "Hydragen" attention,
Juravsky et al., 2024), so the prefix can be read once with the queries of every row that shares it. Pages decide who
shares: equal leading page numbers are equal keys. All of it is in fp32, whatever the pool holds: which rows a batch
brings together moves a result by fp32's rounding and no more, as the batch's matrix products do anyway (ADR 20).

Called by cpu_decode.py. Never compare tokens or files here.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

import torch
from torch import Tensor

from gpuworker.attention.backend import RowSpec
from gpuworker.attention.cpu_gather import gather, page_index, scratch
from gpuworker.pagepool import PagePool

# When a pass of its own pays. ms of 30 layers without / with it, Hq=9, Hkv=3, D=64, two cores of an AMD EPYC (Zen 5).
# In place, all rows but the first find the prefix in the CPU's caches, so a short one leaves little to save.
#
#     rows x tokens   4 x 500      4 x 1000     8 x 500      8 x 1000     16 x 300     32 x 1000
#     fp32            6.4 / 7.9   11.0 / 11.4   9.8 / 9.9   18.5 / 14.9  12.1 / 12.4   44.9 / 28.0
#     bf16           11.7 / 15.1  15.9 / 14.4  13.6 / 12.4  23.7 / 17.7  14.6 / 14.2   63.0 / 32.4
MIN_MEMBERS = 4  # rows
MIN_SHARED = 256  # tokens
MIN_WORK = 6144  # shared tokens x queries
MAX_DEPTH = 8  # forks of forks; a bound for the search


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Rows whose page tables begin with the same full pages, all written before this step."""

    pages: list[int]
    members: list[int]  # indices of rows, ascending


@dataclass(frozen=True, slots=True)
class _Row:
    table: list[int]  # its full pages from before the step
    index: int
    n_new: int


def group_by_prefix(rows: Sequence[RowSpec], page_size: int) -> list[PrefixGroup]:
    """The groups worth a pass of their own; a row is in one at most, and one with visible runs in none.

    Forks of forks (beams, chats that share a system prompt) form a tree. A group may lie at any of its nodes: many
    rows with a short prefix, or fewer with a longer one, whichever spares more. Costs a look at the first pages of each
    row where nothing is shared.
    """
    least = -(-MIN_SHARED // page_size)
    heads: dict[tuple[int, ...], list[_Row]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.n_before >= least * page_size and not row.visible:
            table = row.pages[: row.n_before // page_size]
            heads[tuple(table[:least])].append(_Row(list(table), index, row.n_new))
    groups: list[PrefixGroup] = []
    for members in heads.values():
        if len(members) >= MIN_MEMBERS:
            members.sort(key=lambda row: row.table)
            groups += _divide(members, page_size, MAX_DEPTH)[1]
    return groups


def _divide(rows: Sequence[_Row], page_size: int, depth: int) -> tuple[int, list[PrefixGroup]]:
    """How to group rows, sorted by their tables, and what that spares: reads of shared tokens, less a pass's cost."""
    if len(rows) < MIN_MEMBERS:
        return 0, []
    # What the first and the last table share, all between them share.
    pairs = zip(rows[0].table, rows[-1].table, strict=False)
    shared = [page for page, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    n = len(shared)
    spared = 0
    groups: list[PrefixGroup] = []
    if depth:
        for _, branch in groupby(rows, key=lambda row: row.table[n : n + 1]):
            more, found = _divide(list(branch), page_size, depth - 1) if n < len(rows[-1].table) else (0, [])
            spared, groups = spared + more, groups + found
    together = n * page_size * sum(row.n_new for row in rows) - MIN_WORK
    if together >= spared:
        return together, [PrefixGroup(shared, sorted(row.index for row in rows))]
    return spared, groups


class SharedPrefix:
    """One group in a step: the pages, and the queries that read all of them."""

    def __init__(self, pages: Sequence[int], queries: Sequence[int], pool: PagePool) -> None:
        self._pages = page_index(pages)
        self._room = scratch(pool, len(pages))
        self._wide = None if pool.kv.dtype == torch.float32 else scratch(pool, len(pages), torch.float32)
        self.queries = torch.tensor(queries)  # int64 [G], into the decode batch's tokens

    def attend(self, layer: int, q: Tensor, pool: PagePool) -> tuple[Tensor, Tensor]:
        """What the group's queries read of the prefix: [G, Hq, D], and its log-sum-exp [G, Hq]; both fp32.

        q is [n, Hq, D] of the whole decode batch. No mask: every query comes after the whole prefix.
        """
        _, heads, dim = q.shape
        keys, values = gather(pool, layer, self._pages, self._room, self._wide)
        kv_heads = keys.shape[1]
        group = heads // kv_heads
        # The query heads of one KV head become rows of one product (GQA packing): [1, Hkv, G * group, D].
        mine = q.index_select(0, self.queries).float().view(-1, kv_heads, group, dim).transpose(0, 1)
        mine = mine.reshape(1, kv_heads, -1, dim)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(mine, keys, values)
        out = out.view(kv_heads, -1, group, dim).transpose(0, 1).reshape(-1, heads, dim)
        return out, lse.view(kv_heads, -1, group).transpose(0, 1).reshape(-1, heads)
