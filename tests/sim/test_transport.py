"""The simulated network keeps what TCP keeps, and loses what TCP loses."""

import asyncio
import random

import pytest

from gpuworker import wire
from tests.sim.loop import SimLoop
from tests.sim.transport import Network, SimTransport, Weather


class Watch:
    """Sees all, and remembers what came too late."""

    def __init__(self):
        self.late_messages = []

    def sent(self, link, message): ...

    def received(self, link, message): ...

    def late(self, link, message):
        self.late_messages.append(message)

    def closed(self, link): ...


class Echo:
    """A peer that answers a greeting with a refusal and each ping with a pong."""

    def __init__(self):
        self.connections = []
        self.nonces = []

    def receive(self, connection, frames):
        self.connections.append(connection)
        if frames[0][:1] == b"{":
            connection.from_worker(wire.encode_greeting(wire.Refused("schema", "an echo")))
            return
        message = wire.decode_to_worker(frames)
        self.nonces.append(message.nonce)
        connection.from_worker(wire.encode(wire.Pong(message.nonce, 0, 0)))


class Room:
    """A loop, a network, an echo at `sim://echo`, and a link to it."""

    def __init__(self, weather):
        self.loop = SimLoop()
        self.watch = Watch()
        self.network = Network(self.loop, random.Random(7), weather, lambda *a: None, self.watch)
        self.transport = SimTransport(self.network)
        self.echo = Echo()
        self.network.listen("sim://echo", self.echo)
        self.heard = []
        self.lost = []

    def link(self):
        return self.transport.link("sim://echo", on_message=self.heard.append, on_lost=self.lost.append)

    async def greeted(self):
        link = self.link()
        await link.greet(wire.Hello("schema", "kernel"), 1.0)
        link.start()
        return link


def run(main, weather=Weather(delay_s=0.001, jitter_s=0.01)):  # noqa: B008 (frozen)
    room = Room(weather)
    try:
        room.loop.run_until_complete(main(room))
    finally:
        room.loop.close()


def nonces(messages):
    return [m.nonce for m in messages]


def test_messages_arrive_late_and_in_order():
    async def main(room):
        link = await room.greeted()
        for i in range(50):
            link.send(wire.Ping(i))
        assert room.heard == []
        await asyncio.sleep(0.1)
        assert nonces(room.heard) == list(range(50))

    run(main)


def test_a_link_waits_for_a_worker_that_is_not_there_yet():
    async def main(room):
        room.network.vanish("sim://echo", None)
        link = room.link()
        greeting = asyncio.ensure_future(link.greet(wire.Hello("schema", "kernel"), 5.0))
        await asyncio.sleep(1.0)
        room.network.listen("sim://echo", room.echo)
        assert (await greeting).reason == "an echo"
        with pytest.raises(ConnectionError):
            room.network.vanish("sim://echo", None)
            await room.link().greet(wire.Hello("schema", "kernel"), 5.0)

    run(main)


def test_a_partition_holds_and_then_lets_through():
    async def main(room):
        link = await room.greeted()
        room.network.partition("sim://echo", to_worker=False, to_kernel=True)
        link.send(wire.Ping(1))
        await asyncio.sleep(5.0)
        assert room.echo.nonces == [1]
        assert room.heard == []
        room.network.partition("sim://echo", to_worker=False, to_kernel=False)
        assert nonces(room.heard) == [1]

    run(main)


def test_a_cut_loses_what_is_on_the_way_and_is_seen_after_a_while():
    async def main(room):
        link = await room.greeted()
        link.send(wire.Ping(1))
        room.network.cut("sim://echo", 0.5)
        await asyncio.sleep(0.4)
        assert (room.echo.nonces, room.heard, room.lost) == ([], [], [])
        await asyncio.sleep(0.2)
        assert room.lost == ["the connection was closed"]

    run(main)


def test_a_half_open_connection_is_silent():
    async def main(room):
        link = await room.greeted()
        room.network.vanish("sim://echo", None)
        link.send(wire.Ping(1))
        await asyncio.sleep(60.0)
        assert (room.heard, room.lost) == ([], [])

    run(main)


def test_a_link_that_was_cut_comes_again_as_a_stranger():
    async def main(room):
        link = await room.greeted()
        room.network.cut("sim://echo", None)
        link.send(wire.Ping(2))
        await asyncio.sleep(1.0)
        before, after = room.echo.connections
        assert before is not after
        assert nonces(room.heard) == [2]

    run(main)


def test_nothing_is_delivered_to_a_closed_link():
    async def main(room):
        link = await room.greeted()
        link.send(wire.Ping(1))
        await asyncio.sleep(0.015)  # the answer is on its way
        link.close(linger_ms=100)
        link.close()
        await asyncio.sleep(1.0)
        assert room.heard == []
        assert nonces(room.watch.late_messages) == [1]
        assert room.echo.connections[-1].gone

    run(main, Weather(delay_s=0.01, jitter_s=0.0))


def test_what_is_no_message_loses_the_link():
    async def main(room):
        link = await room.greeted()
        room.echo.connections[-1].from_worker([b"\xc1"])
        await asyncio.sleep(1.0)
        assert room.heard == []
        assert "no message" in room.lost[0]
        link.close()

    run(main)
