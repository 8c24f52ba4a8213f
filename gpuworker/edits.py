"""Edits: slots of pages copied into other pages, in all layers at once, with keys turned to other positions.

What a file keeps when it is cut out of others, or put together from them: V as it is, K turned by the distance of its
move (`models/rope.py`). A slot of all layers is many short rows of the pool, gathered and scattered by index, so all
edits of a step are a handful of operations on any device, whatever pages they join. The backend has checked that no
edit reads what another one writes, so they are done in any order.

Called by the engine. Which slots go where is the kernel's to decide: never add it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpuworker.attention.backend import rows_per_page
from gpuworker.pagepool import PagePool
from gpuworker.wire import Edit

CHUNK = 512  # slots at once: bounds the temporary memory, some 3 times 6 MiB for a 135M model in fp32

Turn = Callable[[Tensor, Tensor], Tensor]


def edit(pool: PagePool, edits: Sequence[Edit], turn: Turn) -> None:
    """Does the edits of one step. `turn(keys [T, Hkv, D], deltas [T])` moves stored keys to other positions."""
    for turned in (False, True):
        slots = [
            (e.source, e.source_slot + i, e.page, e.slot + i, e.delta)
            for e in edits
            if bool(e.delta) is turned
            for i in range(e.n)
        ]
        for first in range(0, len(slots), CHUNK):
            chunk = torch.tensor(slots[first : first + CHUNK]).to(pool.kv.device)
            _copy(pool, chunk, turn if turned else None)


def _copy(pool: PagePool, slots: Tensor, turn: Turn | None) -> None:
    """One slot for each row of `slots` [T, 5]: source page, its slot, page, its slot, delta."""
    source, source_slot, page, slot, deltas = slots.unbind(1)
    n_layers, heads, dim = pool.kv.shape[1], pool.kv.shape[-2], pool.kv.shape[-1]
    parts = torch.arange(2 * n_layers, device=pool.kv.device) * pool.page_size  # K of layer 0, its V, K of layer 1 …
    token_rows, stride = pool.kv.view(-1, heads * dim), rows_per_page(pool)
    read = (source * stride + source_slot).unsqueeze(1) + parts
    rows = token_rows.index_select(0, read.flatten())
    if turn is not None:
        keys = rows.view(-1, n_layers, 2, heads, dim)[:, :, 0]
        turned = turn(keys.reshape(-1, heads, dim), deltas.repeat_interleave(n_layers))
        keys.copy_(turned.view_as(keys))
    written = (page * stride + slot).unsqueeze(1) + parts
    token_rows.index_copy_(0, written.flatten(), rows)
