"""When a batch leaves. Pure.

**An idle worker.** Firing policies say until when what is ready waits for more. `eager`, the default, never waits:
the worker has nothing better to do (work-conserving). The timed ones are the paper family's, kept to be compared
with (`python -m perf policies`): `k` waits for so many rows, `t` for so long, `k-or-t` for whichever is first, and
`adaptive` for as many rows as arrive in the time of a step.

**A worker at work.** The next batch is sent before the running one ends, so that the device never waits for the
kernel. It is sent late, since whatever becomes ready meanwhile can still join. And it is not sent ahead at all
when many rows of the running batch are a program's to decide on (`pred`): they cannot be in it, and would wait
for a whole step more. Sending ahead saves every row the gap between two batches; not sending it saves those rows
a step; the cheaper loss is taken.
"""

import math
from typing import Protocol

AHEAD_S = 0.004  # how long before its end the batch after the running one should be there, at least
AHEAD_SHARE = 0.2  # of the step's time, where that is longer
PATIENCE_S = 1.0  # no policy keeps anybody waiting for longer
FADE = 0.1


class Firing(Protocol):
    """When an idle worker is given its next batch."""

    waits: bool  # False: never

    def arrived(self, now: float) -> None:
        """A job was submitted."""

    def at(self, n_ready: int, since: float, step_s: float) -> float:
        """The time at which `n_ready` rows leave, the oldest of which is ready since `since`."""


class Eager:
    waits = False

    def arrived(self, now: float) -> None:
        pass

    def at(self, n_ready: int, since: float, step_s: float) -> float:
        return -math.inf


class KOrT:
    """Fire at `k` rows, or after `t` seconds, whichever is first."""

    waits = True

    def __init__(self, k: float, t: float) -> None:
        self.k, self.t = k, min(t, PATIENCE_S)

    def arrived(self, now: float) -> None:
        pass

    def at(self, n_ready: int, since: float, step_s: float) -> float:
        return -math.inf if n_ready >= self.k else since + self.t


class Adaptive:
    """Wait for as many rows as arrive during a step at the present rate, for a step at most."""

    waits = True

    def __init__(self) -> None:
        self._last: float | None = None
        self._interval = math.inf  # between arrivals, seconds

    def arrived(self, now: float) -> None:
        if self._last is not None:
            gap = now - self._last
            self._interval = gap if math.isinf(self._interval) else self._interval + FADE * (gap - self._interval)
        self._last = now

    def at(self, n_ready: int, since: float, step_s: float) -> float:
        expected = step_s / self._interval if self._interval > 0 else math.inf
        return -math.inf if n_ready >= expected else since + min(step_s, PATIENCE_S)


POLICIES = ("eager", "k", "t", "k-or-t", "adaptive")


def firing(name: str, k: int, t: float) -> Firing:
    """The policy of that name, with its parameters. Raises KeyError."""
    match name:
        case "eager":
            return Eager()
        case "k":
            return KOrT(k, PATIENCE_S)
        case "t":
            return KOrT(math.inf, t)
        case "k-or-t":
            return KOrT(k, t)
        case "adaptive":
            return Adaptive()
    raise KeyError(name)


class Pace:
    """How one worker's batches follow each other."""

    def __init__(self) -> None:
        self.gap_s = 0.0005  # from the answer of a batch to the next one's leaving, when none was ahead
        self._done_at: float | None = None

    def sent(self, now: float) -> None:
        """A batch left for an idle worker."""
        if self._done_at is not None:
            self.gap_s += FADE * (min(now - self._done_at, 0.01) - self.gap_s)
            self._done_at = None

    def done(self, now: float, *, idle: bool, more: bool) -> None:
        """A batch was answered; `idle`: none was behind it; `more`: some of its rows go on."""
        self._done_at = now if idle and more else None

    def ahead_at(self, started: float, step_s: float) -> float:
        """When the batch behind one that started then, and takes so long, should leave."""
        return started + step_s - max(AHEAD_S, AHEAD_SHARE * step_s)

    def worth_ahead(self, n_rows: int, n_host_decides: int, step_s: float) -> bool:
        """Whether to send ahead, with so many rows in the running batch of which so many are programs' to decide."""
        return n_host_decides * step_s <= n_rows * self.gap_s
