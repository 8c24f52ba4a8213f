"""THE SEAM between the socket and the device: what serve.py drives, and what every body of it must check.

Two bodies: `engine.Engine` (torch) and `null.NullBackend` (no model). A body is called by one thread, one batch at
a time, in the order of arrival. The kernel is trusted to own the pages, not to be free of mistakes: `check` refuses
any batch that would read or write outside what the worker has, before anything is touched.

Never add scheduling, retries or knowledge of files here: the worker does what the batch says, or refuses it whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gpuworker import wire
from sdk.abi.errors import Errno
from sdk.abi.values import ModelInfo

MAX_TOP_K = 1024  # likeliest tokens an ask may want, as in sdk.abi.values.Want
MAX_LOGITS_BYTES = 128 << 20  # raw logits in one answer; a kernel takes somewhat larger messages
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Facts:
    """What the worker tells the kernel in its Welcome."""

    device: str
    attention: str
    model: ModelInfo
    n_pages: int
    max_rows: int
    max_batch_tokens: int


class StepError(Exception):
    """The batch was refused or not finished; becomes a BatchFailed. The worker is well and takes the next one."""

    def __init__(self, errno: Errno, detail: str) -> None:
        super().__init__(detail)
        self.errno = errno
        self.detail = detail


class Backend(Protocol):
    """A device with a model and pages."""

    def info(self) -> Facts:
        """Constant for the life of the worker."""

    def assets(self) -> wire.Assets:
        """The tokenizer and the chat template."""

    def run(self, batch: wire.Batch) -> wire.BatchDone:
        """Executes one batch and answers its asks. Raises StepError; any other exception is the worker's end."""


class RowView(NamedTuple):
    """A row with its slices of the batch's arrays."""

    row: wire.Row
    tokens: Sequence[int]  # [n_new]
    positions: Sequence[int]  # [n_new]
    pages: Sequence[int]  # [n_pages], its page table
    histories: list[Sequence[int]]  # one for each ask; empty where it draws nothing or counts nothing


def rows(batch: wire.Batch) -> Iterator[RowView]:
    """The batch row by row. The slices are views: they live as long as the batch."""
    token = page = word = 0
    for row in batch.head.rows:
        histories: list[Sequence[int]] = []
        for ask in row.asks:
            n = ask.draw.n_history if ask.draw else 0
            histories.append(batch.history[word : word + n])
            word += n
        yield RowView(
            row,
            batch.tokens[token : token + row.n_new],
            batch.positions[token : token + row.n_new],
            batch.pages[page : page + row.n_pages],
            histories,
        )
        token += row.n_new
        page += row.n_pages


def check(batch: wire.Batch, facts: Facts) -> None:
    """Raises StepError(EINVAL) unless every number in the batch lies inside what this worker has."""
    model, head = facts.model, batch.head
    _within(len(head.rows), facts.max_rows, "rows in one batch")
    _within(len(batch.tokens), facts.max_batch_tokens, "new tokens in one batch")
    for row in head.rows:
        _check_row(row, model)
    asks = [ask for row in head.rows for ask in row.asks]
    _within(len(asks), facts.max_rows + facts.max_batch_tokens, "asks in one batch")
    _within(4 * model.vocab_size * sum(a.logits for a in asks), MAX_LOGITS_BYTES, "bytes of raw logits in one answer")
    _below(batch.tokens, model.vocab_size, "token")
    _below(batch.history, model.vocab_size, "token of a history")
    _below(batch.positions, model.max_model_len, "position")
    _below(batch.pages, facts.n_pages, "page")
    for pair in head.copies:
        _below(pair, facts.n_pages, "page of a copy")


def _check_row(row: wire.Row, model: ModelInfo) -> None:
    who = f"job {row.job}"
    n = row.n_before + row.n_new
    if min(row.n_before, row.n_new, row.n_pages) < 0:
        raise StepError(Errno.EINVAL, f"{who}: negative sizes")
    if n > model.max_model_len:
        raise StepError(Errno.EINVAL, f"{who}: {n} tokens; this worker's files hold {model.max_model_len}")
    if row.n_pages != -(-n // model.page_size):
        raise StepError(Errno.EINVAL, f"{who}: {row.n_pages} pages of {model.page_size} for {n} tokens")
    for ask in row.asks:
        _check_ask(ask, row, who, model.vocab_size)


def _check_ask(ask: wire.Ask, row: wire.Row, who: str, vocab_size: int) -> None:
    if not -1 <= ask.offset < row.n_new:
        raise StepError(Errno.EINVAL, f"{who}: asks after new token {ask.offset} of {row.n_new}")
    if ask.offset == -1 and row.n_before == 0:
        raise StepError(Errno.EINVAL, f"{who}: an empty file predicts nothing: append a token first")
    if not 0 <= ask.top_k <= MAX_TOP_K:
        raise StepError(Errno.EINVAL, f"{who}: top_k {ask.top_k} is not in 0…{MAX_TOP_K}")
    _below(ask.logprobs_of, vocab_size, "token of logprobs_of")
    if ask.target is not None:
        _below((ask.target,), vocab_size, "target")
    if ask.draw is not None:
        draw = ask.draw
        _below(draw.sampling.logit_bias, vocab_size, "token of logit_bias")
        if not (0 <= draw.seed <= MAX_SEED and draw.position >= 0 and 0 <= draw.n_generated <= draw.n_history):
            raise StepError(Errno.EINVAL, f"{who}: seed, position or history of its draw is out of range")


def _within(n: int, limit: int, what: str) -> None:
    if n > limit:
        raise StepError(Errno.EINVAL, f"{n} {what}; this worker takes {limit}")


def _below(values: "Sequence[int] | dict[int, float] | memoryview", limit: int, what: str) -> None:
    for extreme in (min(values), max(values)) if len(values) else ():
        if not 0 <= extreme < limit:
            raise StepError(Errno.EINVAL, f"{what} {extreme} is outside 0…{limit - 1}")
