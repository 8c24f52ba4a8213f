"""FlashAttention-2's paged functions on a CPU: the real signatures and the real checks, computed with plain torch.

As the device code does, they read whole pages and mask afterwards, so NaN in an unwritten slot of a row's last page
reaches the output; and they touch a block table only where the row has keys.
"""

import torch


def flash_attn_varlen_func(  # flash-attn 2.8.3
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    _check(q, k, v, block_table)
    _check_cu(cu_seqlens_q, block_table)
    _check_cu(cu_seqlens_k, block_table)
    assert (dropout_p, window_size, softcap, alibi_slopes, return_attn_probs) == (0.0, (-1, -1), 0.0, None, False)
    kv_lens = cu_seqlens_k.diff()
    assert max_seqlen_k >= int(kv_lens.max()), "max_seqlen_k is too small"
    return _ragged(q, k, v, cu_seqlens_q, kv_lens, max_seqlen_q, softmax_scale, causal, block_table)


def flash_attn_with_kvcache(  # flash-attn 2.8.3
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    block_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
):
    _check(q, k_cache, v_cache, block_table)
    assert q.dim() == 4, "q must have shape (batch_size, seqlen_q, nheads, headdim)"
    assert q.shape[0] == len(block_table), "block_table must have shape (batch_size, max_num_blocks_per_seq)"
    assert cache_seqlens.dtype == torch.int32, "seqlens_k must have dtype int32"
    assert cache_seqlens.shape == (q.shape[0],), "seqlens_k must have shape (batch_size)"
    unused = (k, v, rotary_cos, rotary_sin, cache_batch_idx, cache_leftpad, alibi_slopes)
    assert all(argument is None for argument in unused)
    batch, length = q.shape[:2]
    cu = torch.arange(0, batch * length + 1, length, dtype=torch.int32)
    flat = q.flatten(0, 1)
    out = _ragged(flat, k_cache, v_cache, cu, cache_seqlens, length, softmax_scale, causal, block_table)
    return out.view_as(q)


def varlen_attn(  # torch 2.13
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    _check(query, key, value, block_table)
    _check_cu(cu_seq_q, block_table)
    _check_cu(cu_seq_k, block_table)
    if not enable_gqa and query.size(1) != key.size(2):
        raise ValueError("Expect query and key/value to have the same number of heads")
    assert seqused_k is not None, "block_table requires seqused_k"
    assert seqused_k.dtype == torch.int32, "seqused_k must have dtype int32"
    assert seqused_k.shape == (len(block_table),), "seqused_k must have shape (batch_size)"
    assert max_k >= int(seqused_k.max()), "max_k is too small"
    assert num_splits == 1, "split KV loses rows of a paged varlen call (pytorch#194167)"
    assert window_size in ((-1, -1), (-1, 0))
    assert return_aux is None
    causal = window_size == (-1, 0)
    return _ragged(query, key, value, cu_seq_q, seqused_k, max_q, scale, causal, block_table)


def _check(q, k, v, block_table):
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    assert k.dtype == v.dtype == q.dtype, "query and key must have the same dtype"
    assert block_table is not None, "only the paged calls are faked"
    assert block_table.dtype == torch.int32, "block_table must have dtype torch.int32"
    assert block_table.dim() == 2
    assert block_table.stride(-1) == 1, "block_table must have contiguous last dimension"
    for tensor in (q, k, v):
        assert tensor.stride(-1) == 1, "Input tensor must have contiguous last dimension"
    assert k.shape == v.shape
    assert k.dim() == 4, "paged K and V are (num_blocks, page_block_size, nheads_k, headdim)"
    assert k.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256"
    assert q.shape[-1] == k.shape[-1] <= 256, "FlashAttention forward only supports head dimension at most 256"
    assert q.shape[-1] % 8 == 0, "head_size must be a multiple of 8"
    assert q.shape[-2] % k.shape[-2] == 0, "Number of heads in key/value must divide number of heads in query"


def _check_cu(cu, block_table):
    assert cu is not None, "cu_seqlens is required, paged or not"
    assert cu.dtype == torch.int32, "cu_seqlens must have dtype int32"
    assert cu.is_contiguous()
    assert cu.shape == (len(block_table) + 1,), "cu_seqlens must have shape (batch_size + 1)"


def _ragged(q, k, v, cu_q, kv_lens, max_q, scale, causal, block_table):
    group, size = q.shape[1] // k.shape[2], k.shape[1]
    assert int(cu_q[-1]) == len(q), "cu_seqlens_q must end at the number of queries"
    assert max_q >= int(cu_q.diff().max()), "max_seqlen_q is too small"
    out = torch.empty_like(q)
    for i, kv_len in enumerate(kv_lens.tolist()):
        table = block_table[i, : -(-kv_len // size)]
        assert kv_len <= block_table.shape[1] * size, "a row's keys do not fit its block table"
        assert bool(((table >= 0) & (table < len(k))).all()), "illegal memory access"
        queries = q[cu_q[i] : cu_q[i + 1]].float()
        keys, values = (part[table.long()].flatten(0, 1).float().repeat_interleave(group, 1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * (q.shape[-1] ** -0.5 if scale is None else scale)
        last = torch.arange(len(queries)) + (kv_len - len(queries)) if causal else torch.tensor(kv_len - 1)
        scores = scores.masked_fill(torch.arange(len(keys)) > last[..., None], -torch.inf)
        out[cu_q[i] : cu_q[i + 1]] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(q.dtype)
    return out
