"""THE NULL WORKER: the whole contract of a worker without a model, a device or a tensor. No torch, no numpy.

Tests, the simulator and the benchmarks of the kernel run on it. What comes next is a pure function of the (token,
position) sequence that is visible *through the page table*, so that a wrong table, a missed copy or a stale tail
changes the text. Each slot of a page holds its token, its position, the page's sum up to there, and its *origin*: the
hidden state after it when it was computed, which tells the context that real KV would depend on and is never read
here (an edit takes it along, so whoever looks sees where KV was computed):

    value(slot) = hash(token, position) * WEIGHT^(slot in page)      sum over the slots of a page, mod 2^64
    digest(row) = sum of page sums * WEIGHT^(page_size * page in table), mod 2^64
    hidden      = hash(digest, number of tokens); its page keeps that of the last token of a row: a tail

A token that does not see all (visible runs) has a digest of those that it sees, and a mark in its hidden state, so that
`verify` knows such a tail, which the slots alone cannot tell.

So a step costs a microsecond a new token and a tenth of one a page, whatever the context; `cost` makes it take the
time of a device. With `verify` every row is also recomputed from its slots, and AssertionError tells of a slot never
written or a tail that is out of date.
"""

import hashlib
import time
from array import array
from collections.abc import Sequence
from itertools import accumulate, repeat
from operator import mul

from gpuworker import nulltext
from gpuworker.backend import (
    Facts,
    RowView,
    StepError,
    chain,
    check,
    check_fetch,
    check_store,
    drawn_by,
    rows,
)
from gpuworker.noise import MASK64, splitmix64
from gpuworker.stepcost import StepCost
from gpuworker.wire import Answer, Assets, Batch, BatchDone, BatchDoneHead, BatchHead, RowDone
from sdk.abi.errors import Errno
from sdk.abi.values import ModelInfo
from sdk.abi.visible import Runs, intervals

WEIGHT = 0xD1342543DE82EF95  # odd, so that no slot's value is lost
POSITION = (1 << 32) - 1  # the half of a slot's word that has it
MARK = 0xFFFF  # the part of a hidden state that tells of a mask
FREE = StepCost()


class NullBackend:
    """A `Backend`. `cost` is slept in every step, to stand for a device; moves take no time."""

    def __init__(
        self,
        *,
        name: str = "null",
        n_pages: int = 4096,
        n_host_pages: int | None = None,  # as many as n_pages
        page_size: int = 16,
        vocab_size: int = 512,
        max_model_len: int = 8192,
        max_rows: int = 256,
        max_batch_tokens: int = 2048,
        cost: StepCost = FREE,
        verify: bool = False,
    ) -> None:
        if vocab_size < nulltext.MIN_VOCAB:
            raise ValueError(f"the null model's vocabulary has at least {nulltext.MIN_VOCAB} tokens")
        n_host_pages = n_pages if n_host_pages is None else n_host_pages
        self._page_size = page_size
        self._page_words = 3 * page_size + 2  # slots, sums, origins, tails
        self._cost = cost
        self._verify = verify
        self._drawn: dict[int, int] = {}  # by the batch before
        self._slots = array("Q", bytes(8 * n_pages * page_size))  # 1 + token << 32 | position; 0: never written
        self._sums = array("Q", bytes(8 * n_pages * page_size))  # of the page, up to and with this slot
        self._origins = array("Q", bytes(8 * n_pages * page_size))
        self._tails = array("Q", bytes(8 * n_pages * 2))  # see gpuworker/backend.py
        self._host = array("Q", bytes(8 * n_host_pages * self._page_words))
        self._slot_weights = _powers(WEIGHT, page_size)
        self._page_weights = _powers(pow(WEIGHT, page_size, 1 << 64), -(-max_model_len // page_size))
        model = ModelInfo(
            name=name,
            fingerprint=hashlib.blake2b(f"null {vocab_size}".encode(), digest_size=16).hexdigest(),
            architecture="null",
            n_parameters=0,
            dtype="none",
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            page_size=page_size,
            bos_token=None,
            eos_tokens=[nulltext.IM_END, nulltext.EOS],
            has_chat_template=True,
        )
        self._facts = Facts(
            device="none",
            attention="null",
            model=model,
            n_pages=n_pages,
            n_host_pages=n_host_pages,
            page_bytes=8 * self._page_words,
            max_rows=max_rows,
            max_batch_tokens=max_batch_tokens,
        )

    def info(self) -> Facts:
        return self._facts

    def assets(self) -> Assets:
        return nulltext.assets(self._facts.model.vocab_size)

    def run(self, batch: Batch) -> BatchDone:
        started = time.perf_counter()
        drawn, self._drawn = self._drawn, {}
        check(batch, self._facts)
        batch = chain(batch, drawn)
        views = list(rows(batch))
        self._check_exclusive(views)
        move_s = self._move(batch.head)
        for source, destination in batch.head.copies:
            self._write(destination, self._read(source))
        self._edit(batch.head)
        if seconds := self._cost.of(batch.head.rows):
            time.sleep(seconds)
        # The tails of the step before are read before any row of this one overwrites its own.
        hiddens = [self._tail(v) if any(a.offset == -1 for a in v.row.asks) else 0 for v in views]
        logits = array("f")
        done = [RowDone(v.row.job, self._run_row(v, tail, logits)) for v, tail in zip(views, hiddens, strict=True)]
        self._drawn = drawn_by(done)
        step_s = time.perf_counter() - started
        return BatchDone(BatchDoneHead(batch.head.seq, done, len(batch.tokens), step_s, move_s), logits.tobytes())

    def fetch(self, pages: Sequence[int]) -> bytes:
        check_fetch(pages, self._facts)
        n = self._facts.n_pages
        return b"".join((self._read(p) if p < n else self._read_host(p - n)).tobytes() for p in pages)

    def store(self, pages: Sequence[int], contents: bytes | memoryview) -> None:
        check_store(pages, contents, self._facts)
        words = array("Q")
        words.frombytes(contents)
        n, size = self._facts.n_pages, self._page_words
        for i, page in enumerate(pages):
            write = self._write if page < n else self._write_host
            write(page if page < n else page - n, words[i * size : (i + 1) * size])

    def _run_row(self, view: RowView, tail: int, logits: "array[float]") -> list[Answer]:
        vocab_size = self._facts.model.vocab_size
        hiddens = self._extend(view)
        if self._verify:
            self._verify_row(view, hiddens)
        answers = []
        for ask, history in zip(view.row.asks, view.histories, strict=True):
            hidden = tail if ask.offset == -1 else hiddens[ask.offset]
            answers.append(nulltext.answer(hidden, ask, history, vocab_size))
            if ask.logits:
                logits.extend(nulltext.row(hidden, vocab_size))
        return answers

    def _extend(self, view: RowView) -> list[int]:
        """Writes the row's new tokens into their slots; the hidden state after each of them."""
        size, sums = self._page_size, self._sums
        digest = self._digest(view.pages, view.row.n_before)
        hiddens: list[int] = []
        for i, (token, position) in enumerate(zip(view.tokens, view.positions, strict=True), view.row.n_before):
            page, offset = divmod(i, size)
            slot = view.pages[page] * size + offset
            value = splitmix64(token << 32 | position) * self._slot_weights[offset]
            self._slots[slot] = 1 + (token << 32 | position)
            sums[slot] = ((sums[slot - 1] if offset else 0) + value) & MASK64
            digest = (digest + value * self._page_weights[page]) & MASK64
            hidden = splitmix64(digest ^ (i + 1)) if not view.row.visible else self._masked(view, i + 1)
            self._origins[slot] = hidden
            hiddens.append(hidden)
        if hiddens:
            n = view.row.n_before + len(hiddens)
            self._tails[2 * view.pages[-1] + n % 2] = hiddens[-1]
        return hiddens

    def _digest(self, pages: Sequence[int], n: int) -> int:
        size, last, sums = self._page_size, self._page_size - 1, self._sums
        full, rest = divmod(n, size)
        digest: int = sum(map(mul, [sums[p * size + last] for p in pages[:full]], self._page_weights))
        if rest:
            digest += sums[pages[full] * size + rest - 1] * self._page_weights[full]
        return digest & MASK64

    def _masked(self, view: RowView, n: int) -> int:
        """The hidden state after `n` tokens, the last of which sees what the row's runs say."""
        seen = intervals(view.row.visible, n)
        digest = sum(self._digest(view.pages, stop) - self._digest(view.pages, start) for start, stop in seen)
        hidden = splitmix64((digest & MASK64) ^ n)
        return hidden if seen == [(0, n)] else hidden & ~MARK | self._mark(view, n)

    def _mark(self, view: RowView, n: int) -> int:
        """What hidden states of masked tokens end with: a check of their own slot."""
        return splitmix64(self._slot(view, n - 1) ^ n) & MARK

    def _slot(self, view: RowView, i: int) -> int:
        return self._slots[view.pages[i // self._page_size] * self._page_size + i % self._page_size]

    def _tail(self, view: RowView) -> int:
        n = view.row.n_before
        tail = self._tails[2 * view.pages[(n - 1) // self._page_size] + n % 2]
        if self._verify and tail & MARK != self._mark(view, n) and tail != self._recomputed(view, n, ()):
            raise AssertionError(f"job {view.row.job}: the tail of its {n} tokens is out of date")
        return tail

    def _move(self, head: BatchHead) -> float:
        """Moves pages between the tiers; the seconds it took."""
        started = time.perf_counter()
        for page, host in head.moves_out:
            self._write_host(host, self._read(page))
        for host, page in head.moves_in:
            self._write(page, self._read_host(host))
        return time.perf_counter() - started

    def _read_host(self, page: int) -> "array[int]":
        """The same as `_read`, of a page in main memory."""
        return self._host[page * self._page_words : (page + 1) * self._page_words]

    def _write_host(self, page: int, words: "array[int]") -> None:
        self._host[page * self._page_words : (page + 1) * self._page_words] = words

    def _read(self, page: int) -> "array[int]":
        """All that a page keeps: its slots, its sums, its origins, its tails."""
        here = slice(page * self._page_size, (page + 1) * self._page_size)
        return self._slots[here] + self._sums[here] + self._origins[here] + self._tails[2 * page : 2 * page + 2]

    def _write(self, page: int, words: "array[int]") -> None:
        size = self._page_size
        here = slice(page * size, (page + 1) * size)
        self._slots[here], self._sums[here] = words[:size], words[size : 2 * size]
        self._origins[here] = words[2 * size : 3 * size]
        self._tails[2 * page : 2 * page + 2] = words[3 * size :]

    def _edit(self, head: BatchHead) -> None:
        size = self._page_size
        for edit in head.edits:
            source, slot = edit.source * size + edit.source_slot, edit.page * size + edit.slot
            for i in range(edit.n):
                word = self._slots[source + i]
                if self._verify and not (word and 0 <= ((word - 1) & POSITION) + edit.delta <= POSITION):
                    raise AssertionError(f"{edit}: slot {i} was never written, or moves beyond all positions")
                self._slots[slot + i] = word + edit.delta
                self._origins[slot + i] = self._origins[source + i]
        for page in dict.fromkeys(edit.page for edit in head.edits):
            digest = 0
            for offset in range(size):
                word = max(self._slots[page * size + offset], 1)
                digest = (digest + splitmix64(word - 1) * self._slot_weights[offset]) & MASK64
                self._sums[page * size + offset] = digest

    def _check_exclusive(self, views: Sequence[RowView]) -> None:
        """No row may see a slot that another row of the same step writes."""
        writer: dict[int, tuple[int, int]] = {}  # page -> (index of its row, first slot it writes)
        for i, v in enumerate(views):
            n = v.row.n_before
            for page in range(n // self._page_size, len(v.pages)) if v.row.n_new else ():
                if writer.setdefault(v.pages[page], (i, max(0, n - page * self._page_size)))[0] != i:
                    raise StepError(Errno.EINVAL, f"job {v.row.job}: page {v.pages[page]} has another writer")
        for i, v in enumerate(views):
            for page in writer.keys() & set(v.pages):
                other, first = writer[page]
                n_seen = v.row.n_before + v.row.n_new - list(v.pages).index(page) * self._page_size
                if other != i and n_seen > first:
                    raise StepError(Errno.EINVAL, f"job {v.row.job}: page {page} is written by another row")

    def _verify_row(self, view: RowView, hiddens: Sequence[int]) -> None:
        n = view.row.n_before + view.row.n_new
        if hiddens and hiddens[-1] != self._recomputed(view, n, view.row.visible):
            raise AssertionError(f"job {view.row.job}: its sums do not agree with its slots")

    def _recomputed(self, view: RowView, n: int, visible: Runs) -> int:
        """The hidden state after `n` tokens, from the slots alone."""
        digest, seen = 0, intervals(visible, n)
        for i in range(n):
            slot = self._slot(view, i)
            if slot == 0:
                raise AssertionError(f"job {view.row.job}: nothing was ever written for its token {i}")
            if any(start <= i < stop for start, stop in seen):
                digest += splitmix64(slot - 1) * pow(WEIGHT, i, 1 << 64)
        hidden = splitmix64((digest & MASK64) ^ n)
        return hidden if seen == [(0, n)] else hidden & ~MARK | self._mark(view, n)


def _powers(base: int, n: int) -> list[int]:
    """base^0 … base^(n-1), mod 2^64."""
    return list(accumulate(repeat(base, n - 1), lambda power, b: power * b & MASK64, initial=1))
