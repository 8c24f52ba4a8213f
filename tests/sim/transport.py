"""The network between a kernel and its workers, simulated: `Transport` and `Link` of `kernel/link.py`, and its weather.

A connection is two pipes. In a pipe frames arrive late, in order, or, once it is cut, not at all; between connections
there is no order. What the model of failure can do to a connection:

    held    frames of one direction, or of both, stay on the way until the pipe is released (a partition that heals)
    cut     what is on the way is lost; the kernel sees the end after a while, or never (half-open)
    closed  by the kernel: what it sent before still leaves if it lingers; what comes later is late, and is dropped

A link that was cut and is not closed yet connects again by itself, and is a stranger to the worker then. (A stream
would not; whoever stands this stands that.)
Every message is encoded by its sender and decoded by its receiver, and goes through `tap`, sent and received.

Never add here: when something breaks (`faults.py`), or what a worker answers (`worker.py`).
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from gpuworker.wire import (
    Frames,
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
from tests.sim.loop import SimLoop

Tap = Callable[[str, str, Frames], None]  # ("kernel sends" …, address, frames)


class Weather(Struct, frozen=True):
    """How long frames are on their way: seconds, and how much longer at most."""

    delay_s: float = 0.0001
    jitter_s: float = 0.0004


class Peer(Protocol):
    """A worker process, as the network sees it."""

    def receive(self, connection: "Connection", frames: Frames) -> None:
        """Frames have come in."""


class Watch(Protocol):
    """Somebody who sees what passes between the kernel and its links, and changes nothing."""

    def sent(self, link: "SimLink", message: FromKernel) -> None:
        """The kernel sends."""

    def received(self, link: "SimLink", message: FromWorker) -> None:
        """The kernel is about to be given a message."""

    def late(self, link: "SimLink", message: FromWorker) -> None:
        """A message came for a link that the kernel has closed; nobody will see it."""

    def closed(self, link: "SimLink") -> None:
        """The kernel closes a link."""


class Pipe:
    """One direction of a connection."""

    def __init__(self, loop: SimLoop, dice: random.Random, weather: Weather, deliver: Callable[[Frames], None]) -> None:
        self._loop = loop
        self._dice = dice
        self._weather = weather
        self._deliver = deliver
        self._on_the_way: deque[Frames] = deque()
        self._n_due = 0  # of those, how many have been on their way long enough
        self._last_s = 0.0  # when the newest is due
        self.held = False
        self.is_cut = False

    def push(self, frames: Frames) -> None:
        """Send frames on their way."""
        if self.is_cut:
            return
        delay = self._weather.delay_s + self._weather.jitter_s * self._dice.random()
        self._last_s = max(self._last_s, self._loop.time() + delay)
        self._on_the_way.append(frames)
        self._loop.call_at(self._last_s, self._due)

    def release(self) -> None:
        """What was held arrives now."""
        self.held = False
        self._arrive()

    def cut(self) -> None:
        """Lose what is on the way, and all that follows."""
        self.is_cut = True
        self._on_the_way.clear()
        self._n_due = 0

    def _due(self) -> None:
        if not self.is_cut:
            self._n_due += 1
            self._arrive()

    def _arrive(self) -> None:
        while self._n_due and not self.held:
            self._n_due -= 1
            self._deliver(self._on_the_way.popleft())


class Connection:
    """What joins one link to one worker process, or to nobody while none listens."""

    def __init__(self, network: "Network", link: "SimLink") -> None:
        self.network = network
        self.link = link
        self.peer: Peer | None = None
        self.gone = False  # the worker can see that the kernel has closed its end
        self._unsent: list[Frames] = []  # nobody listens yet
        self._to_worker = Pipe(network.loop, network.dice, network.weather, self._at_worker)
        self._to_kernel = Pipe(network.loop, network.dice, network.weather, self._at_kernel)
        self.hold(*network.held.get(link.address, (False, False)))

    @property
    def is_cut(self) -> bool:
        return self._to_worker.is_cut

    def join(self, peer: Peer) -> None:
        """A process listens at the address from now on."""
        self.peer = peer
        unsent, self._unsent = self._unsent, []
        for frames in unsent:
            self._to_worker.push(frames)

    def hold(self, to_worker: bool, to_kernel: bool) -> None:
        """Let nothing through in these directions; the others go on."""
        for pipe, held in ((self._to_worker, to_worker), (self._to_kernel, to_kernel)):
            if held:
                pipe.held = True
            elif pipe.held:
                pipe.release()

    def cut(self) -> None:
        self._to_worker.cut()
        self._to_kernel.cut()

    def from_kernel(self, frames: Frames) -> None:
        if self.peer is None:
            self._unsent.append(frames)
        else:
            self._to_worker.push(frames)

    def from_worker(self, frames: Frames) -> bool:
        """False when the kernel's end is known to be closed."""
        if self.gone:
            return False
        self.network.tap("worker sends", self.link.address, frames)
        self._to_kernel.push(frames)
        return True

    def _at_worker(self, frames: Frames) -> None:
        assert self.peer is not None
        self.peer.receive(self, frames)

    def _at_kernel(self, frames: Frames) -> None:
        self.link.arrive(self, frames)


class Network:
    """All hosts and connections."""

    def __init__(self, loop: SimLoop, dice: random.Random, weather: Weather, tap: Tap, watch: Watch) -> None:
        self.loop = loop
        self.dice = dice
        self.weather = weather
        self.tap = tap
        self.watch = watch
        self.peers: dict[str, Peer] = {}  # who listens, by address
        self.held: dict[str, tuple[bool, bool]] = {}  # partitions: to the worker, to the kernel
        self._connections: dict[str, list[Connection]] = {}

    def listen(self, address: str, peer: Peer) -> None:
        """A worker process is there; links that wait for one reach it."""
        self.peers[address] = peer
        for connection in self._of(address):
            if connection.peer is None:
                connection.join(peer)

    def vanish(self, address: str, seen_s: float | None) -> None:
        """The worker process is gone. Links to it see that after `seen_s`; with None they hear silence."""
        del self.peers[address]
        self.cut(address, seen_s)

    def cut(self, address: str, seen_s: float | None) -> None:
        """Every connection to this address breaks; links see it after `seen_s`, or never."""
        for connection in self._of(address):
            if connection.peer is None:
                continue  # nothing was connected that could break
            connection.cut()
            self._connections[address].remove(connection)
            if seen_s is not None:
                self.loop.call_later(seen_s, connection.link.broken)

    def partition(self, address: str, *, to_worker: bool, to_kernel: bool) -> None:
        """Hold what goes to this address, and what comes from it; with both False the partition is over."""
        self.held[address] = (to_worker, to_kernel)
        for connection in self._of(address):
            connection.hold(to_worker, to_kernel)

    def connect(self, link: "SimLink") -> Connection:
        connection = Connection(self, link)
        self._connections.setdefault(link.address, []).append(connection)
        peer = self.peers.get(link.address)
        if peer is not None:
            connection.join(peer)
        return connection

    def disconnect(self, connection: Connection, *, lingers: bool) -> None:
        """The kernel closed its end. The worker can see it a little later, unless it is cut off."""
        address = connection.link.address
        if not lingers and self.dice.random() < 0.5:
            connection.cut()  # what was queued never left
        if connection in self._of(address) and connection.peer is None:
            self._connections[address].remove(connection)
        self.loop.call_later(self.weather.delay_s + self.weather.jitter_s * self.dice.random(), self._seen, connection)

    def _seen(self, connection: Connection) -> None:
        if not any(self.held.get(connection.link.address, ())):
            connection.gone = True

    def _of(self, address: str) -> list[Connection]:
        return list(self._connections.get(address, ()))


class SimTransport:
    """`kernel.link.Transport` over a `Network`."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.links: list[SimLink] = []  # all that were ever made

    def link(
        self, address: str, *, on_message: Callable[[FromWorker], None], on_lost: Callable[[str], None]
    ) -> "SimLink":
        link = SimLink(address, self.network, on_message, on_lost)
        self.links.append(link)
        return link

    def close(self) -> None:
        for link in self.links:
            link.close()


class SimLink:
    """`kernel.link.Link` over a `Network`."""

    def __init__(
        self,
        address: str,
        network: Network,
        on_message: Callable[[FromWorker], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.address = address
        self.network = network
        self.closed = False
        self.lingered = False  # it was closed by a kernel that says goodbye
        self._on_message = on_message
        self._on_lost = on_lost
        self._connection: Connection | None = None
        self._greeting: asyncio.Future[Frames] = network.loop.create_future()
        self._started = False
        self._unread: list[Frames] = []  # came before `start`

    async def greet(self, hello: Hello, timeout_s: float) -> Greeting:
        self._connection = self.network.connect(self)
        self._connection.from_kernel(encode_greeting(hello))
        try:
            async with asyncio.timeout(timeout_s):
                frames = await self._greeting
        except TimeoutError:
            raise ConnectionError(f"no worker answers at {self.address} (waited {timeout_s:g} s)") from None
        return decode_greeting(frames)

    def start(self) -> None:
        self._started = True
        unread, self._unread = self._unread, []
        for frames in unread:
            self.network.loop.call_soon(self._deliver, frames)

    def send(self, message: FromKernel) -> None:
        if self.closed or self._connection is None:
            return
        frames = encode(message)
        self.network.watch.sent(self, message)
        self.network.tap("kernel sends", self.address, frames)
        if self._connection.is_cut and self.address in self.network.peers:
            self._connection = self.network.connect(self)  # as a socket does by itself; the worker does not know us
        self._connection.from_kernel(frames)

    def take_decode_s(self) -> float:
        return 0.0

    def close(self, linger_ms: int = 0) -> None:
        if self.closed:
            return
        self.closed = True
        self.lingered = linger_ms > 0
        self.network.watch.closed(self)
        if self._connection is not None:
            self.network.disconnect(self._connection, lingers=self.lingered)

    def arrive(self, connection: Connection, frames: Frames) -> None:
        """Frames have come in."""
        if not self._greeting.done() and not self.closed:
            self.network.tap("kernel receives", self.address, frames)
            self._greeting.set_result(frames)
        elif self._started or self.closed:
            self._deliver(frames)
        else:
            self._unread.append(frames)

    def broken(self) -> None:
        """The end of the connection is seen."""
        if not self.closed and self._started:
            self._on_lost("the connection was closed")

    def _deliver(self, frames: Frames) -> None:
        if self.closed:
            if frames[0][:1] != b"{":  # not a greeting
                self.network.watch.late(self, decode_to_kernel(frames))
            return
        self.network.tap("kernel receives", self.address, frames)
        try:
            message = decode_to_kernel(frames)
        except WireError as e:
            self._on_lost(f"it sent what is no message: {e}")
            return
        self.network.watch.received(self, message)
        self._on_message(message)
