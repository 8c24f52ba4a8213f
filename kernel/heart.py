"""The kernel's heartbeat: bytes in a pipe by which `kernel/supervisor.py` knows that it is alive.

A beat says that programs get their turns: it comes from the event loop, ten times a second, and from the guard when
the loop is in one long pass of many programs. Without a supervisor there is no pipe, and nothing is written. Imports
nothing of ours; there is one `heart`, as there is one pipe.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

BEAT_S = 0.1
UP, LOADING, ENDING = b".", b"L", b"E"  # what the kernel is doing: serving; importing a program; going away
PATIENCE_S = {LOADING: 30.0, ENDING: 15.0}  # for silence then; imports of large libraries hold the interpreter


class Heart:
    """Beats once it is started."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._state = UP
        self._at = 0.0

    def start(self, fd: int, loop: "asyncio.AbstractEventLoop") -> None:
        """The kernel serves: beat on `fd` from now on."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._turn(loop)

    def _turn(self, loop: "asyncio.AbstractEventLoop") -> None:
        if self._fd is not None:
            self._write(self._state)
            loop.call_later(BEAT_S, self._turn, loop)

    def beat(self) -> None:
        """Things go on, though the loop does not come round."""
        if time.monotonic() - self._at >= BEAT_S:
            self._write(self._state)

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """For work of ours that may hold the interpreter for long."""
        before, self._state = self._state, LOADING
        self._write(LOADING)
        try:
            yield
        finally:
            self._state = before
            self._write(before)  # what comes now is held to account again

    def end(self) -> None:
        """The kernel is going away, in order."""
        self._state = ENDING
        self._write(ENDING)

    def stop(self) -> None:
        """Beat no more: what comes next is the end of the process."""
        self._fd = None

    def _write(self, state: bytes) -> None:
        if self._fd is not None:
            self._at = time.monotonic()
            with contextlib.suppress(OSError):  # the supervisor is stopped, or gone: Signals sees to that
                os.write(self._fd, state)


heart = Heart()
