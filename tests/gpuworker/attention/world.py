"""A small world of files with known K and V, and the fp64 answer to what any step over them must read.

The answer is computed from the files' histories alone: no page, slot or table enters it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpuworker.attention.backend import RowSpec
from gpuworker.pagepool import PagePool

LAYERS = 2
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class File:
    """One row of the step. A fork shares the first `shared` pages of an earlier file, given by its number. `visible`:
    what its new tokens see, None for everything."""

    n_before: int
    n_new: int
    parent: int = 0
    shared: int = 0
    visible: tuple[tuple[int, int | None], ...] | None = None


@dataclass(frozen=True)
class Shape:
    page_size: int = 16
    q_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    dtype: torch.dtype = torch.float32


def seen(row: RowSpec) -> list[list[bool]]:
    """Whether each new token reads each of the row's tokens, by the definition: Python's own slices."""
    found = []
    for n in range(row.n_before + 1, row.n_total + 1):
        mine = {n - 1}.union(*(range(n)[start:stop] for start, stop in row.visible or [(0, None)]))
        found.append([at in mine for at in range(row.n_total)])
    return found


class World:
    def __init__(
        self, files: Sequence[File], shape: Shape, *, seed: int = 0, shuffled: bool = True, unwritten: float = 0.0
    ) -> None:
        self.shape = shape
        self._random = torch.Generator().manual_seed(seed)
        size, heads, dim = shape.page_size, shape.kv_heads, shape.head_dim
        counts = [-(-(f.n_before + f.n_new) // size) for f in files]
        n_pages = sum(counts) + 3
        self.pool = PagePool(n_pages, LAYERS, size, heads, dim, 8, shape.dtype, "cpu")
        self.pool.kv.fill_(unwritten)
        free = (torch.randperm(n_pages, generator=self._random) if shuffled else torch.arange(n_pages)).tolist()
        self.rows: list[RowSpec] = []
        self.histories: list[Tensor] = []  # [layers, 2, n_total, Hkv, D] of each file
        for file, count in zip(files, counts, strict=True):
            mine = self._normal(LAYERS, 2, file.n_before + file.n_new, heads, dim)
            pages: list[int] = []
            if file.shared:
                pages = list(self.rows[file.parent].pages[: file.shared])
                mine[:, :, : file.shared * size] = self.histories[file.parent][:, :, : file.shared * size]
            pages += [free.pop() for _ in range(count - len(pages))]
            for at in range(file.n_before):
                self.pool.kv[pages[at // size], :, :, at % size] = mine[:, :, at]
            self.rows.append(RowSpec(pages, file.n_before, file.n_new, file.visible or ()))
            self.histories.append(mine)
        self.queries = self._normal(LAYERS, sum(f.n_new for f in files), shape.q_heads, dim)

    def _normal(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self._random).to(self.shape.dtype)

    def new_kv(self, layer: int, side: int) -> Tensor:
        """K (0) or V (1) of the step's new tokens: [T, Hkv, D]."""
        pairs = zip(self.rows, self.histories, strict=True)
        return torch.cat([history[layer, side, row.n_before :] for row, history in pairs])

    def expected(self, layer: int) -> Tensor:
        """softmax(q k^T / sqrt(D) + causal mask) v, row by row and head by head, in fp64: [T, Hq, D]."""
        out, first = [], 0
        for row, history in zip(self.rows, self.histories, strict=True):
            q = self.queries[layer, first : first + row.n_new].double()
            k, v = history[layer].double().repeat_interleave(self.shape.q_heads // self.shape.kv_heads, dim=2)
            scores = torch.einsum("qhd,khd->hqk", q, k) * self.shape.head_dim**-0.5
            weights = scores.masked_fill(~torch.tensor(seen(row)), -torch.inf).softmax(-1)
            out.append(torch.einsum("hqk,khd->qhd", weights, v))
            first += row.n_new
        return torch.cat(out)

    def filled(self) -> Tensor:
        """What pool.kv must be after the step."""
        kv = self.pool.kv.clone()
        for row, history in zip(self.rows, self.histories, strict=True):
            for at in range(row.n_before, row.n_total):
                kv[row.pages[at // self.shape.page_size], :, :, at % self.shape.page_size] = history[:, :, at]
        return kv

    def run(self, backend) -> list[Tensor]:
        """The step through a body, as the engine does it: one output [T, Hq, D] a layer."""
        with torch.inference_mode():
            meta = backend.plan(self.rows, self.pool)
            return [
                backend.attend(
                    layer, self.queries[layer], self.new_kv(layer, 0), self.new_kv(layer, 1), meta, self.pool
                )
                for layer in range(LAYERS)
            ]

    def check(self, backend) -> None:
        filled = self.filled()
        for layer, out in enumerate(self.run(backend)):
            assert out.dtype == self.shape.dtype
            torch.testing.assert_close(
                out.double(), self.expected(layer), atol=TOLERANCE[self.shape.dtype], rtol=TOLERANCE[self.shape.dtype]
            )
        torch.testing.assert_close(self.pool.kv, filled, atol=0, rtol=0, equal_nan=True)
