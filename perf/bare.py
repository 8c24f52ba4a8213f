"""The bare worker: an engine in this process, driven by hand. No kernel, no sockets, no files.

What it takes is the least that any server could take; measurements compare with it.
"""

from array import array
from collections.abc import Sequence

from gpuworker.engine import Engine
from gpuworker.load import load
from gpuworker.options import OptionError, Options
from gpuworker.wire import Ask, Batch, BatchHead, Draw, Row
from perf.harness import Failed
from sdk.abi.values import Sampling

GREEDY = Sampling()
TOKEN = 1000  # what prompts are made of; any will do


def start(model: str, dtype: str, n_pages: int) -> Engine:
    """The default model's engine, or another's. Raises Failed."""
    try:
        return load(Options(model=model, dtype=dtype, num_pages=n_pages), lambda line: None)
    except OptionError as e:
        raise Failed(str(e)) from None


class Bare:
    """Sequences on an engine's pages, `n_tokens_max` for each."""

    def __init__(self, engine: Engine, n_sequences: int, n_tokens_max: int) -> None:
        self.engine = engine
        self._page_size = engine.info().model.page_size
        size = -(-n_tokens_max // self._page_size)
        if n_sequences * size > engine.info().n_pages:
            raise ValueError(f"{n_sequences} sequences of {size} pages do not fit into {engine.info().n_pages}")
        self._tables = [range(i * size, (i + 1) * size) for i in range(n_sequences)]

    def run(self, n_before: int, new: Sequence[Sequence[int]], *, first: int = 0, draw: bool = True) -> list[int]:
        """One step of len(new) sequences from `first` on, each with `n_before` tokens and the given new ones (none:
        only the tail is asked). Returns the greedy sample after each, or nothing."""
        rows, tokens, positions, pages = [], array("I"), array("I"), array("I")
        for i, own in enumerate(new):
            n = n_before + len(own)
            table = self._tables[first + i][: -(-n // self._page_size)]
            asks = [Ask(len(own) - 1, Draw(GREEDY, 0, n))] if draw else []
            rows.append(Row(i, n_before, len(own), len(table), asks))
            tokens.extend(own)
            positions.extend(range(n_before, n))
            pages.extend(table)
        done = self.engine.run(Batch(BatchHead(1, [], rows), tokens, positions, pages, array("I")))
        return [answer.sample or 0 for row in done.head.rows for answer in row.answers]

    def prefill(self, n_sequences: int, n_tokens: int) -> None:
        """Give each of the first sequences that many tokens, one sequence a step."""
        for i in range(n_sequences):
            self.run(0, [[TOKEN + i] * n_tokens], first=i, draw=False)

    def generate(self, n_sequences: int, n_before: int, n_tokens: int) -> None:
        """As `generate` does: sample from the stored tail, feed each sample, and sample after all but the last."""
        samples = self.run(n_before, [[]] * n_sequences)
        for i in range(n_tokens):
            samples = self.run(n_before + i, [[sample] for sample in samples], draw=i < n_tokens - 1)
