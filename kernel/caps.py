"""How large a batch may be: what the worker takes, and less for a while after it has refused one. Pure.

A refused batch of several rows is tried again in halves, until the row at fault is alone; a single prompt that the
worker has no memory for, in shorter steps. With each batch that goes well the next one may be twice as large.

Called by `kernel/batcher.py`. Never add here what becomes of a row at fault.
"""

from sdk.abi.errors import Errno

N_TOKENS_MIN = 16  # a step that a worker has no memory for is not cut shorter than that


class Caps:
    """Of one worker's batches."""

    __slots__ = ("_max_rows", "_max_tokens", "n_rows", "n_tokens")

    def __init__(self, max_rows: int, max_tokens: int) -> None:
        self._max_rows = self.n_rows = max_rows
        self._max_tokens = self.n_tokens = max_tokens

    @property
    def are_lowered(self) -> bool:
        return self.n_rows < self._max_rows or self.n_tokens < self._max_tokens

    def lower(self, n_rows: int, n_tokens: int, errno: Errno) -> bool:
        """A batch of this size was refused: whether a smaller one may do, and is to be tried."""
        if n_rows > 1:
            self.n_rows = n_rows // 2
        elif errno == Errno.ENOSPC and n_tokens > N_TOKENS_MIN:
            self.n_tokens = n_tokens // 2
        else:
            return False
        return True

    def lift(self) -> None:
        """A batch went well."""
        if self.are_lowered:
            self.n_rows = min(self._max_rows, 2 * self.n_rows)
            self.n_tokens = min(self._max_tokens, 2 * self.n_tokens)
