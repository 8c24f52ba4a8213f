"""THE ENGINE: a batch in, answers out. The torch body of `backend.Backend`.

One step, in this order:

    chain           tokens that the step before has drawn take their places
    moves           pages between the tiers, begun here and waited for at the end: they go on beside the step
    copies          pages over pages, before anything else touches them
    edits           slots into other pages, their keys turned to other positions
    load tails      hidden states of rows that ask what comes after the tokens they have already
    forward         all new tokens of all rows as one flat sequence; attention stores their K and V
    answer          logits and samples, at the asked positions alone
    save tails      the hidden state after each row's last new token, beside the page that holds that token

A tail makes a file know what comes next: it can be asked again, or by a fork, for the price of one row of logits.
Tails are saved last, so a step that fails (memory is only found to be short on the way) leaves those of the step
before; what it wrote into the rows' own new slots nobody has been told of. What a step has drawn is known to the next
one alone.

Pages and who owns them are the kernel's to know. Never put scheduling, caching or waiting in here.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpuworker import sampling
from gpuworker.attention.backend import AttentionBackend, RowSpec
from gpuworker.backend import Facts, RowView, StepError, chain, check, check_fetch, check_store, drawn_by, rows
from gpuworker.edits import edit
from gpuworker.hosttier import HostTier
from gpuworker.models.registry import Model
from gpuworker.pagepool import PagePool, tail_number
from gpuworker.wire import Answer, Assets, Batch, BatchDone, BatchDoneHead, RowDone
from sdk.abi.errors import Errno

SLICE_LOGITS = 1 << 23  # logits in memory at once: 32 MiB in fp32, and as much again a few times while they are read
CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory: "

Copies = list[tuple[int, int]]


class Engine:
    """A model, its pages and its attention on one device."""

    def __init__(
        self, model: Model, pool: PagePool, attention: AttentionBackend[Any], facts: Facts, assets: Assets
    ) -> None:
        self._model, self._pool, self._attention = model, pool, attention
        self._facts, self._assets = facts, assets
        self._device = pool.kv.device
        self._host = HostTier(pool, facts.n_host_pages)
        self._drawn: dict[int, int] = {}  # by the batch before

    def info(self) -> Facts:
        return self._facts

    def assets(self) -> Assets:
        return self._assets

    @torch.inference_mode()
    def run(self, batch: Batch) -> BatchDone:
        """See backend.Backend. Raises StepError: EINVAL for a batch out of range, ENOSPC for a lack of memory."""
        started, head = time.perf_counter(), batch.head
        drawn, self._drawn = self._drawn, {}
        check(batch, self._facts)
        batch = chain(batch, drawn)
        finish_moves = self._host.start(head.moves_out, head.moves_in)
        try:
            with lack_of_memory_refused():
                done, logits = self._step(batch)
            step_s = time.perf_counter() - started
        finally:
            move_s = finish_moves()
        self._drawn = drawn_by(done)
        return BatchDone(BatchDoneHead(head.seq, done, len(batch.tokens), step_s, move_s), logits)

    def fetch(self, pages: Sequence[int]) -> memoryview:
        """See backend.Backend."""
        check_fetch(pages, self._facts)
        with lack_of_memory_refused():
            return self._host.read(pages)

    def store(self, pages: Sequence[int], contents: bytes | memoryview) -> None:
        """See backend.Backend."""
        check_store(pages, contents, self._facts)
        with lack_of_memory_refused():
            self._host.write(pages, contents)

    def _step(self, batch: Batch) -> tuple[list[RowDone], bytes]:
        """The rows' answers, and their raw logits."""
        views = list(rows(batch))
        for copies in independent(batch.head.copies):
            self._pool.copy(copies)
        if batch.head.edits:
            edit(self._pool, batch.head.edits, self._model.turn)
        tails = self._load_tails(views)
        hidden = self._forward(batch, views)
        answers, logits = self._answer(views, torch.cat([tails, hidden]) if len(tails) else hidden)
        self._save_tails(views, hidden)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return [RowDone(v.row.job, [next(answers) for _ in v.row.asks]) for v in views], logits

    def _load_tails(self, views: Sequence[RowView]) -> Tensor:
        """[n, hidden]: one for each row that asks at -1, in row order."""
        before = [(v.pages, v.row.n_before) for v in views if _asks_tail(v)]
        tails = [tail_number(pages[(n - 1) // self._pool.page_size], n) for pages, n in before]
        return self._pool.load_tails(self._tensor(tails))

    def _forward(self, batch: Batch, views: Sequence[RowView]) -> Tensor:
        """[T, hidden]: after each new token of the batch, in order."""
        new = [RowSpec(list(v.pages), v.row.n_before, v.row.n_new, v.row.visible) for v in views if v.row.n_new]
        if not new:
            return self._pool.tails[:0, 0]
        meta = self._attention.plan(new, self._pool)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self._attention.attend(layer, q, k, v, meta, self._pool)

        return self._model.forward(self._tensor(batch.tokens), self._tensor(batch.positions), attend)

    def _answer(self, views: Sequence[RowView], hidden: Tensor) -> tuple[Iterator[Answer], bytes]:
        """Answers in the order of the asks, and their raw logits. `hidden`: the loaded tails, then the new tokens."""
        asks = [ask for v in views for ask in v.row.asks]
        histories = [history for v in views for history in v.histories]
        at = self._tensor(_places(views))
        answers: list[Answer] = []
        raw: list[bytes] = []
        step = max(1, SLICE_LOGITS // self._facts.model.vocab_size)
        for i in range(0, len(asks), step):
            logits = self._model.logits(hidden[at[i : i + step]])
            answers += sampling.answers(logits, asks[i : i + step], histories[i : i + step])
            whole = [j for j, ask in enumerate(asks[i : i + step]) if ask.logits]
            if whole:
                raw.append(logits[whole].cpu().numpy().tobytes())
        return iter(answers), b"".join(raw)

    def _save_tails(self, views: Sequence[RowView], hidden: Tensor) -> None:
        tails = [tail_number(v.pages[-1], v.row.n_before + v.row.n_new) for v in views if v.row.n_new]
        if tails:
            last = np.cumsum([v.row.n_new for v in views if v.row.n_new]) - 1
            self._pool.save_tails(self._tensor(tails), hidden[self._tensor(last)])

    def _tensor(self, values: Any) -> Tensor:
        """int64, on the device; from a list, or from an array of u32, of which torch knows little."""
        return torch.from_numpy(np.array(values, dtype=np.int64)).to(self._device)


def independent(copies: Copies) -> Iterator[Copies]:
    """Cuts copies that are meant one after another into runs that may be done at once: in a run no page that was
    written is read or written again."""
    run: Copies = []
    written: set[int] = set()
    for source, destination in copies:
        if source in written or destination in written:
            yield run
            run, written = [], set()
        run.append((source, destination))
        written.add(destination)
    if run:
        yield run


def _asks_tail(view: RowView) -> bool:
    return any(ask.offset == -1 for ask in view.row.asks)


def _places(views: Sequence[RowView]) -> list[int]:
    """For each ask, its row in the tails followed by the new tokens."""
    tail, first = 0, sum(map(_asks_tail, views))
    places = []
    for v in views:
        places += [tail if ask.offset == -1 else first + ask.offset for ask in v.row.asks]
        tail += _asks_tail(v)
        first += v.row.n_new
    return places


@contextmanager
def lack_of_memory_refused() -> Iterator[None]:
    """Turns a lack of memory into StepError(ENOSPC)."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if (lack := lack_of_memory(e)) is None:
            raise
        raise StepError(Errno.ENOSPC, f"the worker is out of memory: {lack}") from None


def lack_of_memory(error: Exception) -> str | None:
    """What there was not enough of, in one line, or None for any other error. On a CPU torch has no type for it."""
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and CPU_ALLOCATOR not in str(error):
        return None
    return str(error).partition(CPU_ALLOCATOR)[2] or str(error).partition("\n")[0] or "no details"
