"""Virtual time."""

import asyncio

import pytest

from tests.sim.loop import Deadlock, SimLoop, SimTask, Spinning, deterministic


@pytest.fixture
def loop():
    loop = SimLoop()
    yield loop
    loop.close()


def test_an_hour_passes_at_once_and_in_order(loop):
    seen = []

    async def sleeper(seconds):
        await asyncio.sleep(seconds)
        seen.append((seconds, loop.time()))

    async def main():
        await asyncio.gather(*(sleeper(s) for s in (3600.0, 0.25, 60.0)))

    loop.run_until_complete(main())
    assert seen == [(0.25, 0.25), (60.0, 60.0), (3600.0, 3600.0)]


def test_nobody_to_wake_anybody_is_a_deadlock(loop):
    async def main():
        await loop.create_future()

    task = loop.create_task(main())
    with pytest.raises(Deadlock):
        loop.run_until_complete(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)


def test_callbacks_that_keep_calling_each_other_are_found(loop):
    def again():
        loop.call_soon(again)

    again()
    with pytest.raises(Spinning):
        loop.run_forever()


def test_a_pause_makes_all_timers_late(loop):
    seen = []

    async def main():
        for seconds in (1.0, 2.0):
            loop.call_later(seconds, lambda s=seconds: seen.append((s, loop.time())))
        loop.skip(10.0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert seen == [(1.0, 10.0), (2.0, 10.0)]


def test_a_look_after_each_pass(loop):
    passes = []
    loop.after_pass = lambda: passes.append(loop.time())

    async def main():
        await asyncio.sleep(1.0)

    loop.run_until_complete(main())
    assert loop.n_passes == len(passes)
    assert passes[0] == 0.0
    assert passes[-1] == 1.0


def test_sets_of_tasks_are_in_the_order_of_their_making(loop):
    async def main():
        tasks = [loop.create_task(asyncio.sleep(0)) for _ in range(50)]
        assert all(isinstance(t, SimTask) for t in tasks)
        assert [hash(t) for t in tasks] == sorted(hash(t) for t in tasks)
        await asyncio.wait(set(tasks))

    with deterministic():
        asyncio.set_event_loop(None)
        loop.set_task_factory(lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options))
        loop.run_until_complete(main())
