"""The client's end of a process: what a program emits, and the lines it asks for.

A front door makes one per program it starts, drains `events` and feeds `answer`. The buffer is bounded: a program
that emits faster than its client reads waits in `emit`. Processes hold at most one client; without one, emitted
events are dropped and `input` fails. Nothing here knows sockets.
"""

import asyncio
from collections import deque
from typing import Any

from msgspec import Struct

from sdk.abi.errors import BrokenPipe


class Event(Struct, frozen=True, omit_defaults=True):
    """Something for the client to see: an emitted `data` on `stream`, or a `prompt` that wants a line back."""

    data: Any = None
    stream: str | None = None
    prompt: str | None = None


class Client:
    """One program's connection to whoever started it."""

    def __init__(self, *, interactive: bool, n_buffered_max: int = 1024) -> None:
        self.interactive = interactive
        self.n_buffered_max = n_buffered_max
        self.gone = False
        self._events: deque[Event] = deque()
        self._readable = asyncio.Event()
        self._writers: deque[asyncio.Future[None]] = deque()
        self._readers: deque[asyncio.Future[str]] = deque()
        self._ended = False

    # --- the program's side ---

    def emit(self, event: Event) -> "asyncio.Future[None] | None":
        """Queue an event; a future to wait for when the buffer is full. Raises BrokenPipe when the client left."""
        if self.gone:
            raise BrokenPipe("the client has left")
        self._events.append(event)
        self._readable.set()
        if len(self._events) < self.n_buffered_max:
            return None
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writers.append(waiter)
        return waiter

    def ask(self, prompt: str) -> "asyncio.Future[str]":
        """Ask for a line. Raises BrokenPipe when no one can answer."""
        if self.gone or not self.interactive:
            raise BrokenPipe("there is no client to answer" if not self.gone else "the client has left")
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._readers.append(waiter)
        self._events.append(Event(prompt=prompt))
        self._readable.set()
        return waiter

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
            writer = self._writers.popleft()
            if not writer.done():
                writer.set_result(None)
        return event

    def answer(self, line: str) -> bool:
        """Give a line to the oldest `input`; False when none waits."""
        while self._readers:
            reader = self._readers.popleft()
            if not reader.done():
                reader.set_result(line)
                return True
        return False

    def no_more_input(self) -> None:
        """There will be no further lines: waiting `input` calls fail, and so do later ones."""
        self.interactive = False
        while self._readers:
            reader = self._readers.popleft()
            if not reader.done():
                reader.set_exception(BrokenPipe("the client has no more input"))

    def leave(self) -> None:
        """The client is gone for good."""
        self.gone = True
        self.no_more_input()
        self._events.clear()
        while self._writers:
            writer = self._writers.popleft()
            if not writer.done():
                writer.set_result(None)
