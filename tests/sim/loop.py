"""Virtual time: an asyncio event loop in which nothing is ever waited for.

Where another loop sleeps until its next timer, this one sets its clock to it. So a minute of a quiet system costs as
much as its callbacks, and the same callbacks run in the same order every time. Nothing ready and no timer means that
nobody will ever be woken again: `Deadlock`.

Two rules keep a run a function of its seed. Tasks hash by the order in which they were made, because sets of them
(a TaskGroup's, `asyncio.wait`'s, a process's threads) are iterated by whoever cancels them, and an address would
decide in which order. And the garbage collector sleeps during a run: a stream that is dropped in a cycle ends when
it is collected, which would be some time or other. Both are `deterministic`'s.

Never add here: anything that knows of kernels, workers or programs.
"""

import asyncio
import gc
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

N_IDLE_PASSES_MAX = 100_000  # without time passing: two callbacks that keep calling each other


class Deadlock(Exception):
    """Nothing is ready and no timer runs."""


class Spinning(Exception):
    """The loop is busy for ever at one moment in time."""


class SimLoop(asyncio.BaseEventLoop):
    """An event loop whose clock is a number. `after_pass` is called after each pass over what was ready."""

    _scheduled: list[asyncio.TimerHandle]

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self._clock_resolution = 1e-9
        self._now = 0.0
        self._n_passes_now = 0  # since the clock last moved
        self.n_passes = 0
        self.after_pass: Callable[[], None] | None = None

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._now

    def skip(self, seconds: float) -> None:
        """Nothing of this loop runs for so long."""
        self._now += seconds

    def timers(self) -> list[asyncio.TimerHandle]:
        """Those that are set, in no order."""
        return [timer for timer in self._scheduled if not timer.cancelled()]

    def select(self, timeout: float | None) -> list[Any]:
        """The selector that the base class asks for what is ready at the sockets, and which is allowed to sleep."""
        if timeout is None:
            raise Deadlock("nothing is ready and no timer runs")
        if timeout > 0:
            self._now = max(self._now, self._scheduled[0].when())
            self._n_passes_now = 0
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        self.n_passes += 1
        self._n_passes_now += 1
        if self._n_passes_now > N_IDLE_PASSES_MAX:
            raise Spinning(f"{N_IDLE_PASSES_MAX} passes at {self._now:.6f} s")
        if self.after_pass is not None:
            self.after_pass()


class SimTask(asyncio.Task[Any]):
    """A task that hashes by its age."""

    _numbers = itertools.count()

    def __new__(cls, *args: Any, **options: Any) -> "SimTask":
        task = super().__new__(cls)
        task._number = next(cls._numbers)  # before __init__, which puts it into a set
        return task

    _number: int

    def __hash__(self) -> int:
        return self._number


@contextmanager
def deterministic() -> Iterator[None]:
    """Tasks made inside hash by their age, and the collector sleeps."""
    task, collects = asyncio.Task, gc.isenabled()
    gc.disable()
    asyncio.Task = SimTask  # type: ignore[misc]
    SimTask._numbers = itertools.count()
    try:
        yield
    finally:
        asyncio.Task = task  # type: ignore[misc]
        if collects:
            gc.enable()
