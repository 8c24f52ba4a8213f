"""The ready queue: order, budget and what becomes of answers that nobody takes."""

import asyncio
import socket
from collections import deque
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.ready import RERANK_S, Pace, Ready, WakeUp
from sdk import channel, process
from sdk.abi.errors import InvalidArgument


class Loop:
    """An event loop of calls alone, in passes; each call may take time of its clock."""

    def __init__(self):
        self.now = 0.0
        self.calls = deque()

    def time(self):
        return self.now

    def call_soon(self, function, *args):
        self.calls.append((function, args))

    def run_pass(self):
        for _ in range(len(self.calls)):
            function, args = self.calls.popleft()
            function(*args)


class Future:
    """Just what the queue needs of one: whoever waits takes a step of `step_s` in the next pass."""

    def __init__(self, house, name, step_s=0.0):
        self.house, self.name, self.step_s = house, name, step_s
        self.is_done = False

    def done(self):
        return self.is_done

    def cancel(self):
        self.is_done = True

    def set_result(self, result):
        self.is_done = True
        self.house.loop.call_soon(self.step)

    def set_exception(self, error):
        self.set_result(error)

    def step(self):
        self.house.ran.append(self.name)
        self.house.loop.now += self.step_s


class House:
    """A ready queue in which whoever has the smaller account goes first."""

    def __init__(self, budget_s=0.005, frozen=False):
        self.loop = Loop()
        self.ran = []
        clock = (lambda: 7.0) if frozen else self.loop.time
        self.ready = Ready(self.loop, lambda a, now, since: (a,), budget_s=budget_s, clock=clock)

    def owner(self, account=0):
        return SimpleNamespace(account=account, dying=False, n_ready=0, wait_s={}, begin=lambda: None)

    def put(self, name, account=0, step_s=0.0, give_back=None):
        answer = WakeUp(self.owner(account), Future(self, name, step_s), "result", None, give_back)
        self.ready.put(answer)
        return answer


def test_one_answer_takes_one_pass_more():
    house = House()
    house.put("a")
    assert len(house.loop.calls) == 1
    house.loop.run_pass()
    assert house.ran == []
    house.loop.run_pass()
    assert house.ran == ["a"]
    assert not house.loop.calls


def test_a_flush_takes_none():
    house = House()
    for name in ("b", "a"):
        house.put(name, name)
    house.ready.flush()
    house.loop.run_pass()
    assert house.ran == ["a", "b"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 9), max_size=300))
def test_the_order_is_that_of_ranks_then_of_arrival(accounts):
    """Whether they fit into one pass or not."""
    house = House()
    for i, account in enumerate(accounts):
        house.put((account, i), account)
    while house.loop.calls:
        house.loop.run_pass()
    assert house.ran == sorted(house.ran)
    assert len(house.ran) == len(accounts)


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 3000), step_us=st.floats(1, 20_000), budget_ms=st.floats(0.5, 20))
def test_a_pass_takes_no_longer_than_its_budget_once_steps_are_known(n, step_us, budget_ms):
    house = House(budget_ms / 1000)
    for i in range(n):
        house.put(i, step_s=step_us / 1e6)
    passes = []
    while house.loop.calls:
        before = house.loop.now, len(house.ran)
        house.loop.run_pass()
        passes.append((house.loop.now - before[0], len(house.ran) - before[1]))
    busy = [seconds for seconds, n_steps in passes if n_steps]
    assert len(house.ran) == n
    for seconds in busy[2:]:  # the first ones teach it
        assert seconds <= max(budget_ms / 1000, step_us / 1e6) * 1.001
    assert all(n_steps for _, n_steps in passes[1:-1]), "no pass in between is wasted"


def test_where_time_stands_still_all_are_handed_out_soon():
    house = House(frozen=True)
    for i in range(10_000):
        house.put(i)
    n_passes = 0
    while house.loop.calls:
        house.loop.run_pass()
        n_passes += 1
    assert house.ran == list(range(10_000))
    assert n_passes < 60


def test_a_step_that_took_long_makes_the_next_pass_short():
    pace = Pace(0.005)
    assert pace.room == 100
    pace.took(100, 0.1)
    assert pace.room == 5
    for _ in range(100):
        pace.took(5, 5e-5)
    assert pace.room > 400
    assert pace.room <= 500
    pace.took(1, 1.0)
    assert pace.room == 1


def test_whoever_comes_later_and_is_more_urgent_overtakes_the_backlog():
    house = House(budget_s=0.001)
    for i in range(100):
        house.put(i, account=1, step_s=1e-4)
    for _ in range(3):
        house.loop.run_pass()
    assert 0 < len(house.ran) < 100
    house.put("late", account=0)
    while house.loop.calls:
        house.loop.run_pass()
    assert house.ran.index("late") < 60


def test_who_waits_for_long_is_ranked_anew():
    """Ranks change with time; here that of everybody after a second."""
    house = House(budget_s=0.001)
    house.ready._rank = lambda a, now, since: (a if now < RERANK_S else -a,)
    for i in range(100):
        house.put(i, account=i, step_s=1e-4)
    for _ in range(2):
        house.loop.run_pass()
    first = len(house.ran)
    house.loop.now += 2 * RERANK_S
    while house.loop.calls:
        house.loop.run_pass()
    n = 2 * first + 20  # those that were let go before
    assert house.ran[n:] == sorted(house.ran[n:], reverse=True)


def test_answers_without_a_caller_are_dropped_or_given_back():
    house, returned = House(), []
    cancelled, killed, late = (house.put(name, give_back=returned.append) for name in "abc")
    cancelled.future.cancel()
    killed.owner.dying = True
    house.ready.put(WakeUp(killed.owner, Future(house, "d"), 1, None, returned.append))
    house.loop.run_pass()
    late.future.cancel()
    house.ready.put(WakeUp(late.owner, late.future, 2, None, returned.append))
    house.loop.run_pass()
    assert (returned, house.ran) == ([1, "result", "result", 2], ["c"])
    assert [a.owner.n_ready for a in (cancelled, killed, late)] == [0, 0, 0]
    assert len(house.ready) == 0


def test_the_wait_for_a_turn_is_counted():
    house = House(budget_s=0.001)
    answers = [house.put(i, step_s=0.001) for i in range(40)]
    assert answers[-1].owner.n_ready == 1
    while house.loop.calls:
        house.loop.run_pass()
    assert answers[0].owner.wait_s == {}
    assert answers[-1].owner.wait_s["ready"] == pytest.approx(0.039)


# --- in the kernel ------------------------------------------------------------------------------------------------


async def test_ten_thousand_wake_ups_do_not_starve_a_socket(house):
    """Programs that take a tenth of a millisecond each, by a clock that only they advance."""
    now, woken = 0.0, []
    ready = house.kernel.ready
    ready._clock = lambda: now
    n = 10_000

    async def main(i: int):
        await process.sleep(1000)
        nonlocal now
        now += 1e-4
        woken.append(i)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")  # readable in every pass
        seen = []
        processes = [house.start(main, i=i) for i in range(n)]
        await house.until(lambda: all(p.waiting for p in processes))
        loop = asyncio.get_running_loop()
        ready.pace = Pace(0.005)
        loop.add_reader(ours, lambda: seen.append(len(woken)))
        for p in processes:
            for future in list(p.waiting):
                p.complete(future, None)
        await asyncio.gather(*(p.wait_exit() for p in processes))
        loop.remove_reader(ours)
    assert len(woken) == n
    between = [b - a for a, b in pairwise(seen)]
    assert between[0] <= 100, "as many as are taken to fit"
    assert max(between[1:]) <= 50, "as many as were seen to"


async def test_programs_begin_in_their_turn_and_may_end_before_it(house):
    async def main(i: int):
        return i

    processes = [house.start(main, i=i) for i in range(300)]
    assert {p.state for p in processes} == {"ready"}
    victim = processes[7]
    house.kernel.kill(victim.pid, "before it began")
    assert (victim.status.code, victim.status.error) == (137, "before it began")
    statuses = [await p.wait_exit() for p in processes if p is not victim]
    assert {s.code for s in statuses} == {0}


async def test_a_failure_goes_the_same_way(house):
    seen = []

    async def main():
        try:
            await channel.Channel("c").recv()
        except InvalidArgument as e:
            seen.append(str(e))

    p = house.start(main)
    await house.until(lambda: p.waiting)
    (future,) = p.waiting
    p.fail(future, InvalidArgument("no"))
    p.fail(future, InvalidArgument("no, again"))
    assert (await p.wait_exit()).code == 0
    assert seen == ["EINVAL: no"]
