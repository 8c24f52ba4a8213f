"""THE CONTRACT of attention over pages: what a step looks like, what a body can do, how K and V are stored.

A step is a list of rows; the rows' new tokens are flattened in row order in q, k and v. A body first writes the new
K and V into the rows' pages, then lets query i of a row read its keys 0 .. n_before + i, or those of them that the
row's visible runs name (sdk/abi/visible.py). Masks are by index alone: positions live in the rotated q and k. Rows may
share leading pages (forks of one file); shared pages are only read.

Called by the engine, once `plan` and n_layers times `attend` for each step. Never add scheduling or page ownership.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from gpuworker.pagepool import PagePool
from sdk.abi.visible import Runs, spanned


@dataclass(frozen=True, slots=True)
class RowSpec:
    """One file's share of a step."""

    pages: Sequence[int]  # the file's page table; covers n_before + n_new tokens, may be longer
    n_before: int  # tokens whose K and V are in the pages already
    n_new: int  # tokens of this row in this step, at least 1
    visible: Runs = ()  # what each new token may read, beside itself; empty: all before it

    @property
    def n_total(self) -> int:
        """Keys that the row's last query reads."""
        return self.n_before + self.n_new


@dataclass(frozen=True, slots=True)
class AttentionCaps:
    """What a body can do. `needs_finite_pool`: it multiplies unwritten slots by zero, so none may hold NaN or inf."""

    name: str
    devices: frozenset[str]  # torch device types
    dtypes: frozenset[torch.dtype]
    head_dims: Callable[[int], bool]
    page_sizes: Callable[[int], bool]
    default_page_size: int
    needs_finite_pool: bool

    def refusal(self, device: str, dtype: torch.dtype, head_dim: int, page_size: int) -> str | None:
        """Why this body cannot serve such a model, in a few words; None if it can."""
        if device not in self.devices:
            return f"no {device} devices"
        if dtype not in self.dtypes:
            return f"no {dtype}"
        if not self.head_dims(head_dim):
            return f"no head_dim {head_dim}"
        if not self.page_sizes(page_size):
            return f"no pages of {page_size} tokens, only {self.default_page_size} or a multiple"
        return None


Meta = TypeVar("Meta")


class AttentionBackend(Protocol[Meta]):
    """A body. Stateless between steps: all that a step needs is in its meta."""

    @property
    def caps(self) -> AttentionCaps: ...

    def plan(self, rows: Sequence[RowSpec], pool: PagePool) -> Meta:
        """Everything that the step's layers share, from host lists. Good for one step. Raises ValueError for a row
        without new tokens or with too few pages.
        """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, meta: Meta, pool: PagePool) -> Tensor:
        """Stores k, v [T, Hkv, D] of `layer`, then returns what q [T, Hq, D] reads: [T, Hq, D], scale D**-0.5.

        All in the pool's dtype; q head h reads KV head h // (Hq // Hkv).
        """


def pages_in_sight(row: RowSpec, first: int, n_queries: int, page_size: int) -> list[int]:
    """Where in the row's table are the pages that one of its new tokens first … first + n_queries - 1 sees, ascending.
    Perhaps more than those."""
    spans = spanned(row.visible, row.n_before + first, n_queries)
    pages: list[int] = []
    for start, stop in spans:
        begin = start // page_size
        pages += range(begin + 1 if pages and pages[-1] == begin else begin, -(-stop // page_size))
    return pages


@dataclass(frozen=True, slots=True)
class Window:
    """What some consecutive queries of a row may read, as whole pages laid end to end: the pages that none of them
    sees are left out. Key i of these pages is token `tokens[i]` of the file; no key is beyond the last query."""

    pages: list[int]
    tokens: Tensor  # int64 [n_keys], ascending

    @staticmethod
    def of(row: RowSpec, first: int, n_queries: int, page_size: int) -> "Window":
        """Of the row's new tokens first … first + n_queries - 1."""
        at = pages_in_sight(row, first, n_queries, page_size)
        tokens = (torch.tensor(at)[:, None] * page_size + torch.arange(page_size)).flatten()
        return Window([row.pages[page] for page in at], tokens[tokens < row.n_before + first + n_queries])

    def mask(self, row: RowSpec, first: int, n_queries: int) -> Tensor:
        """bool [n_queries, n_keys], True where a query may read."""
        ends = torch.arange(row.n_before + first + 1, row.n_before + first + n_queries + 1)[:, None]
        seen = self.tokens == ends - 1
        for start, stop in row.visible:
            begin = (ends + start).clamp(min=0) if start < 0 else torch.tensor(start)
            end = ends if stop is None else ends + stop if stop < 0 else ends.clamp(max=stop)
            seen |= (self.tokens >= begin) & (self.tokens < end)
        return seen


def slot_mapping(rows: Sequence[RowSpec], pool: PagePool) -> Tensor:
    """Where each of the step's new tokens is stored: int64 [T], on the pool's device.

    A slot is the number of the token's K of layer 0 in `pool.kv` seen as rows [-1, kv_heads * head_dim]. Its K of
    layer l is 2 * l * page_size rows further, and its V another page_size rows.
    """
    size, stride = pool.page_size, rows_per_page(pool)
    slots: list[int] = []
    for row in rows:
        if row.n_new < 1 or row.n_before < 0:
            raise ValueError(f"a row of {row.n_new} new tokens after {row.n_before}: give it at least one new token")
        if len(row.pages) * size < row.n_total:
            raise ValueError(f"{len(row.pages)} pages of {size} cannot hold a row's {row.n_total} tokens: add pages")
        slots += [row.pages[at // size] * stride + at % size for at in range(row.n_before, row.n_total)]
    return torch.tensor(slots, dtype=torch.int64).to(pool.kv.device)


def rows_per_page(pool: PagePool) -> int:
    """Token rows (one token's K or V of one layer) in one page of all layers."""
    n_layers = pool.kv.shape[1]
    return n_layers * 2 * pool.page_size


def write_kv(pool: PagePool, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Stores k and v [T, Hkv, D] of `layer` at `slots` (see `slot_mapping`)."""
    token_rows = pool.kv.view(-1, pool.kv.shape[-2] * pool.kv.shape[-1])
    first = 2 * layer * pool.page_size
    token_rows[first:].index_copy_(0, slots, k.flatten(1))
    token_rows[first + pool.page_size :].index_copy_(0, slots, v.flatten(1))
