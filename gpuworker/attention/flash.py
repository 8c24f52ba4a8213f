"""The GPU bodies: FlashAttention-2's paged functions, from the flash-attn package or from torch itself (2.12 on).

Both read pages through a block table (their word for page tables) and take the page stride from the tensor, so a
layer's strided view of the pool goes in as it is. Both want pages of a multiple of 256 tokens, int32 tables, fp16 or
bf16, and align the causal mask bottom-right, so a row with tokens before it needs no mask of its own.

Built by select.py, called by the engine. Never import flash_attn at the top: it exists on GPU machines alone.
"""

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen

from gpuworker.attention.backend import AttentionCaps, RowSpec, slot_mapping, write_kv
from gpuworker.pagepool import PagePool

PAGE_MULTIPLE = 256  # "Paged KV cache block size must be divisible by 256"
NO_PAGE = -1  # pads short page tables; never dereferenced


@dataclass(frozen=True, slots=True)
class FlashMeta:
    """One step of R rows; all tensors int32 on the device, but for the slots."""

    slots: Tensor  # int64 [T]
    block_table: Tensor  # [R, longest table]
    cu_q: Tensor  # [R + 1]: where each row's queries begin
    cu_k: Tensor  # [R + 1]: the same for keys, had they been laid end to end
    kv_lens: Tensor  # [R]
    max_q: int
    max_k: int


class _FlashBackend:
    """What the two have in common: the metadata."""

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
        slots, device = slot_mapping(rows, pool), pool.kv.device
        tables = [list(row.pages[: -(-row.n_total // pool.page_size)]) for row in rows]
        longest = max(len(table) for table in tables)
        q_lens, kv_lens = [row.n_new for row in rows], [row.n_total for row in rows]
        return FlashMeta(
            slots=slots,
            block_table=_int32([table + [NO_PAGE] * (longest - len(table)) for table in tables], device),
            cu_q=_int32([0, *accumulate(q_lens)], device),
            cu_k=_int32([0, *accumulate(kv_lens)], device),
            kv_lens=_int32(kv_lens, device),
            max_q=max(q_lens),
            max_k=max(kv_lens),
        )


class FlashAttnBackend(_FlashBackend):
    """The flash-attn package, 2.x."""

    def __init__(self, ops: Any) -> None:
        """`ops` is the module flash_attn.flash_attn_interface."""
        self._ops = ops

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, meta: FlashMeta, pool: PagePool) -> Tensor:
        """See AttentionBackend."""
        write_kv(pool, layer, k, v, meta.slots)
        keys, values = pool.kv[:, layer, 0], pool.kv[:, layer, 1]
        if meta.max_q == 1:  # decode: the one that splits long KV over the device's cores (flash-attention#1217)
            out: Tensor = self._ops.flash_attn_with_kvcache(
                q.unsqueeze(1), keys, values, cache_seqlens=meta.kv_lens, block_table=meta.block_table, causal=True
            )
            return out.squeeze(1)
        out = self._ops.flash_attn_varlen_func(
            q,
            keys,
            values,
            cu_seqlens_q=meta.cu_q,
            cu_seqlens_k=meta.cu_k,  # required beside a block table, for its differences
            max_seqlen_q=meta.max_q,
            max_seqlen_k=meta.max_k,
            causal=True,
            block_table=meta.block_table,
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

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, meta: FlashMeta, pool: PagePool) -> Tensor:
        """See AttentionBackend."""
        write_kv(pool, layer, k, v, meta.slots)
        out: Tensor = self._varlen_attn(
            q,
            pool.kv[:, layer, 0],
            pool.kv[:, layer, 1],
            meta.cu_q,
            meta.cu_k,  # FlashAttention-2 wants it beside a block table
            meta.max_q,
            meta.max_k,
            window_size=(-1, 0),  # causal, in torch's spelling
            enable_gqa=True,
            seqused_k=meta.kv_lens,
            block_table=meta.block_table,
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
