"""The zmq end of one worker: frames out, messages in. The only `import zmq` in the kernel.

A DEALER per worker connects to the worker's ROUTER. `Link` moves messages and reports what it sees through three
callbacks; it decides nothing. A closed connection is seen at once through the socket's monitor, a silent one by
the heartbeat of `kernel/fleet.py`; a send never proves that anybody is there.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

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


class ZmqTransport:
    """The one that runs outside of simulations."""

    def __init__(self) -> None:
        self._context = zmq.asyncio.Context()

    def link(self, address: str, *, on_message: Callable[[FromWorker], None], on_lost: Callable[[str], None]) -> Link:
        return ZmqLink(address, self._context, on_message=on_message, on_lost=on_lost)

    def close(self) -> None:
        self._context.destroy()


class ZmqLink:
    """A DEALER socket."""

    def __init__(
        self,
        address: str,
        context: zmq.asyncio.Context,
        *,
        on_message: Callable[[FromWorker], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.address = address
        self._on_message = on_message
        self._on_lost = on_lost
        self._socket: zmq.asyncio.Socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        self._socket.setsockopt(zmq.SNDHWM, 64)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._tasks: list[asyncio.Task[None]] = []
        self._decode_s = 0.0

    async def greet(self, hello: Hello, timeout_s: float) -> Greeting:
        try:
            self._socket.connect(self.address)
        except zmq.ZMQError as e:
            raise ConnectionError(f"{self.address} is no address to connect to: {e.strerror}") from None
        try:
            async with asyncio.timeout(timeout_s):
                await self._socket.send_multipart(encode_greeting(hello))
                frames = await self._socket.recv_multipart()
        except TimeoutError:
            raise ConnectionError(f"no worker answers at {self.address} (waited {timeout_s:g} s)") from None
        try:
            return decode_greeting(frames)
        except WireError as e:
            raise ConnectionError(f"{self.address} does not answer as a worker: {e}") from None

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch())]

    def send(self, message: FromKernel) -> None:
        """Send without waiting; a full queue means a worker that does not read, which the heartbeat finds."""
        asyncio.ensure_future(self._socket.send_multipart(encode(message))).add_done_callback(_look)

    def take_decode_s(self) -> float:
        spent, self._decode_s = self._decode_s, 0.0
        return spent

    def close(self, linger_ms: int = 0) -> None:
        """Stop at once; what was sent has `linger_ms` left to leave. Safe to call twice."""
        if self._socket.closed:
            return
        for task in self._tasks:
            task.cancel()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=linger_ms)

    async def _receive(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            began = perf_counter()
            try:
                message = decode_to_kernel(frames)
            except WireError as e:
                self._on_lost(f"it sent what is no message: {e}")
                return
            self._decode_s += perf_counter() - began
            self._on_message(message)

    async def _watch(self) -> None:
        while True:
            event = await recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_DISCONNECTED:
                self._on_lost("the connection was closed")
                return


def _look(future: "asyncio.Future[Any]") -> None:
    """A send that was cut off by `close` is no news."""
    if not future.cancelled():
        future.exception()
