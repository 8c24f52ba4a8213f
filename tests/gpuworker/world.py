"""An engine and a kernel to drive it by hand: files, page tables, batches. And the oracle: one contiguous pass."""

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from gpuworker.engine import Engine
from gpuworker.load import load
from gpuworker.models.registry import Attend, Model
from gpuworker.options import Options
from gpuworker.wire import Answer, Ask, Batch, BatchDone, BatchHead, Row
from sdk.abi.visible import Runs

N_PAGES = 64


def engine(path: Path, attention: str = "auto", **options: Any) -> Engine:
    defaults: dict[str, Any] = {"load_format": "dummy", "dtype": "float32", "num_pages": N_PAGES, "threads": 2}
    return load(Options(model=str(path), attention=attention, **(defaults | options)), lambda line: None)


@dataclass
class File:
    """A file as a kernel keeps it."""

    n: int = 0
    pages: list[int] = field(default_factory=list)


@dataclass
class Job:
    """New tokens of a file, and what to ask. Offsets count from the first of them."""

    file: File
    tokens: Sequence[int] = ()
    asks: Sequence[Ask] = ()
    positions: Sequence[int] | None = None
    chained: bool = False
    number: int | None = None  # by default its place in the batch
    visible: Runs = ()


class Kernel:
    """Gives out an engine's pages, in a shuffled order, and speaks to it in batches."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        pages = list(range(engine.info().n_pages))
        random.Random(1).shuffle(pages)
        self.free = iter(pages)
        self.copies: list[tuple[int, int]] = []
        self.moves_out: list[tuple[int, int]] = []
        self.moves_in: list[tuple[int, int]] = []

    def fork(self, file: File) -> File:
        child = File(file.n, list(file.pages))
        if file.n % self.engine.info().model.page_size:
            child.pages[-1] = next(self.free)
            self.copies.append((file.pages[-1], child.pages[-1]))
        return child

    def batch(self, jobs: Sequence[Job]) -> Batch:
        """The files are as long as if it had succeeded."""
        size = self.engine.info().model.page_size
        rows, tokens, positions, pages = [], array("I"), array("I"), array("I")
        for i, job in enumerate(jobs):
            file, n_new = job.file, len(job.tokens)
            while len(file.pages) * size < file.n + n_new:
                file.pages.append(next(self.free))
            number = i if job.number is None else job.number
            row = Row(number, file.n, n_new, len(file.pages), list(job.asks), job.chained, list(job.visible))
            rows.append(row)
            tokens.extend(job.tokens)
            positions.extend(job.positions if job.positions is not None else range(file.n, file.n + n_new))
            pages.extend(file.pages)
            file.n += n_new
        head = BatchHead(1, self.copies, rows, 0, self.moves_out, self.moves_in)
        self.copies, self.moves_out, self.moves_in = [], [], []
        return Batch(head, tokens, positions, pages, array("I"))

    def run(self, *jobs: Job) -> list[list[Answer]]:
        return [row.answers for row in self.engine.run(self.batch(jobs)).head.rows]

    def logits(self, *jobs: Job) -> list[Tensor]:
        """Raw logits of all asks, [asks of the job, vocab] for each job."""
        asking = [replace(j, asks=[msgspec.structs.replace(a, logits=True) for a in j.asks]) for j in jobs]
        done = self.engine.run(self.batch(asking))
        flat = matrix(done, self.engine)
        return list(torch.split(flat, [len(j.asks) for j in jobs]))


def matrix(done: BatchDone, engine: Engine) -> Tensor:
    flat = np.frombuffer(done.logits, dtype="<f4").reshape(-1, engine.info().model.vocab_size)
    return torch.from_numpy(flat.copy())


def mask_of(n: int, *parts: tuple[int, Runs]) -> Tensor:
    """bool [n, n]: what each token sees, by the definition; from each part's first token on these runs hold."""
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    for first, runs in parts:
        for i in range(first, n):
            mask[i] = False
            mask[i, i] = True
            for start, stop in runs or [(0, None)]:
                mask[i, : i + 1][start:stop] = True
    return mask


def every(tokens: Sequence[int]) -> list[Ask]:
    return [Ask(i) for i in range(len(tokens))]


def contiguous(
    engine: Engine, tokens: Sequence[int], positions: Sequence[int] | None = None, mask: Tensor | None = None
) -> Tensor:
    """Logits [T, vocab] of one plain causal pass of the same weights: no pages, no chunks, no batch. `mask`: bool
    [T, T], what each token sees."""
    seen = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril() if mask is None else mask

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)

    model = engine._model
    at = list(range(len(tokens))) if positions is None else list(positions)
    with torch.inference_mode():
        return model.logits(model.forward(torch.tensor(tokens), torch.tensor(at), attend)).clone()


def words(seed: int, n: int) -> list[int]:
    return random.Random(seed).choices(range(300), k=n)


def assert_close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


class FailingModel:
    """A model whose device fails when it comes to the logits, as often as it is told to."""

    def __init__(self, inner: Model, error: Exception) -> None:
        self.inner, self.error, self.n_failures = inner, error, 0

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        return self.inner.forward(ids, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        if self.n_failures:
            self.n_failures -= 1
            raise self.error
        return self.inner.logits(hidden)


def failing(tiny: Engine, error: Exception) -> tuple[Kernel, FailingModel]:
    model: Any = FailingModel(tiny._model, error)
    return Kernel(Engine(model, tiny._pool, tiny._attention, tiny.info(), tiny.assets())), model
