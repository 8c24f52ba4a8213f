"""Copies K and V of whole pages of one layer into one run of tokens, for matrix products on a CPU.

The destination is allocated once per step, not per layer: a fresh allocation of some megabytes is page faults, and
those cost more than the copy (4 forks of 4096 tokens, 30 layers: 70 ms a step against 21). Called by cpu.py and
cpu_prefix.py. Never read slots here that a page's owner has not written: callers cut the run to what they may read.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from gpuworker.pagepool import PagePool


def scratch(pool: PagePool, n_pages: int, dtype: torch.dtype | None = None) -> Tensor:
    """Room for K and V of n_pages: [2, n_pages, page, Hkv, D], not initialised; by default of the pool's dtype."""
    return torch.empty(2, n_pages, *pool.kv.shape[3:], dtype=dtype or pool.kv.dtype)


def page_index(pages: Iterable[int]) -> Tensor:
    """Page numbers as int64 [n]."""
    return torch.tensor(list(pages), dtype=torch.int64)


def gather(
    pool: PagePool, layer: int, pages: Tensor, room: Tensor, wide: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """K and V of `pages` [n], in that order, as [1, Hkv, n * page, D] views of `room` (see `scratch`), or of `wide`,
    if that is given, which has another dtype."""
    parts = []
    for side in (0, 1):
        part = room[side, : len(pages)]
        torch.index_select(pool.kv[:, layer, side], 0, pages, out=part)
        if wide is not None:
            part = wide[side, : len(pages)].copy_(part)
        parts.append(part.flatten(0, 1).transpose(0, 1)[None])
    return parts[0], parts[1]
