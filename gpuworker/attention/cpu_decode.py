"""Attention of rows with few new tokens on a CPU: read K and V where they lie, for all rows of a step at once.

Decode has one query per row against hundreds of scattered keys. Gathering pages first would write and read every key
once more, and a loop over rows would cost ~20 us of Python a row and layer. Instead the step's scores are one sparse
matrix (a row per query head, a column per head vector of the pool, an entry per key that is read):

    scores = sampled_addmm(q, K^T)      dot products at the entries only (SDDMM), K indexed in place
    scores = softmax(scores)            over each row's entries
    out    = embedding_bag(V, scores)   weighted sums of indexed rows of V

Nothing is padded and page order does not matter. Each query's arithmetic is its own: a row's result is the same to
the bit in any batch, save where queries share a long prefix (cpu_prefix.py): that prefix is one more key, whose score
is its log-sum-exp and whose value is its output. A query of a row with visible runs has entries for the keys that it
sees, so a window of 256 tokens costs like a context of 256.

Measured on two cores of an AMD EPYC (AVX2, ~25 GB/s), us per layer, fp32, Hq=9, Hkv=3, D=64, page 16, K and V in DRAM:

    rows x context    per-row gather + SDPA    padded gather + SDPA    this    this, bf16
     1 x 500                   92                      88                53        77
     8 x 200                  439                     255               127       173
    16 x 200                  850                     379               250       283
    16 x 500                 1384                     835               543       613      (DRAM alone, fp32: ~490)

Entries are fp32, since sampled_addmm has no half types: of a bf16 pool the step's pages are gathered and widened,
which is no slower than a padded bf16 gather + SDPA (670 at 16 x 500) and loses no precision.

Called by cpu.py. Never add rows with many new tokens here: from ~9 on, matrix products win.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from gpuworker.attention.backend import RowSpec, pages_in_sight
from gpuworker.attention.cpu_gather import page_index
from gpuworker.attention.cpu_prefix import SharedPrefix, group_by_prefix
from gpuworker.pagepool import PagePool
from sdk.abi.visible import intervals

with warnings.catch_warnings():
    # Torch says once per process that its CSR layout is beta; the three operations used here are covered by tests.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1))

INT32_ROWS = 2**31  # int32 halves the traffic of indices; a larger pool (512 GB at D=64) needs int64


@dataclass(frozen=True, slots=True)
class _Scores:
    """One step's score matrix: a row per (query, head), kept across layers and overwritten by each."""

    matrix: Tensor  # CSR [n * Hq, head vectors], fp32
    entries: Tensor  # its values; a view
    columns: Tensor  # its column indices
    starts: Tensor  # [n * Hq]: each row's first entry
    blocks: list[Tensor]  # entries as [rows, width], for the softmax; a block is a run of rows of equal width
    prefix_cells: list[Tensor]  # for each shared prefix, int64 [G * Hq]: the entries that stand for it


class DecodeBatch:
    """The query tokens of a step's short rows, and where their keys are. Good for one step."""

    def __init__(self, rows: Sequence[RowSpec], pool: PagePool, group_prefixes: bool = True) -> None:
        """Costs ~20 us a row."""
        size, kv_heads = pool.page_size, pool.kv.shape[-2]
        groups = group_by_prefix(rows, size) if group_prefixes else []
        skipped = {member: len(group.pages) for group in groups for member in group.members}
        in_sight = {i: pages_in_sight(row, 0, row.n_new, size) for i, row in enumerate(rows) if row.visible}
        own = [
            [row.pages[page] for page in in_sight[i]]
            if row.visible
            else row.pages[skipped.get(i, 0) : -(-row.n_total // size)]
            for i, row in enumerate(rows)
        ]
        self._vectors = _HeadVectors(own, pool)
        self._keys: list[Tensor] = []  # for each query: the vectors it reads, of KV head 0
        in_page = torch.arange(0, size * kv_heads, kv_heads, dtype=self._vectors.index)
        queries: list[range] = []
        for i, row in enumerate(rows):
            keys = (self._vectors.page_starts(own[i])[:, None] + in_page).flatten()
            first = row.n_before + 1 - skipped.get(i, 0) * size
            queries.append(range(len(self._keys), len(self._keys) + row.n_new))
            if row.visible:
                self._keys += _seen(row, keys, in_sight[i], size)
                continue
            for n_read in range(first, first + row.n_new):
                # A shared prefix is one more entry at the end. Its column gets weight 0: any that is written will do.
                self._keys.append(torch.cat([keys[:n_read], keys[:1]]) if i in skipped else keys[:n_read])
        self._prefixes = [SharedPrefix(g.pages, [t for m in g.members for t in queries[m]], pool) for g in groups]
        self._scores: _Scores | None = None

    def attend(self, layer: int, q: Tensor, pool: PagePool) -> Tensor:
        """What q [n, Hq, D] reads, in the order of the rows' tokens: [n, Hq, D]. K and V are in the pool already."""
        n, heads, dim = q.shape
        scores = self._scores = self._scores or self._layout(heads, pool.kv.shape[-2])
        matrix, keys = scores.matrix, self._vectors.read(layer, 0, pool)
        queries = q.reshape(n * heads, dim).float()
        torch.sparse.sampled_addmm(matrix, queries, keys.t(), beta=0.0, alpha=dim**-0.5, out=matrix)
        prefixes = [prefix.attend(layer, q, pool) for prefix in self._prefixes]
        for cells, (_, lse) in zip(scores.prefix_cells, prefixes, strict=True):
            scores.entries.index_copy_(0, cells, lse.flatten())
        for block in scores.blocks:
            torch.softmax(block, -1, out=block)
        weights = [scores.entries.index_select(0, cells) for cells in scores.prefix_cells]
        for cells in scores.prefix_cells:
            scores.entries.index_fill_(0, cells, 0.0)
        values = self._vectors.read(layer, 1, pool)
        out = torch.embedding_bag(values, scores.columns, scores.starts, mode=0, per_sample_weights=scores.entries)[0]
        out = out.view(n, heads, dim)
        for prefix, (read, lse), weight in zip(self._prefixes, prefixes, weights, strict=True):
            out.index_add_(0, prefix.queries, read * weight.view_as(lse)[..., None])
        return out.to(q.dtype)

    def _layout(self, heads: int, kv_heads: int) -> _Scores:
        """Builds the score matrix, once the first layer's q has told the number of query heads."""
        index, group = self._vectors.index, heads // kv_heads
        widths = torch.tensor([len(keys) for keys in self._keys], dtype=index)
        ends = widths.repeat_interleave(heads).cumsum(0, dtype=index)
        starts = torch.cat([torch.zeros(1, dtype=index), ends])
        columns, entries = torch.empty(int(ends[-1]), dtype=index), torch.zeros(int(ends[-1]))
        head = torch.arange(kv_heads, dtype=index).view(kv_heads, 1, 1).expand(kv_heads, group, 1)
        at = 0
        for keys in self._keys:
            torch.add(keys, head, out=columns[at : at + heads * len(keys)].view(kv_heads, group, len(keys)))
            at += heads * len(keys)
        shape = (len(ends), self._vectors.n_rows)
        matrix = torch.sparse_csr_tensor(starts, columns, entries, shape, check_invariants=False)
        blocks, at = [], 0
        for width, run in groupby(widths.tolist()):
            size = len(list(run)) * heads * width
            blocks.append(matrix.values()[at : at + size].view(-1, width))
            at += size
        last = (ends.to(torch.int64) - 1).view(-1, heads)
        cells = [last.index_select(0, prefix.queries).flatten() for prefix in self._prefixes]
        return _Scores(matrix, matrix.values(), columns, starts[:-1], blocks, cells)


def _seen(row: RowSpec, keys: Tensor, pages: Sequence[int], size: int) -> Iterator[Tensor]:
    """Of `keys`, those of these pages of the row, what each of its new tokens sees."""
    begins = {page: i * size for i, page in enumerate(pages)}
    for n in range(row.n_before + 1, row.n_total + 1):
        parts = []
        for start, stop in intervals(row.visible, n):
            first = begins[start // size] + start % size  # all pages of an interval are there, one after another
            parts.append(keys[first : first + stop - start])
        yield torch.cat(parts) if len(parts) > 1 else parts[0]


class _HeadVectors:
    """K or V of one layer as fp32 rows [n_rows, D], one for each slot and KV head: what the score matrix indexes.

    In an fp32 pool they are a view. Of any other pool, the pages that the step reads are copied and widened.
    """

    def __init__(self, tables: Sequence[Sequence[int]], pool: PagePool) -> None:
        _, n_layers, _, size, kv_heads, dim = pool.kv.shape
        self._rows_per_side = size * kv_heads  # in one page, of one layer's K
        self._in_place = pool.kv.dtype == torch.float32
        if self._in_place:
            n_pages, self._page_stride = pool.num_pages, n_layers * 2 * self._rows_per_side
        else:
            self._number = {page: i for i, page in enumerate(dict.fromkeys(p for table in tables for p in table))}
            n_pages, self._page_stride = len(self._number), self._rows_per_side
            self._pages = page_index(self._number)
            self._narrow = torch.empty(n_pages, size, kv_heads, dim, dtype=pool.kv.dtype)
            self._wide = torch.empty_like(self._narrow, dtype=torch.float32)
        # From the first page's first row to the last page's last, in any layer: each layer's view has this length.
        self.n_rows = (n_pages - 1) * self._page_stride + self._rows_per_side
        self.index = torch.int32 if n_pages * self._page_stride < INT32_ROWS else torch.int64

    def page_starts(self, table: Sequence[int]) -> Tensor:
        """The first row of each page of a table: [n]."""
        numbers = list(table) if self._in_place else [self._number[page] for page in table]
        return torch.tensor(numbers, dtype=self.index) * self._page_stride

    def read(self, layer: int, side: int, pool: PagePool) -> Tensor:
        """K (side 0) or V (side 1) of `layer`: [n_rows, D]. A widened copy is overwritten by the next read."""
        if self._in_place:
            first = (2 * layer + side) * self._rows_per_side
            return pool.kv.view(-1, pool.kv.shape[-1])[first : first + self.n_rows]
        torch.index_select(pool.kv[:, layer, side], 0, self._pages, out=self._narrow)
        return self._wide.copy_(self._narrow).view(-1, pool.kv.shape[-1])
