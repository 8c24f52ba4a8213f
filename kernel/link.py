"""The kernel's end of the connection to one worker: frames out, messages in.

`Link` moves messages and reports what it sees through callbacks; it decides nothing. A connection that ends is seen
at once, a silent one by the heartbeat of `kernel/fleet.py`; a send never proves that anybody is there.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Protocol, cast

from gpuworker.stream import Assembler, Frames, StreamError, parse, pieces
from gpuworker.wire import (
    FromKernel,
    FromWorker,
    Greeting,
    Hello,
    WireError,
    decode_greeting,
    decode_to_kernel,
    encode,
    encode_greeting,
)

MESSAGE_BYTES_MAX = 256 << 20  # raw logits of a few hundred positions are the largest
RETRY_S = 0.05  # a worker that is still starting does not listen yet


class Link(Protocol):
    """A connection to one worker: what `kernel/fleet.py` holds of it, and what a simulation puts in its place."""

    address: str

    async def greet(self, hello: Hello, timeout_s: float) -> Greeting:
        """Connect and exchange greetings; a worker that is still starting is waited for. Raises ConnectionError."""

    def start(self) -> None:
        """Begin to deliver messages."""

    def send(self, message: FromKernel) -> None:
        """Send without waiting."""

    def take_decode_s(self) -> float:
        """Seconds spent on decoding what came, since the last look."""

    def close(self, linger_ms: int = 0) -> None:
        """Stop at once: nothing is delivered after this. Safe to call twice."""


class Transport(Protocol):
    """Makes links."""

    def link(self, address: str, *, on_message: Callable[[FromWorker], None], on_lost: Callable[[str], None]) -> Link:
        """A link to the worker at `address`, not yet connected."""

    def close(self) -> None:
        """Every link is closed; give up what they shared."""


class StreamTransport:
    """The one that runs outside of simulations."""

    def link(self, address: str, *, on_message: Callable[[FromWorker], None], on_lost: Callable[[str], None]) -> Link:
        return StreamLink(address, on_message=on_message, on_lost=on_lost)

    def close(self) -> None:
        """Nothing is shared."""


class StreamLink(asyncio.Protocol):
    """A stream socket, of this machine or over TCP."""

    def __init__(
        self, address: str, *, on_message: Callable[[FromWorker], None], on_lost: Callable[[str], None]
    ) -> None:
        self.address = address
        self._on_message = on_message
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._assembler = Assembler(MESSAGE_BYTES_MAX)
        self._transport: asyncio.WriteTransport | None = None
        self._greeting: asyncio.Future[Frames] = self._loop.create_future()
        self._early: list[Frames] | None = []  # that came before `start`
        self._refusal = ""  # why it could not be connected to, the last time
        self._is_closed = False
        self._decode_s = 0.0

    async def greet(self, hello: Hello, timeout_s: float) -> Greeting:
        try:
            async with asyncio.timeout(timeout_s):
                await self._connect()
                self._write(encode_greeting(hello))
                frames = await self._greeting
        except TimeoutError:
            why = f": {self._refusal}" if self._refusal else ""
            raise ConnectionError(f"no worker answers at {self.address} (waited {timeout_s:g} s){why}") from None
        try:
            return decode_greeting(frames)
        except WireError as e:
            raise ConnectionError(f"{self.address} does not answer as a worker: {e}") from None

    async def _connect(self) -> None:
        """Raises ConnectionError when it is no address."""
        try:
            place = parse(self.address)
        except ValueError as e:
            raise ConnectionError(str(e)) from None
        while True:
            try:
                if isinstance(place, str):
                    await self._loop.create_unix_connection(lambda: self, place)
                else:
                    await self._loop.create_connection(lambda: self, *place)
                return
            except OSError as e:
                self._refusal = e.strerror or str(e)
                await asyncio.sleep(RETRY_S)

    def start(self) -> None:
        early, self._early = self._early or [], None
        for frames in early:
            self._deliver(frames)
        if self._transport is None and not self._is_closed:
            self._on_lost("the connection was closed")

    def send(self, message: FromKernel) -> None:
        """Send without waiting; what piles up is for a worker that does not read, which the heartbeat finds."""
        self._write(encode(message))

    def _write(self, frames: Frames) -> None:
        if self._transport is not None:
            for piece in pieces(frames):
                self._transport.write(piece)

    def take_decode_s(self) -> float:
        spent, self._decode_s = self._decode_s, 0.0
        return spent

    def close(self, linger_ms: int = 0) -> None:
        """Stop at once; what was sent has `linger_ms` left to leave. Safe to call twice."""
        self._is_closed = True
        transport, self._transport = self._transport, None
        if transport is None:
            return
        if linger_ms:
            transport.close()
            self._loop.call_later(linger_ms / 1000, transport.abort)
        else:
            transport.abort()

    # --- what the event loop calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            for frames in self._assembler.feed(data):
                if self._is_closed:
                    return
                if not self._greeting.done():
                    self._greeting.set_result(frames)
                elif self._early is not None:
                    self._early.append(frames)
                else:
                    self._deliver(frames)
        except StreamError as e:
            self._end(f"it sent what is no message: {e}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end("the connection was closed")

    def _deliver(self, frames: Frames) -> None:
        began = perf_counter()
        try:
            message = decode_to_kernel(frames)
        except WireError as e:
            return self._end(f"it sent what is no message: {e}")
        self._decode_s += perf_counter() - began
        self._on_message(message)

    def _end(self, reason: str) -> None:
        if self._is_closed:
            return
        if not self._greeting.done():
            self._greeting.set_exception(ConnectionError(f"{self.address} does not answer as a worker: {reason}"))
        elif self._early is None:
            self._on_lost(reason)
