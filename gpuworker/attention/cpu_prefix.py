"""Shared prefixes on a CPU: forks of one prompt read its keys together, as the rows of one matrix product.

Attention over a prefix and over the rest combine exactly through their log-sum-exps (cascade or "Hydragen" attention,
Juravsky et al., 2024), so the prefix can be read once with the queries of every row that shares it. Pages decide who
shares: equal leading page numbers are equal keys. Called by cpu_decode.py. Never compare tokens or files here.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from gpuworker.attention.backend import RowSpec
from gpuworker.attention.cpu_gather import gather, page_index, scratch
from gpuworker.pagepool import PagePool

# When a pass of its own pays. ms per step of 30 layers with it / without, on cpu_decode.py's machine, for rows x shared
# tokens: 2 x 4096 16.9 / 15.8, 4 x 2048 11.7 / 12.4, 8 x 512 6.4 / 5.7, 8 x 1024 9.6 / 9.9, 8 x 2048 16.2 / 21.3,
# 16 x 256 6.3 / 5.7, 16 x 512 8.7 / 9.5, 32 x 256 9.6 / 10.4, 32 x 1024 22.5 / 33.1. In place, all rows but the first
# find the prefix in the CPU's caches, so a short one leaves little to save.
MIN_MEMBERS = 4  # rows
MIN_SHARED = 256  # tokens
MIN_WORK = 8192  # shared tokens x queries


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Rows whose page tables begin with the same full pages, all written before this step."""

    pages: list[int]
    members: list[int]  # indices of rows


def group_by_prefix(rows: Sequence[RowSpec], page_size: int) -> list[PrefixGroup]:
    """The groups worth a pass of their own; a row is in one at most."""
    least = -(-MIN_SHARED // page_size)
    heads: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.n_before >= least * page_size:
            heads[tuple(row.pages[:least])].append(index)
    groups = []
    for members in heads.values():
        tables = [list(rows[m].pages[: rows[m].n_before // page_size]) for m in members]
        # What the smallest and the largest table share, all between them share.
        pairs = zip(min(tables), max(tables), strict=False)
        shared = [page for page, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        if len(members) >= MIN_MEMBERS and len(shared) * page_size * sum(rows[m].n_new for m in members) >= MIN_WORK:
            groups.append(PrefixGroup(shared, members))
    return groups


class SharedPrefix:
    """One group in a step: the pages, and the queries that read all of them."""

    def __init__(self, pages: Sequence[int], queries: Sequence[int], pool: PagePool) -> None:
        self._pages = page_index(pages)
        self._room = scratch(pool, len(pages))
        self.queries = torch.tensor(queries)  # int64 [G], into the decode batch's tokens

    def attend(self, layer: int, q: Tensor, pool: PagePool) -> tuple[Tensor, Tensor]:
        """What the group's queries read of the prefix: [G, Hq, D], and its log-sum-exp [G, Hq]; both fp32.

        q is [n, Hq, D] of the whole decode batch. No mask: every query comes after the whole prefix.
        """
        _, heads, dim = q.shape
        keys, values = gather(pool, layer, self._pages, self._room)
        kv_heads = keys.shape[1]
        group = heads // kv_heads
        # The query heads of one KV head become rows of one product (GQA packing): [1, Hkv, G * group, D].
        mine = q.index_select(0, self.queries).view(-1, kv_heads, group, dim).transpose(0, 1)
        mine = mine.reshape(1, kv_heads, -1, dim)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(mine, keys, values)
        out = out.view(kv_heads, -1, group, dim).transpose(0, 1).reshape(-1, heads, dim)
        return out.float(), lse.view(kv_heads, -1, group).transpose(0, 1).reshape(-1, heads)
