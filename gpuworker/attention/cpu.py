"""The CPU's body, in plain torch: fp32 and bf16, any page size, pages in any order.

Rows with few new tokens are read together where they lie (cpu_decode.py). Every other row is cut into pieces, and a
piece is two products of torch's CPU flash attention, merged by their log-sum-exps: the tokens before it, gathered
and unmasked, and its own square, causal. No mask is ever materialised and unwritten slots are never read.

A row's result does not depend on the other rows of the step, but for long shared prefixes (see there), where it moves
by rounding alone. Called by the engine, chosen by select.py. Never add another kind of device here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gpuworker.attention.backend import AttentionCaps, RowSpec, slot_mapping, write_kv
from gpuworker.attention.cpu_decode import DecodeBatch
from gpuworker.attention.cpu_gather import gather, page_index, scratch
from gpuworker.pagepool import PagePool

# New tokens of a row up to which reading keys in place wins. us per layer there / here, on cpu_decode.py's machine, for
# new tokens @ context: 1 @ 100 24 / 48, 8 @ 100 40 / 86, 8 @ 500 155 / 173, 16 @ 500 268 / 230, 8 @ 1500 470 / 422.
MAX_SHORT = 8
# Torch's CPU kernel skips keys above the diagonal in blocks of 512 alone, so smaller squares waste less. 30 layers, in
# pieces of 128 / 256 / 512: 512 new tokens 91 / 89 / 110 ms; 1500 new 632 / 594 / 635; 512 after 1500 438 / 413 / 431.
PIECE = 256


@dataclass(frozen=True, slots=True)
class _Piece:
    """Consecutive new tokens of one long row."""

    first: int  # of its tokens in the step
    n_new: int
    n_before: int
    pages: Tensor  # int64, those that hold the tokens before


@dataclass(frozen=True, slots=True)
class CpuMeta:
    """One step."""

    slots: Tensor
    pieces: list[_Piece]
    room: Tensor  # where each piece in turn gathers the tokens before it
    short: DecodeBatch | None
    short_tokens: Tensor | None  # int64: the short rows' tokens in the step; None if they are all of it


class CpuBackend:
    """See the module's docstring."""

    caps = AttentionCaps(
        name="cpu",
        devices=frozenset({"cpu"}),
        dtypes=frozenset({torch.float32, torch.bfloat16}),
        head_dims=lambda dim: dim > 0,
        page_sizes=lambda size: size > 0,
        default_page_size=16,
        needs_finite_pool=False,
    )

    def plan(self, rows: Sequence[RowSpec], pool: PagePool) -> CpuMeta:
        """See AttentionBackend."""
        slots = slot_mapping(rows, pool)
        pieces: list[_Piece] = []
        short: list[RowSpec] = []
        short_tokens: list[int] = []
        first = 0
        for row in rows:
            if row.n_new <= MAX_SHORT:
                short.append(row)
                short_tokens += range(first, first + row.n_new)
            else:
                pieces += _cut(row, first, pool.page_size)
            first += row.n_new
        return CpuMeta(
            slots,
            pieces,
            scratch(pool, max((len(piece.pages) for piece in pieces), default=0)),
            DecodeBatch(short, pool) if short else None,
            torch.tensor(short_tokens) if pieces else None,
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, meta: CpuMeta, pool: PagePool) -> Tensor:
        """See AttentionBackend."""
        write_kv(pool, layer, k, v, meta.slots)
        if meta.short is not None and meta.short_tokens is None:
            return meta.short.attend(layer, q, pool)
        out = torch.empty_like(q)
        for piece in meta.pieces:
            mine = slice(piece.first, piece.first + piece.n_new)
            out[mine] = _attend_piece(layer, q[mine], k[mine], v[mine], piece, pool, meta.room)
        if meta.short is not None and meta.short_tokens is not None:
            read = meta.short.attend(layer, q.index_select(0, meta.short_tokens), pool)
            out.index_copy_(0, meta.short_tokens, read)
        return out


def _cut(row: RowSpec, first: int, page_size: int) -> list[_Piece]:
    """Pieces of about equal length, at most PIECE tokens."""
    n_pieces = -(-row.n_new // PIECE)
    cuts = [row.n_new * i // n_pieces for i in range(n_pieces + 1)]
    pieces = []
    for start, end in pairwise(cuts):
        before = row.n_before + start
        pages = page_index(row.pages[: -(-before // page_size)])
        pieces.append(_Piece(first + start, end - start, before, pages))
    return pieces


def _attend_piece(layer: int, q: Tensor, k: Tensor, v: Tensor, piece: _Piece, pool: PagePool, room: Tensor) -> Tensor:
    """What the piece's q [n, Hq, D] reads of its own k, v [n, Hkv, D] and of the tokens before them."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    queries = q.transpose(0, 1)[None]
    own: Tensor
    own, own_lse = flash(queries, k.transpose(0, 1)[None], v.transpose(0, 1)[None], is_causal=True)
    if not piece.n_before:
        return own[0].transpose(0, 1)
    keys, values = (part[:, :, : piece.n_before] for part in gather(pool, layer, piece.pages, room))
    before, before_lse = flash(queries, keys, values)
    # softmax over both parts = each part's own softmax, weighted by its share exp(lse) of the whole.
    share = torch.sigmoid(before_lse - own_lse)[..., None]
    merged = torch.lerp(own.float(), before.float(), share)
    return merged[0].transpose(0, 1)
