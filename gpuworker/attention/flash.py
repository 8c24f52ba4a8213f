"""The GPU bodies: FlashAttention-2's paged functions, from the flash-attn package or from torch itself (2.12 on).

Both read pages through a block table (their word for page tables) and take the page stride from the tensor, so a
layer's strided view of the pool goes in as it is. Both want pages of a multiple of 256 tokens, int32 tables, fp16 or
bf16, and align the causal mask bottom-right, so a row with tokens before it needs no mask of its own.

They know no masks but windows, so rows with visible runs are gathered and read by the portable body (sdpa.py), in the
same step. Neither reads what rows share once for all of them: FlashAttention-2 has no such call, and composing one of
two calls and a merge pays for long prefixes alone, when their reads are what a step waits for.

Built by select.py, called by the engine. Never import flash_attn at the top: it exists on GPU machines alone.
"""

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen

from gpuworker.attention.backend import AttentionCaps, RowSpec, slot_mapping, write_kv
from gpuworker.attention.sdpa import SdpaBackend, SdpaMeta
from gpuworker.pagepool import PagePool

PAGE_MULTIPLE = 256  # "Paged KV cache block size must be divisible by 256"
NO_PAGE = -1  # pads short page tables; never dereferenced


@dataclass(frozen=True, slots=True)
class Masked:
    """The rows of a step that have visible runs."""

    tokens: Tensor  # int64: theirs in the step
    plain: Tensor  # int64: all others
    rows: SdpaMeta  # as a step of their own


@dataclass(frozen=True, slots=True)
class FlashRows:
    """R rows; all tensors int32 on the device."""

    block_table: Tensor  # [R, longest table]
    cu_q: Tensor  # [R + 1]: where each row's queries begin
    cu_k: Tensor  # [R + 1]: the same for keys, had they been laid end to end
    kv_lens: Tensor  # [R]
    max_q: int
    max_k: int


@dataclass(frozen=True, slots=True)
class FlashMeta:
    """One step."""

    slots: Tensor  # int64 [T]
    rows: FlashRows | None  # those without visible runs; None: there are none
    masked: Masked | None


class _FlashBackend(ABC):
    """What the two have in common: the metadata, and rows with visible runs."""

    _gather = SdpaBackend()

    caps = AttentionCaps(
        name="flash_attn",
        devices=frozenset({"cuda"}),
        dtypes=frozenset({torch.float16, torch.bfloat16}),
        head_dims=lambda dim: dim % 8 == 0 and dim <= 256,
        page_sizes=lambda size: size > 0 and size % PAGE_MULTIPLE == 0,
        default_page_size=PAGE_MULTIPLE,
        needs_finite_pool=True,
    )

    def plan(self, rows: Sequence[RowSpec], pool: PagePool) -> FlashMeta:
        """See AttentionBackend."""
        slots, plain = slot_mapping(rows, pool), [row for row in rows if not row.visible]
        return FlashMeta(
            slots=slots,
            rows=self._plan_plain(plain, pool) if plain else None,
            masked=self._plan_masked(rows, pool) if len(plain) < len(rows) else None,
        )

    def _plan_masked(self, rows: Sequence[RowSpec], pool: PagePool) -> Masked:
        tokens: dict[bool, list[int]] = {True: [], False: []}
        first = 0
        for row in rows:
            tokens[bool(row.visible)] += range(first, first + row.n_new)
            first += row.n_new
        masked, plain = (torch.tensor(tokens[which], dtype=torch.int64).to(pool.kv.device) for which in (True, False))
        return Masked(masked, plain, self._gather.plan([row for row in rows if row.visible], pool))

    def _plan_plain(self, rows: Sequence[RowSpec], pool: PagePool) -> FlashRows:
        device = pool.kv.device
        tables = [list(row.pages[: -(-row.n_total // pool.page_size)]) for row in rows]
        longest = max(len(table) for table in tables)
        q_lens, kv_lens = [row.n_new for row in rows], [row.n_total for row in rows]
        return FlashRows(
            block_table=_int32([table + [NO_PAGE] * (longest - len(table)) for table in tables], device),
            cu_q=_int32([0, *accumulate(q_lens)], device),
            cu_k=_int32([0, *accumulate(kv_lens)], device),
            kv_lens=_int32(kv_lens, device),
            max_q=max(q_lens),
            max_k=max(kv_lens),
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, meta: FlashMeta, pool: PagePool) -> Tensor:
        """See AttentionBackend."""
        write_kv(pool, layer, k, v, meta.slots)
        keys, values = pool.kv[:, layer, 0], pool.kv[:, layer, 1]
        masked = meta.masked
        if masked is None:
            assert meta.rows is not None
            return self._read(q, keys, values, meta.rows)
        out = torch.empty_like(q)
        out[masked.tokens] = self._gather.read(layer, q[masked.tokens], masked.rows, pool)
        if meta.rows is not None:
            out[masked.plain] = self._read(q[masked.plain], keys, values, meta.rows)
        return out

    @abstractmethod
    def _read(self, q: Tensor, keys: Tensor, values: Tensor, rows: FlashRows) -> Tensor:
        """What q [T, Hq, D] of these rows reads of one layer's keys and values [pages, page, Hkv, D]: [T, Hq, D]."""


class FlashAttnBackend(_FlashBackend):
    """The flash-attn package, 2.x."""

    def __init__(self, ops: Any) -> None:
        """`ops` is the module flash_attn.flash_attn_interface."""
        self._ops = ops

    def _read(self, q: Tensor, keys: Tensor, values: Tensor, rows: FlashRows) -> Tensor:
        if rows.max_q == 1:  # decode: the one that splits long KV over the device's cores (flash-attention#1217)
            out: Tensor = self._ops.flash_attn_with_kvcache(
                q.unsqueeze(1), keys, values, cache_seqlens=rows.kv_lens, block_table=rows.block_table, causal=True
            )
            return out.squeeze(1)
        out = self._ops.flash_attn_varlen_func(
            q,
            keys,
            values,
            cu_seqlens_q=rows.cu_q,
            cu_seqlens_k=rows.cu_k,  # required beside a block table, for its differences
            max_seqlen_q=rows.max_q,
            max_seqlen_k=rows.max_k,
            causal=True,
            block_table=rows.block_table,
        )
        return out


class TorchVarlenBackend(_FlashBackend):
    """torch.nn.attention.varlen.varlen_attn, the FlashAttention-2 inside torch."""

    caps = replace(_FlashBackend.caps, name="torch_varlen")

    def __init__(self, varlen_attn: Any) -> None:
        """`varlen_attn` has torch's signature, with a block table."""
        self._varlen_attn = varlen_attn
        # One split, for torch's paged varlen loses rows when it splits KV (pytorch#194167, torchtitan#3235). It also
        # makes a row's result independent of the batch. 2.12 never splits here and refuses to be told.
        self._splits = {"num_splits": 1} if torch.__version__ >= "2.13" else {}

    def _read(self, q: Tensor, keys: Tensor, values: Tensor, rows: FlashRows) -> Tensor:
        out: Tensor = self._varlen_attn(
            q,
            keys,
            values,
            rows.cu_q,
            rows.cu_k,  # FlashAttention-2 wants it beside a block table
            rows.max_q,
            rows.max_k,
            window_size=(-1, 0),  # causal, in torch's spelling
            enable_gqa=True,
            seqused_k=rows.kv_lens,
            block_table=rows.block_table,
            **self._splits,
        )
        return out


def find_flash_attn() -> FlashAttnBackend | None:
    """The package's body, or None where it is not installed or does not load."""
    try:
        # The submodule, for flash-attn 4 puts other things into a package of the same name.
        return FlashAttnBackend(importlib.import_module("flash_attn.flash_attn_interface"))
    except ImportError:
        return None


def find_torch_varlen() -> TorchVarlenBackend | None:
    """Torch's own body, or None where torch's varlen_attn takes no block table (before 2.12)."""
    has_pages = "block_table" in inspect.signature(varlen.varlen_attn).parameters
    return TorchVarlenBackend(varlen.varlen_attn) if has_pages else None


def _int32(values: list[int] | list[list[int]], device: torch.device) -> Tensor:
    """To the device without waiting for it: pinned memory where there is a GPU."""
    host = torch.tensor(values, dtype=torch.int32, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
