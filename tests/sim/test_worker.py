"""A simulated worker does what `gpuworker/serve.py` does."""

import asyncio
import random
from array import array

import pytest

from gpuworker import wire
from gpuworker.null import NullBackend
from gpuworker.serve import SILENCE_LIMIT_S
from gpuworker.stepcost import StepCost
from sdk.abi.errors import Errno
from tests.sim.loop import SimLoop
from tests.sim.transport import Network, SimTransport, Weather
from tests.sim.worker import Cost, SimWorker

ADDRESS = "sim://0"


class Watch:
    def sent(self, link, message): ...

    def received(self, link, message): ...

    def late(self, link, message): ...

    def closed(self, link): ...


class Room:
    """A worker, and a kernel's end of a network to it."""

    def __init__(self):
        self.loop = SimLoop()
        self.network = Network(self.loop, random.Random(1), Weather(0.0, 0.0), lambda *a: None, Watch())
        self.transport = SimTransport(self.network)
        self.complaints = []
        self.seen = []
        self.heard = []  # (time, message)
        self.lost = []
        self.worker = self.start()

    def start(self):
        return SimWorker(
            self.network,
            ADDRESS,
            "w",
            lambda: NullBackend(n_pages=8, page_size=4, vocab_size=272, verify=True),
            Cost(StepCost(step_s=0.1), page_s=0.5),
            complain=self.complaints.append,
            saw=self.seen.append,
        )

    def hear(self, message):
        self.heard.append((self.loop.time(), message))

    async def attach(self, kernel="kernel"):
        link = self.transport.link(ADDRESS, on_message=self.hear, on_lost=self.lost.append)
        greeting = await link.greet(wire.Hello(wire.WIRE_HASH, kernel), 1.0)
        link.start()
        return link, greeting

    @property
    def answers(self):
        return [m for _, m in self.heard if isinstance(m, wire.BatchDone | wire.BatchFailed)]


def batch(seq, tokens=(1, 2), *, n_failed=0, n_before=0, chained=False, pages=(0,)):
    """One row of job 1, which draws a token after its last."""
    ask = wire.Ask(len(tokens) - 1, wire.Draw(wire.Sampling(), 0, n_before + len(tokens)))
    row = wire.Row(1, n_before, len(tokens), len(pages), [ask], chained)
    arrays = [array("I", x) for x in (tokens, range(n_before, n_before + len(tokens)), pages, ())]
    return wire.Batch(wire.BatchHead(seq, [], [row], n_failed), *arrays)


def run(main):
    room = Room()
    try:
        room.loop.run_until_complete(main(room))
    finally:
        room.loop.close()


def test_batches_are_answered_one_after_another_in_virtual_time():
    async def main(room):
        link, greeting = await room.attach()
        assert isinstance(greeting, wire.Welcome)
        link.send(batch(1))
        link.send(batch(2, (0,), n_before=2, chained=True))
        link.send(wire.Ping(5))
        await asyncio.sleep(0.15)
        assert [type(m) for _, m in room.heard] == [wire.Pong, wire.BatchDone]
        await asyncio.sleep(0.1)
        assert [(round(t, 6), m.head.seq) for t, m in room.heard[1:]] == [(0.1, 1), (0.2, 2)]
        assert room.answers[0].head.step_s == 0.1
        assert room.complaints == []

    run(main)


def test_one_kernel_at_a_time():
    async def main(room):
        await room.attach()
        _, greeting = await room.attach("another")
        assert isinstance(greeting, wire.Refused)

    run(main)


def test_a_kernel_that_says_hello_again_finds_new_pages_and_hears_nothing_old():
    async def main(room):
        link, _ = await room.attach()
        link.send(batch(1))
        link.send(batch(2))
        await asyncio.sleep(0.05)
        again, _ = await room.attach()
        link.close()
        again.send(batch(1, (7,), n_before=2))  # on pages that were never written
        await asyncio.sleep(1.0)
        assert "the result of an old epoch is thrown away" in room.seen
        assert "work of an old epoch is dropped" in room.seen
        assert [m.seq for m in room.answers] == [1]
        assert "nothing was ever written" in room.complaints[0]

    run(main)


def test_a_stopped_process_goes_on_where_it_was():
    async def main(room):
        link, _ = await room.attach()
        link.send(batch(1))
        await asyncio.sleep(0.04)
        room.worker.hang()
        link.send(wire.Ping(1))
        await asyncio.sleep(3.0)
        assert room.heard == []
        room.worker.resume()
        await asyncio.sleep(0.1)
        assert [(round(t, 6), type(m)) for t, m in room.heard] == [(3.04, wire.Pong), (3.1, wire.BatchDone)]

    run(main)


def test_a_crash_is_seen_and_what_comes_up_knows_nothing():
    async def main(room):
        link, _ = await room.attach()
        link.send(batch(1))
        await asyncio.sleep(0.05)
        room.worker.crash(0.01)
        await asyncio.sleep(1.0)
        assert room.lost == ["the connection was closed"]
        assert room.answers == []
        room.worker = room.start()
        link.close()
        assert isinstance((await room.attach())[1], wire.Welcome)

    run(main)


def test_a_silent_kernel_is_given_up():
    async def main(room):
        await room.attach()
        await asyncio.sleep(SILENCE_LIMIT_S + 2.0)
        assert isinstance(room.heard[-1][1], wire.Bye)
        assert room.worker.serves is None

    run(main)


@pytest.mark.parametrize("fault", ["short", "glitch"])
def test_a_batch_that_fails_leaves_garbage_and_makes_the_next_one_void(fault):
    async def main(room):
        link, _ = await room.attach()
        link.send(batch(1, (1, 2)))
        await asyncio.sleep(0.2)
        device = room.worker.device
        device.n_tokens_max, device.n_glitches = (1, 0) if fault == "short" else (None, 1)
        link.send(batch(2, (3, 4), n_before=2))
        link.send(batch(3, (0,), n_before=4, chained=True, pages=(0, 1)))
        await asyncio.sleep(0.3)
        failed, void = room.answers[1:]
        assert (failed.errno, failed.void) == (Errno.ENOSPC if fault == "short" else Errno.EIO, False)
        assert void.void
        device.n_tokens_max = None
        link.send(batch(4, (5,), n_before=4, pages=(0, 1), n_failed=1))  # goes on from what was not done
        link.send(batch(5, (3, 4), n_before=2, n_failed=1))
        link.send(batch(6, (5,), n_before=4, pages=(0, 1), n_failed=1))
        await asyncio.sleep(0.5)
        spoilt, _, right = [m.head.rows[0].answers[0].sample_logprob for m in room.answers[3:]]
        assert spoilt != right
        assert room.complaints == []

    run(main)


def test_a_batch_that_no_worker_takes_is_complained_of():
    async def main(room):
        link, _ = await room.attach()
        link.send(batch(1, pages=(99,)))
        await asyncio.sleep(0.2)
        assert "must refuse" in room.complaints[0]

    run(main)
