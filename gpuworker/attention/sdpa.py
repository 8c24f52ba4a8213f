"""The portable body: gather a row's pages, mask explicitly, call torch's scaled_dot_product_attention.

Runs on any device and dtype and is simple enough to check by eye; it is the last resort on a GPU and the yardstick
for the others. One row at a time, so its cost is a few launches a row and layer. Of a row with visible runs the pages
that none of its queries sees are not gathered. Flash bodies read such rows with it. Never make it clever.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpuworker.attention.backend import AttentionCaps, RowSpec, Window, slot_mapping, write_kv
from gpuworker.pagepool import PagePool


@dataclass(frozen=True, slots=True)
class _Row:
    first: int  # of the row's queries in the step
    n_new: int
    n_keys: int
    pages: Tensor  # int64
    mask: Tensor  # bool [n_new, n_keys], True where a query may read


@dataclass(frozen=True, slots=True)
class SdpaMeta:
    """One step: the slots of the new tokens, and each row's pages and mask."""

    slots: Tensor
    rows: list[_Row]


class SdpaBackend:
    """See the module's docstring."""

    caps = AttentionCaps(
        name="sdpa",
        devices=frozenset({"cpu", "cuda", "mps", "xpu"}),
        dtypes=frozenset({torch.float32, torch.bfloat16, torch.float16}),
        head_dims=lambda dim: dim > 0,
        page_sizes=lambda size: size > 0,
        default_page_size=16,
        needs_finite_pool=False,
    )

    def plan(self, rows: Sequence[RowSpec], pool: PagePool) -> SdpaMeta:
        """See AttentionBackend."""
        slots, device = slot_mapping(rows, pool), pool.kv.device
        planned, first = [], 0
        for row in rows:
            if row.visible:
                window = Window.of(row, 0, row.n_new, pool.page_size)
                used, mask = window.pages, window.mask(row, 0, row.n_new).to(device)
            else:
                used = list(row.pages[: -(-row.n_total // pool.page_size)])
                # Bottom-right aligned: query i is token n_before + i and reads itself and everything before.
                mask = torch.ones(row.n_new, row.n_total, dtype=torch.bool, device=device).tril_(row.n_before)
            planned.append(_Row(first, row.n_new, mask.shape[1], torch.tensor(used, device=device), mask))
            first += row.n_new
        return SdpaMeta(slots, planned)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, meta: SdpaMeta, pool: PagePool) -> Tensor:
        """See AttentionBackend."""
        write_kv(pool, layer, k, v, meta.slots)
        return self.read(layer, q, meta, pool)

    def read(self, layer: int, q: Tensor, meta: SdpaMeta, pool: PagePool) -> Tensor:
        """`attend`, once K and V are stored."""
        out = torch.empty_like(q)
        for row in meta.rows:
            # Only written tokens are taken: whatever the rest of the last page holds is never read.
            keys, values = (
                pool.kv[:, layer, side].index_select(0, row.pages).flatten(0, 1)[: row.n_keys].transpose(0, 1)
                for side in (0, 1)
            )
            mine = slice(row.first, row.first + row.n_new)
            read = F.scaled_dot_product_attention(
                q[mine].transpose(0, 1)[None], keys[None], values[None], attn_mask=row.mask, enable_gqa=True
            )
            out[mine] = read[0].transpose(0, 1)
        return out
