"""Attention of rows with visible runs and many new tokens on a CPU: gather the pages in sight, mask, one product.

A row is cut into pieces, since what is in sight moves along: with a window of 256 tokens a piece of as many queries
sees twice that, whatever the context. Of each piece only the pages that one of its queries sees are gathered, its own
included, and a mask says which of their tokens a query reads. It is built once a step, not once a layer.

Called by cpu.py. Rows with few new tokens need no mask: cpu_decode.py picks their keys one by one.
"""

import torch
from torch import Tensor

from gpuworker.attention.backend import RowSpec, Window
from gpuworker.attention.cpu_gather import gather, page_index
from gpuworker.pagepool import PagePool


class MaskedPiece:
    """Consecutive new tokens of a row, from `offset` on, and what they see."""

    def __init__(self, row: RowSpec, offset: int, n_queries: int, pool: PagePool) -> None:
        window = Window.of(row, offset, n_queries, pool.page_size)
        self.pages = page_index(window.pages)
        self._n_keys = len(window.tokens)
        hidden = ~window.mask(row, offset, n_queries)
        # As torch's kernel wants it: added to the scores.
        self._mask = torch.zeros(hidden.shape, dtype=pool.kv.dtype).masked_fill_(hidden, -torch.inf)

    def attend(self, layer: int, q: Tensor, pool: PagePool, room: Tensor) -> Tensor:
        """What q [n_queries, Hq, D] reads: the same shape. K and V are in the pool already."""
        keys, values = (part[:, :, : self._n_keys] for part in gather(pool, layer, self.pages, room))
        out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q.transpose(0, 1)[None], keys, values, attn_mask=self._mask
        )[0]
        return out[0].transpose(0, 1)
