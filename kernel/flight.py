"""A batch in flight: its rows, their leases and the page moves beside them, and how that looks on the wire. Pure.

Made, sent and settled by `kernel/batcher.py`. Never add here what goes into a batch, or what becomes of it.
"""

import math
from array import array
from collections.abc import Sequence

from gpuworker.wire import Batch, BatchHead, Edit, Row, RowDone
from kernel.jobs import Sent
from kvfs.editing import EditLease
from kvfs.moves import Move, MoveKind


class InFlight:
    """One batch that was sent."""

    __slots__ = ("dead", "has_edits", "moves", "n_tokens", "rows", "seq", "started")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.rows: list[Sent] = []
        self.moves: list[Move] = []
        self.n_tokens = 0
        self.started = math.inf  # when the worker began with it, as far as is known here
        self.has_edits = False  # then its time says little of others
        self.dead = False  # taken back: the worker will refuse it, since one before it has failed

    def is_answered_by(self, rows: Sequence[RowDone]) -> bool:
        """Whether these are the rows that were sent, with as many answers as were asked for."""
        if len(rows) != len(self.rows):
            return False
        for row, sent in zip(rows, self.rows, strict=True):
            job, step = sent.job, sent.step
            if row.job != (job.number if job is not None else 0):
                return False
            if len(row.answers) != (len(step.asks) if step is not None else 0):
                return False
        return True

    def encode(self, n_failed: int) -> Batch:
        """As the wire has it. `n_failed`: refusals heard of so far."""
        tokens, positions, pages, history = array("I"), array("I"), array("I"), array("I")
        rows, copies, edits = [], [], []
        for sent in self.rows:
            lease, step = sent.lease, sent.step
            if isinstance(lease, EditLease):  # its row is empty, and there to be answered
                self.has_edits = True
                edits += [Edit(*run) for run in lease.runs]
                rows.append(Row(sent.job.number if sent.job is not None else 0, 0, 0, 0))
                continue
            tokens.extend(lease.tokens)
            positions.extend(lease.positions)
            pages.extend(lease.pages)
            if lease.copies:
                copies.extend(lease.copies)
            if step is None:
                rows.append(Row(0, lease.n_before, lease.n_new, len(lease.pages)))
                continue
            if step.history:
                history.extend(step.history)
            assert sent.job is not None
            row = (sent.job.number, lease.n_before, lease.n_new, len(lease.pages), step.asks, step.chained)
            rows.append(Row(*row, list(step.visible)) if lease.masked else Row(*row))
        out = [pair for m in self.moves if m.kind is MoveKind.OUT for pair in m.pairs]
        back = [pair for m in self.moves if m.kind is MoveKind.IN for pair in m.pairs]
        head = BatchHead(self.seq, copies, rows, n_failed, out, back, edits)
        return Batch(head, tokens, positions, pages, history)
