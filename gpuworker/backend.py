"""THE SEAM between the socket and the device: what serve.py drives, and what every body of it must check.

Two bodies: `engine.Engine` (torch) and `null.NullBackend` (no model). A body is called by one thread, one piece of
work at a time, in the order of arrival. The kernel is trusted to own the pages, not to be free of mistakes: `check`
and its kin refuse all that would read or write outside what the worker has, before anything is touched.

A page keeps two tails, each the hidden state after a token in it: the one after a file of n tokens lies at n % 2 of
the page that holds token n - 1. So a surplus token, computed ahead and thrown away, leaves the tail before it intact.
The contents of a page, as `fetch` gives and `store` takes them, are all that a page keeps: its KV, then both tails.

Never add scheduling, retries or knowledge of files here: the worker does what the batch says, or refuses it whole.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gpuworker import wire
from sdk.abi.errors import Errno
from sdk.abi.values import ModelInfo
from sdk.abi.visible import MAX_RUNS

MAX_TOP_K = 1024  # likeliest tokens an ask may want, as in sdk.abi.values.Want
MAX_LOGITS_BYTES = 128 << 20  # raw logits in one answer; a kernel takes somewhat larger messages
MAX_CONTENTS_BYTES = 64 << 20  # of the pages of one Fetch or Store; a worker takes no larger frames
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Facts:
    """What the worker tells the kernel in its Welcome."""

    device: str
    attention: str
    model: ModelInfo
    n_pages: int
    n_host_pages: int  # in main memory, for moves; 0: none
    page_bytes: int  # of one page's contents
    max_rows: int
    max_batch_tokens: int


class StepError(Exception):
    """Work was refused or not finished; becomes BatchFailed or PagesFailed. The worker is well and takes the next."""

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
        """Executes one batch and answers its asks; rows may be chained to what the batch before has drawn, unless it
        failed. Raises StepError; any other exception is the worker's end, here and below."""

    def fetch(self, pages: Sequence[int]) -> bytes | memoryview:
        """The contents of these pages, [len(pages), page_bytes]; `n_pages + i` is host page i. Raises StepError."""

    def store(self, pages: Sequence[int], contents: bytes | memoryview) -> None:
        """Writes such contents into these pages, numbered alike. Raises StepError, having written nothing."""


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


def chain(batch: wire.Batch, drawn: Mapping[int, int]) -> wire.Batch:
    """The batch with the token that each chained row goes on from in its place. `drawn`: the sample of each job in the
    batch before. Raises StepError(EINVAL) where there is none."""
    if not any(row.chained for row in batch.head.rows):
        return batch
    tokens = array("I", batch.tokens.tobytes())
    first = 0
    for row in batch.head.rows:
        if row.chained:
            if row.job not in drawn:
                raise StepError(Errno.EINVAL, f"job {row.job}: it is chained, but the batch before drew nothing for it")
            tokens[first] = drawn[row.job]
        first += row.n_new
    return wire.Batch(batch.head, tokens, batch.positions, batch.pages, batch.history)


def drawn_by(done: Sequence[wire.RowDone]) -> dict[int, int]:
    """What the last ask with a draw has sampled, for each job: what the next batch may be chained to."""
    return {row.job: answer.sample for row in done for answer in row.answers if answer.sample is not None}


def check(batch: wire.Batch, facts: Facts) -> None:
    """Raises StepError(EINVAL) unless every number in the batch lies inside what this worker has."""
    model, head = facts.model, batch.head
    _within(len(head.rows), facts.max_rows, "rows in one batch")
    _within(len(batch.tokens), facts.max_batch_tokens, "new tokens in one batch")
    first = 0
    for row in head.rows:
        _check_row(row, model)
        if row.chained and (row.n_new == 0 or batch.tokens[first] != 0):
            raise StepError(Errno.EINVAL, f"job {row.job}: a chained row has a new token, and 0 in its place")
        first += row.n_new
    asks = [ask for row in head.rows for ask in row.asks]
    _within(len(asks), facts.max_rows + facts.max_batch_tokens, "asks in one batch")
    _within(4 * model.vocab_size * sum(a.logits for a in asks), MAX_LOGITS_BYTES, "bytes of raw logits in one answer")
    _below(batch.tokens, model.vocab_size, "token")
    _below(batch.history, model.vocab_size, "token of a history")
    _below(batch.positions, model.max_model_len, "position")
    _below(batch.pages, facts.n_pages, "page")
    for pair in head.copies:
        _below(pair, facts.n_pages, "page of a copy")
    if head.edits:
        _check_edits(head.edits, facts)
    if head.moves_out or head.moves_in:
        _check_moves(batch, facts)


def check_fetch(pages: Sequence[int], facts: Facts) -> None:
    """Raises StepError(EINVAL) unless these are pages that can be sent in one answer."""
    _below(pages, facts.n_pages + facts.n_host_pages, "page")
    if len(pages) * facts.page_bytes > MAX_CONTENTS_BYTES:
        limit = f"{MAX_CONTENTS_BYTES // facts.page_bytes} pages of {facts.page_bytes} bytes"
        raise StepError(Errno.EINVAL, f"{len(pages)} pages at once; this worker takes {limit}")


def check_store(pages: Sequence[int], contents: bytes | memoryview, facts: Facts) -> None:
    """Raises StepError(EINVAL) unless these are distinct pages, and contents for each of them."""
    check_fetch(pages, facts)
    if len(set(pages)) < len(pages):
        raise StepError(Errno.EINVAL, "a page is stored twice")
    n_bytes, wanted = memoryview(contents).nbytes, len(pages) * facts.page_bytes
    if n_bytes != wanted:
        raise StepError(Errno.EINVAL, f"{n_bytes} bytes for {len(pages)} pages of {facts.page_bytes}: send {wanted}")


def _check_moves(batch: wire.Batch, facts: Facts) -> None:
    head = batch.head
    pages = [page for page, _ in head.moves_out] + [page for _, page in head.moves_in]
    host_pages = [host for _, host in head.moves_out] + [host for host, _ in head.moves_in]
    _below(pages, facts.n_pages, "page of a move")
    _below(host_pages, facts.n_host_pages, "host page of a move")
    if len(set(pages)) < len(pages) or len(set(host_pages)) < len(host_pages):
        raise StepError(Errno.EINVAL, "a page is moved twice in one batch")
    used = {page for copy in head.copies for page in copy}.union(batch.pages)
    used.update(page for edit in head.edits for page in (edit.source, edit.page))
    used.intersection_update(pages)
    if used:
        raise StepError(Errno.EINVAL, f"page {min(used)} is moved and used in one batch")


def _check_edits(edits: Sequence[wire.Edit], facts: Facts) -> None:
    size, limit = facts.model.page_size, facts.model.max_model_len
    for edit in edits:
        _below((edit.source, edit.page), facts.n_pages, "page of an edit")
        if edit.n < 1 or min(edit.source_slot, edit.slot) < 0 or max(edit.source_slot, edit.slot) + edit.n > size:
            raise StepError(Errno.EINVAL, f"{edit}: a page has slots 0…{size - 1}")
        if abs(edit.delta) >= limit:
            raise StepError(Errno.EINVAL, f"{edit}: no two positions are so far apart")
    written = [edit.page * size + slot for edit in edits for slot in range(edit.slot, edit.slot + edit.n)]
    if len(set(written)) < len(written):
        raise StepError(Errno.EINVAL, "a slot is edited twice in one batch")
    if both := {edit.source for edit in edits}.intersection(edit.page for edit in edits):
        raise StepError(Errno.EINVAL, f"page {min(both)} is read and written by edits of one batch")


def _check_row(row: wire.Row, model: ModelInfo) -> None:
    who = f"job {row.job}"
    n = row.n_before + row.n_new
    if min(row.n_before, row.n_new, row.n_pages) < 0:
        raise StepError(Errno.EINVAL, f"{who}: negative sizes")
    if n > model.max_model_len:
        raise StepError(Errno.EINVAL, f"{who}: {n} tokens; this worker's files hold {model.max_model_len}")
    if row.n_pages != -(-n // model.page_size):
        raise StepError(Errno.EINVAL, f"{who}: {row.n_pages} pages of {model.page_size} for {n} tokens")
    _within(len(row.visible), MAX_RUNS, f"visible runs of job {row.job}")
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
            has = f"is outside 0…{limit - 1}" if limit else "does not exist: this worker has none"
            raise StepError(Errno.EINVAL, f"{what} {extreme} {has}")
