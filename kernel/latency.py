"""How long model calls take, as their programs see it: queue time, time to the first token, between tokens, in all.

Told by `kernel/batcher.py` and kept in `kernel/counters.py`. A call that goes on with another worker is the same
call. All rows of a batch that were in the batch before have waited the same time for their token, so that is looked
up once for all of them: `batch_over` adds them to the histogram together. Pure.
"""

from kernel.histogram import BETWEEN_TOKENS_S, FIRST_TOKEN_S, REQUEST_S, Histogram


class CallTimes:
    """When what happened to one call, in seconds on the kernel's clock; -1.0 while it has not."""

    __slots__ = ("asked", "began", "drew")

    def __init__(self) -> None:
        self.asked = -1.0  # it was submitted
        self.began = -1.0  # it had its first row in a batch
        self.drew = -1.0  # the newest token of a generation was drawn


class Latencies:
    """Of all calls of one kernel."""

    __slots__ = ("_at", "_n_rows", "between_tokens", "first_token", "queue", "whole")

    def __init__(self) -> None:
        self.queue = Histogram(FIRST_TOKEN_S)  # from submission to the first batch
        self.first_token = Histogram(FIRST_TOKEN_S)  # from submission to the first drawn token
        self.between_tokens = Histogram(BETWEEN_TOKENS_S)
        self.whole = Histogram(REQUEST_S)  # from submission to the end, of calls that came to their end
        self._at = -1.0  # when the batch before was over
        self._n_rows = 0  # that drew a token then, and have just drawn another

    def asked(self, times: CallTimes, now: float) -> None:
        """A call was submitted, perhaps again."""
        if times.asked < 0:
            times.asked = now

    def began(self, times: CallTimes, now: float) -> None:
        """A call has its first row in a batch."""
        times.began = now
        self.queue.add(now - times.asked)

    def drew(self, times: CallTimes, now: float) -> None:
        """A token of a generation was drawn; `batch_over` comes next, with the same `now`."""
        before, times.drew = times.drew, now
        if before < 0:
            self.first_token.add(now - times.asked)
        elif before == self._at:
            self._n_rows += 1
        else:
            self.between_tokens.add(now - before)

    def batch_over(self, now: float) -> None:
        """All rows of a batch have been told."""
        if self._n_rows:
            self.between_tokens.add(now - self._at, self._n_rows)
            self._n_rows = 0
        self._at = now

    def ended(self, times: CallTimes, now: float) -> None:
        """A call has come to its end."""
        self.whole.add(now - times.asked)
