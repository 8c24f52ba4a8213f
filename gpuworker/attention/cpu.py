"""The CPU's body, in plain torch: fp32 and bf16, any page size, pages in any order.

Rows with few new tokens are read together where they lie (cpu_decode.py). Every other row is cut into pieces, and a
piece is two products of torch's CPU flash attention, merged by their log-sum-exps: the tokens before it, gathered
and unmasked, and its own square, causal. Unwritten slots are never read, and a mask is materialised only for rows with
visible runs (cpu_masked.py).

A row's result does not depend on the other rows of the step, but for long shared prefixes (cpu_prefix.py), where it
moves by rounding alone; without `group_prefixes` it is the same to the bit.

Called by the engine, chosen by select.py. Never add another kind of device here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gpuworker.attention.backend import AttentionCaps, RowSpec, slot_mapping, write_kv
from gpuworker.attention.cpu_decode import DecodeBatch
from gpuworker.attention.cpu_gather import gather, page_index, scratch
from gpuworker.attention.cpu_masked import MaskedPiece
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
    masked: list[tuple[slice, MaskedPiece]]  # with its tokens in the step
    room: Tensor  # where each piece in turn gathers what it reads of the pool
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

    def __init__(self, group_prefixes: bool = True) -> None:
        self._group_prefixes = group_prefixes

    def plan(self, rows: Sequence[RowSpec], pool: PagePool) -> CpuMeta:
        """See AttentionBackend."""
        slots = slot_mapping(rows, pool)
        pieces: list[_Piece] = []
        masked: list[tuple[slice, MaskedPiece]] = []
        short: list[RowSpec] = []
        short_tokens: list[int] = []
        first = 0
        for row in rows:
            if row.n_new <= MAX_SHORT:
                short.append(row)
                short_tokens += range(first, first + row.n_new)
            for start, end in _cuts(row.n_new) if row.n_new > MAX_SHORT else ():
                if row.visible:
                    mine = slice(first + start, first + end)
                    masked.append((mine, MaskedPiece(row, start, end - start, pool)))
                else:
                    before = row.n_before + start
                    pages = page_index(row.pages[: -(-before // pool.page_size)])
                    pieces.append(_Piece(first + start, end - start, before, pages))
            first += row.n_new
        n_pages = [len(piece.pages) for piece in pieces] + [len(piece.pages) for _, piece in masked]
        return CpuMeta(
            slots,
            pieces,
            masked,
            scratch(pool, max(n_pages, default=0)),
            DecodeBatch(short, pool, self._group_prefixes) if short else None,
            torch.tensor(short_tokens) if n_pages else None,
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
        for mine, window in meta.masked:
            out[mine] = window.attend(layer, q[mine], pool, meta.room)
        if meta.short is not None and meta.short_tokens is not None:
            read = meta.short.attend(layer, q.index_select(0, meta.short_tokens), pool)
            out.index_copy_(0, meta.short_tokens, read)
        return out


def _cuts(n_new: int) -> Iterable[tuple[int, int]]:
    """Pieces of about equal length, at most PIECE tokens."""
    n_pieces = -(-n_new // PIECE)
    return pairwise(n_new * i // n_pieces for i in range(n_pieces + 1))


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
