"""What a step costs on one worker, learnt from the steps it has done. Pure.

    T(rows, tokens) = D(rows) + p * (tokens - rows)

D is the time of a step of so many rows with one new token each, known at the sizes that were seen and straight
between them; p is the time of each token more, as in prompts. Both follow the newest steps with a fading memory.
Before anything was seen all costs are 0, which limits nobody.

Who asks: `kernel/pacing.py` when to send the next batch, `kernel/shares.py` how much a tenant may add to a batch,
`kernel/demotion.py` whether pages are moved or computed again.
"""

import math
from bisect import bisect_left

FADE = 0.2  # weight of the newest sample


class StepCosts:
    """One worker's."""

    __slots__ = ("_known", "_rows", "page_s", "token_s")

    def __init__(self) -> None:
        self._rows: list[int] = []  # sizes seen, ascending
        self._known: dict[int, float] = {}  # rows → seconds
        self.token_s = 0.0  # of a prompt's token
        self.page_s = 0.0  # of moving a page between device and main memory

    def step(self, n_rows: int, n_tokens: int, seconds: float) -> None:
        """A step was done."""
        more = n_tokens - n_rows
        if more > n_rows:
            self.token_s = _fade(self.token_s, max(0.0, seconds - self._decode(n_rows)) / more)
        elif n_rows and more <= 0:
            size = _size(n_rows)
            if size not in self._known:
                self._rows.insert(bisect_left(self._rows, size), size)
                self._known[size] = seconds
            else:
                self._known[size] = _fade(self._known[size], seconds)

    def moved(self, n_pages: int, seconds: float) -> None:
        """So many pages were moved."""
        if n_pages:
            self.page_s = _fade(self.page_s, seconds / n_pages)

    def predict(self, n_rows: int, n_tokens: int) -> float:
        """Seconds of a step."""
        return self._decode(n_rows) + self.token_s * max(0, n_tokens - n_rows)

    def n_beside(self, n_rows: int, n_tokens: int, slower: float) -> float:
        """So many more tokens would make a step take `slower` times as long; inf while nothing is known."""
        whole = self.predict(n_rows, n_tokens)
        return (slower - 1.0) * whole / self.token_s if whole and self.token_s else math.inf

    def _decode(self, n_rows: int) -> float:
        rows, known = self._rows, self._known
        if not rows or not n_rows:
            return 0.0
        i = bisect_left(rows, n_rows)
        if i == 0:
            return known[rows[0]]
        low = rows[i - 1]
        if i < len(rows):
            high = rows[i]
            return known[low] + (known[high] - known[low]) * (n_rows - low) / (high - low)
        if i == 1:
            return known[low]
        before = rows[i - 2]
        slope = max(0.0, known[low] - known[before]) / (low - before)
        return known[low] + slope * (n_rows - low)


def _size(n_rows: int) -> int:
    """Sizes are told apart up to an eighth, so that there are few and each is seen often."""
    step = max(1, 1 << max(0, n_rows.bit_length() - 4))
    return n_rows // step * step


def _fade(old: float, new: float) -> float:
    return new if old == 0.0 else old + FADE * (new - old)
