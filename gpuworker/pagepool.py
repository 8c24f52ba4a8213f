"""The worker's KV memory: one tensor of pages, and two tails for each page (what they are: gpuworker/backend.py).

`kv` is [pages, layers, 2, page, kv_heads, head_dim]: one page of all layers is one contiguous blob, so a copy, a swap
or a migration moves one piece of memory, and each layer sees a strided view. K is stored rotated. Everything starts
as zeros and stays finite in what has been written: some attention bodies multiply unwritten slots by zero.

Called by the engine and by hosttier.py. Which file owns which page, and which page is free, is the kernel's to know:
never add it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

COPY_CHUNK = 32  # pages in flight in one copy: bounds the temporary memory (24 MiB for a 135M model in fp32)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of zeros. In main memory it costs nothing until it is written: torch would write all of it, seconds
    for a few GiB, where calloc hands out pages that the system zeroes when they are first touched."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)


class PagePool:
    """The pages of one model on one device."""

    def __init__(
        self,
        num_pages: int,
        n_layers: int,
        page_size: int,
        n_kv_heads: int,
        head_dim: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Allocates all pages at once. Raises torch.OutOfMemoryError, or MemoryError on the CPU, if they don't fit."""
        self.num_pages = num_pages
        self.page_size = page_size
        self.kv = zeros((num_pages, n_layers, 2, page_size, n_kv_heads, head_dim), dtype, torch.device(device))
        self.tails = zeros((num_pages, 2, hidden_size), dtype, torch.device(device))

    @staticmethod
    def bytes_per_page(
        n_layers: int, page_size: int, n_kv_heads: int, head_dim: int, hidden_size: int, dtype: torch.dtype
    ) -> int:
        """Memory of one page with its tails, in bytes; also the size of its contents."""
        return (n_layers * 2 * page_size * n_kv_heads * head_dim + 2 * hidden_size) * dtype.itemsize

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies page `src` over page `dst`, blob and tails, for each (src, dst).

        All copies read the state before the call, whatever their order, so a source may be another pair's destination
        and may be shared. Raises ValueError for a page that does not exist or a destination named twice.
        """
        sources, destinations = [src for src, _ in pairs], [dst for _, dst in pairs]
        for page in (*sources, *destinations):
            if not 0 <= page < self.num_pages:
                raise ValueError(f"page {page} does not exist: the pool has pages 0 to {self.num_pages - 1}")
        if len(set(destinations)) < len(destinations):
            raise ValueError("a page is the destination of two copies: give each destination once")
        # Only when a source is overwritten in the same call must everything be read before anything is written.
        step = len(pairs) if set(sources) & set(destinations) else COPY_CHUNK
        for start in range(0, len(pairs), max(step, 1)):
            src = torch.tensor(sources[start : start + step], device=self.kv.device)
            dst = torch.tensor(destinations[start : start + step], device=self.kv.device)
            for part in (self.kv, self.tails):
                part.index_copy_(0, dst, part.index_select(0, src))

    def save_tails(self, tails: Tensor, hidden: Tensor) -> None:
        """Stores hidden [n, hidden_size] as the tails of these numbers [n] (int64, distinct; see `tail_number`)."""
        self.tails.flatten(0, 1).index_copy_(0, tails, hidden)

    def load_tails(self, tails: Tensor) -> Tensor:
        """The tails [n, hidden_size] of these numbers [n] (int64); a copy."""
        return self.tails.flatten(0, 1).index_select(0, tails)

    def as_bytes(self) -> tuple[Tensor, Tensor]:
        """The contents of the pages in their two parts, KV and tails: each uint8 [num_pages, bytes]; views."""
        kv, tails = (part.flatten(1).view(torch.uint8) for part in (self.kv, self.tails))
        return kv, tails


def tail_number(page: int, n_tokens: int) -> int:
    """Of the tail after `n_tokens` tokens, the last of which is in `page`."""
    return 2 * page + n_tokens % 2
