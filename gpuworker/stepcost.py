"""THE COST MODEL of a null worker: how long a step of a device would take. Pure.

    step_s + row_s * rows + token_s * new tokens + context_s * keys that are read

Callers: gpuworker/null.py, which sleeps for it, and simulations, which let virtual time pass. A step without rows has
nothing to compute and costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gpuworker.wire import Row
from sdk.abi.visible import spanned


@dataclass(frozen=True, slots=True)
class StepCost:
    """In seconds."""

    step_s: float = 0.0  # of any step: reading the weights
    row_s: float = 0.0  # more for each row
    token_s: float = 0.0  # more for each new token
    context_s: float = 0.0  # more for each token whose keys a row reads

    def cost(self, n_rows: int, n_tokens: int, n_context: int) -> float:
        """Seconds of a step of `n_rows` rows with `n_tokens` new tokens, which read the keys of `n_context` tokens."""
        if n_rows == 0:
            return 0.0
        return self.step_s + self.row_s * n_rows + self.token_s * n_tokens + self.context_s * n_context

    def of(self, rows: Sequence[Row]) -> float:
        """Seconds of a step with these rows. A row that only asks for its tail reads no keys."""
        n_context = sum(_n_read(row) for row in rows if row.n_new)
        return self.cost(len(rows), sum(row.n_new for row in rows), n_context)


def _n_read(row: Row) -> int:
    """Tokens that some new token of the row sees."""
    if not row.visible:
        return row.n_before + row.n_new
    return sum(stop - start for start, stop in spanned(row.visible, row.n_before, row.n_new))
