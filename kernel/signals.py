"""When to stop: SIGINT, SIGTERM, and the end of the process that started this one.

While the kernel boots a signal cancels it, so that what is half made is unmade in order; once it runs, `told` is set
and the kernel stops by itself. A second signal cancels again, for a stop that takes too long; one that comes right
after the first is the same one, sent to a whole group of processes and handed on by the supervisor.
"""

import asyncio
import os
import signal
from types import TracebackType
from typing import Any, Self

NUMBERS = (signal.SIGINT, signal.SIGTERM)
PARENT_POLL_S = 1.0
SAME_S = 0.5  # signals this close together are one


class Signals:
    """Takes the signals of this process for the length of a `with`, on behalf of the task that enters it."""

    def __init__(self, parent: int | None) -> None:
        self.told = asyncio.Event()
        self.running = False  # the kernel is up: from now on the first signal is a request
        self._at = -SAME_S  # when the last one came
        self._parent = parent
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        for number in NUMBERS:
            self._loop.add_signal_handler(number, self._signal)
        if self._parent is not None:
            self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number in NUMBERS:
            self._loop.remove_signal_handler(number)
        if self._timer is not None:
            self._timer.cancel()

    def _signal(self) -> None:
        before, self._at = self._at, self._loop.time()
        if self._at - before < SAME_S:
            return
        if self.running and not self.told.is_set():
            self.told.set()
        elif self._task is not None:
            self._task.cancel()

    def _look(self) -> None:
        if os.getppid() != self._parent:
            self._signal()
        else:
            self._timer = self._loop.call_later(PARENT_POLL_S, self._look)
