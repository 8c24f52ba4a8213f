"""The client's end of a process: what a program emits, and the lines it asks for.

A front door makes one per program it starts, drains `events` and feeds `answer`. The buffer is bounded: a program
that emits faster than its client reads waits in `emit`. Processes hold at most one client; without one, emitted
events are dropped and `input` fails. Nothing here knows sockets.
"""

import asyncio
from collections import deque
from typing import Any, Protocol

from msgspec import Struct

from sdk.abi.errors import BrokenPipe, SyscallError


class Event(Struct, frozen=True, omit_defaults=True):
    """Something for the client to see: an emitted `data` on `stream`, or a `prompt` that wants a line back."""

    data: Any = None
    stream: str | None = None
    prompt: str | None = None


class Waiter(Protocol):
    """A thread of the program that waits for the client."""

    @property
    def gone(self) -> bool:
        """It does not wait any more."""

    def complete(self, result: Any) -> None:
        """It may go on."""

    def fail(self, error: SyscallError) -> None:
        """What it waits for will not come."""


class Client:
    """One program's connection to whoever started it."""

    def __init__(self, *, interactive: bool, n_buffered_max: int = 1024) -> None:
        self.interactive = interactive
        self.n_buffered_max = n_buffered_max
        self.gone = False
        self._events: deque[Event] = deque()
        self._readable = asyncio.Event()
        self._writers: deque[Waiter] = deque()
        self._readers: deque[Waiter] = deque()
        self._ended = False

    # --- the program's side ---

    def emit(self, event: Event) -> bool:
        """Queue an event; False when the buffer is full now. Raises BrokenPipe when the client left."""
        if self.gone:
            raise BrokenPipe("the client has left")
        self._events.append(event)
        self._readable.set()
        return len(self._events) < self.n_buffered_max

    def wait_for_room(self, writer: Waiter) -> None:
        """`writer` goes on when the buffer has room again."""
        self._writers.append(writer)

    def check_input(self) -> None:
        """Raises BrokenPipe when no one can answer."""
        if self.gone or not self.interactive:
            raise BrokenPipe("there is no client to answer" if not self.gone else "the client has left")

    def ask(self, prompt: str, reader: Waiter) -> None:
        """Ask for a line, for `reader`. Raises BrokenPipe when no one can answer."""
        self.check_input()
        self._readers.append(reader)
        self._events.append(Event(prompt=prompt))
        self._readable.set()

    def forget(self, waiter: Waiter) -> None:
        """It has gone away."""
        for queue in (self._writers, self._readers):
            if waiter in queue:
                queue.remove(waiter)

    def end(self) -> None:
        """The process is done: `events` ends after what is queued."""
        self._ended = True
        self._readable.set()

    # --- the front door's side ---

    async def next(self) -> Event | None:
        """The next event; None after the last one."""
        while not self._events:
            if self._ended:
                return None
            self._readable.clear()
            await self._readable.wait()
        event = self._events.popleft()
        while self._writers and len(self._events) < self.n_buffered_max:
            self._writers.popleft().complete(None)
        return event

    def answer(self, line: str) -> bool:
        """Give a line to the oldest `input`; False when none waits."""
        while self._readers:
            reader = self._readers.popleft()
            if not reader.gone:
                reader.complete(line)
                return True
        return False

    def no_more_input(self) -> None:
        """There will be no further lines: waiting `input` calls fail, and so do later ones."""
        self.interactive = False
        while self._readers:
            self._readers.popleft().fail(BrokenPipe("the client has no more input"))

    def leave(self) -> None:
        """The client is gone for good."""
        self.gone = True
        self.no_more_input()
        self._events.clear()
        while self._writers:
            self._writers.popleft().complete(None)
