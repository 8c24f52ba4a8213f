"""Threads of programs: adopted, limited, and ended whatever they do. More in test_process.py and test_guard.py."""

import asyncio
import gc

from kernel.process import KILLED
from kernel.stepper import DEATH_THROES, N_THREADS_MAX
from sdk.abi.errors import Killed, QuotaExceeded


async def test_a_program_may_have_only_so_many_threads(house):
    async def main():
        made = []
        try:
            while True:
                made.append(asyncio.create_task(asyncio.sleep(3600)))
        except QuotaExceeded as e:
            error = str(e)
        made[0].cancel()
        await asyncio.wait(made[:1])
        another = asyncio.create_task(asyncio.sleep(0))  # one has ended, so there is room
        await another
        return [len(made), error]

    n, error = await house.value(main)
    assert n == N_THREADS_MAX
    assert "--max-threads" in error


async def test_a_thread_that_refuses_is_told_so_often_and_no_more(house):
    begun, told = [], []

    async def main():
        while True:
            try:
                begun.append(True)
                await asyncio.Event().wait()
            except Killed as e:
                told.append(e)

    p = house.start(main)
    while not begun:  # noqa: ASYNC110
        await asyncio.sleep(0)
    house.kernel.kill(p.pid, "enough")
    assert (await p.wait_exit()).code == KILLED
    del p
    gc.collect()  # what was abandoned is not collected, and so not told again
    assert len(told) == DEATH_THROES


async def test_what_a_refusing_thread_awaits_is_not_told_either(house):
    begun, told = [], []

    async def inner():
        while True:
            try:
                begun.append(True)
                await asyncio.Event().wait()
            except BaseException as e:
                told.append(type(e))

    async def main():
        await inner()

    p = house.start(main)
    while not begun:  # noqa: ASYNC110
        await asyncio.sleep(0)
    house.kernel.kill(p.pid, "enough")
    assert (await p.wait_exit()).code == KILLED
    gc.collect()
    assert told == [Killed] * DEATH_THROES


async def test_a_task_that_is_no_coroutine(house):
    async def main():
        try:
            asyncio.get_running_loop().create_task(42)
        except TypeError as e:
            return str(e)

    assert "a coroutine was expected" in await house.value(main)


async def test_time_on_the_stack_is_charged(house):
    async def main():
        sum(range(10_000))

    p = house.start(main)
    await p.wait_exit()
    assert p.cpu_s > 0
