"""How long waits take, by what they took."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.waits import FADE, LONG_S, N_KINDS, History, Wait
from sdk import Channel, kv, process


def wait(call="recv", since=0.0, until=None):
    return Wait(call, lambda: None, "", since, until)


def test_a_kind_takes_what_it_took():
    history = History()
    history.learn("p", "recv", 10.0)
    assert history.ends_at("p", "recv", 100.0, 101.0) == 110.0
    history.learn("p", "recv", 20.0)
    assert history.ends_at("p", "recv", 100.0, 101.0) == 110.0 + FADE * 10.0
    assert history.ends_at("q", "recv", 100.0, 101.0) == 102.0, "nothing is known: as long again"
    assert history.ends_at("p", "recv", 100.0, 150.0) == 200.0, "longer than ever: as long again"


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(LONG_S, 100), min_size=1, max_size=30), st.floats(0, 200))
def test_the_mean_is_among_what_was_seen_and_the_end_in_the_future(seen, waited):
    history = History()
    for seconds in seen:
        history.learn("p", "k", seconds)
    assert min(seen) <= history.ends_at("p", "k", 0.0, 0.0) * (1 + 1e-9)
    assert history.ends_at("p", "k", 0.0, 0.0) <= max(seen) * (1 + 1e-9)
    assert history.ends_at("p", "k", 0.0, waited) >= waited


def test_short_waits_are_not_remembered():
    history = History()
    history.learn("p", "recv", LONG_S / 2)
    assert history.ends_at("p", "recv", 0.0, 1.0) == 2.0


def test_kinds_are_forgotten_the_oldest_first():
    history = History()
    for i in range(N_KINDS):
        history.learn("p", str(i), 10.0)
    history.learn("p", "0", 10.0)
    history.learn("p", "one more", 10.0)
    assert history.ends_at("p", "0", 0.0, 0.0) == 10.0
    assert history.ends_at("p", "1", 0.0, 0.0) == 0.0


def test_a_sleep_ends_when_it_says_and_a_timeout_is_the_latest():
    history = History()
    history.learn("p", "recv", 10.0)
    history.learn("p", "sleep", 10.0)
    assert history.returns_at("p", wait("sleep", 0.0, 3.0), 1.0) == 3.0
    assert history.returns_at("p", wait("recv", 0.0, 5.0), 1.0) == 5.0
    assert history.returns_at("p", wait("recv", 0.0, 15.0), 1.0) == 10.0
    assert history.returns_at("p", wait("recv"), 1.0) == 10.0


# --- of processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(house, monkeypatch):
    """A kernel whose time is a number, so that nobody waits in earnest."""
    now = [1000.0]
    monkeypatch.setattr(house.kernel.loop, "time", lambda: now[0])
    house.kernel.clock = house.kernel.ready.now = lambda: now[0]
    return now


async def turns(n=6):
    for _ in range(n):
        await asyncio.sleep(0)


async def test_a_call_that_waits(house, clock):
    async def main():
        for _ in range(2):
            await Channel("c").recv()

    p = house.start(main)
    await turns()
    began = clock[0]
    assert p.returns_at(began) == began, "nothing is known of it"
    clock[0] += 8.0
    assert p.returns_at(clock[0]) == began + 16.0
    house.kernel.channels.send("c", "x")
    assert p.returns_at(clock[0]) is None, "it is on its way"
    await turns()
    assert p.returns_at(clock[0]) == clock[0] + 8.0
    assert p.usage.wait_s["recv"] == 8.0
    house.kernel.channels.send("c", "x")
    await p.wait_exit()


async def test_a_plain_await_is_known_by_its_line(house, clock):
    gates = [asyncio.Event() for _ in range(3)]

    async def main():
        for gate in gates:
            await gate.wait()  # as for an answer of a server

    p = house.start(main)
    await turns()
    clock[0] += 5.0
    assert p.returns_at(clock[0]) == clock[0] + 5.0
    gates[0].set()
    await turns()
    assert p.returns_at(clock[0]) == clock[0] + 5.0
    clock[0] += 1.0
    assert p.returns_at(clock[0]) == clock[0] + 4.0
    for gate in gates:
        gate.set()
    await p.wait_exit()


async def test_the_end_of_a_call_is_no_plain_await(house, clock):
    async def main():
        await Channel("c").recv()

    p = house.start(main)
    await turns()
    clock[0] += 8.0
    house.kernel.channels.send("c", "x")
    await p.wait_exit()
    line = f"test_waits.py:{main.__code__.co_firstlineno + 1}"
    assert house.kernel.history.ends_at("main", line, 0.0, 0.0) == 0.0
    assert house.kernel.history.ends_at("main", "recv", 0.0, 0.0) == 8.0


async def test_the_first_of_several_threads_to_return_counts(house, clock):
    async def main():
        await asyncio.gather(process.sleep(50), process.sleep(20), Channel("c").recv(timeout=30))

    p = house.start(main)
    await turns(8)
    assert p.returns_at(clock[0]) == clock[0], "of one nothing is known"
    clock[0] += 15
    assert p.returns_at(clock[0]) == clock[0] + 5
    house.kernel.kill(p.pid, "the test is over")
    await p.wait_exit()


async def test_who_waits_for_the_model_is_not_away(house):
    async def main():
        async with await kv.prompt("x") as f:
            await f.text(max_tokens=100)

    p = house.start(main)
    await house.until(lambda: any(w.call == "generate" for w in p.waiting.values()))
    assert p.returns_at(house.kernel.now()) is None
    await p.wait_exit()
    assert p.returns_at(house.kernel.now()) is None
