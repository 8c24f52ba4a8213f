"""Programs that misbehave end alone, and everything they held comes back."""

import asyncio
import random
import sys

import pytest

from kernel.process import KILLED
from kvfs import fsck
from sdk import kv, syscalls
from sdk.abi.errors import Killed

# --- ways to end --------------------------------------------------------------------------------------------------


async def test_return_value(house):
    async def main(a: int):
        return {"twice": a * 2}

    assert await house.value(main, a=21) == {"twice": 42}


async def test_an_exception_is_one_line_and_the_programs_own_frames(house):
    status = await house.run(
        """
        async def main():
            await helper()

        async def helper():
            raise KeyError("no such thing")
        """
    )
    assert status.code == 1
    assert status.error == "KeyError: 'no such thing'"
    assert "in helper" in status.traceback
    assert "stepper" not in status.traceback
    assert "asyncio" not in status.traceback


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (None, 0), ("bye", 1), (0, 0)])
async def test_sys_exit(house, code, expected):
    async def main():
        sys.exit(code)

    status = await house.run(main)
    assert status.code == expected
    assert status.error == ("bye" if code == "bye" else "")


async def test_keyboard_interrupt(house):
    async def main():
        raise KeyboardInterrupt

    assert (await house.run(main)).code == 130


async def test_exit_from_a_second_thread_ends_the_process(house):
    async def main():
        async def other():
            sys.exit(5)

        asyncio.create_task(other())
        await asyncio.sleep(1000)

    assert (await house.run(main)).code == 5


async def test_the_exit_call_does_not_return(house):
    from sdk import syscalls

    reached = []

    async def main():
        try:
            await syscalls.exit(code=7)
        except Exception:
            reached.append("caught")
        reached.append("after")

    assert (await house.run(main)).code == 7
    assert reached == []


async def test_a_result_that_json_cannot_hold(house):
    async def main():
        return object()

    status = await house.run(main)
    assert status.code == 1
    assert "JSON" in status.error


async def test_killed_while_it_waits(house):
    ended = []

    async def main():
        try:
            await asyncio.sleep(1000)
        except Killed:
            ended.append("saw it")
            raise

    process = house.start(main)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    house.kernel.kill(process.pid, "enough")
    status = await process.wait_exit()
    assert (status.code, status.error) == (KILLED, "enough")
    assert ended == ["saw it"]


async def test_a_program_that_swallows_everything_ends_all_the_same(house):
    async def main():
        while True:
            try:
                await asyncio.sleep(1000)
            except BaseException:
                pass

    process = house.start(main)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    house.kernel.kill(process.pid, "enough")
    assert (await process.wait_exit()).code == KILLED


def test_such_a_program_does_not_keep_the_kernel_from_its_end(tmp_path):
    """Its coroutine would be finalized with the interpreter, and refuse again where nothing can be awaited."""
    import subprocess

    path = tmp_path / "stubborn.py"
    path.write_text(STUBBORN)
    command = [sys.executable, "-m", "kernel", "--backend", "null", "run", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "starting a worker for null")


STUBBORN = """
import asyncio

async def main():
    asyncio.create_task(stay())
    await asyncio.sleep(0)

async def stay():
    while True:
        try:
            await asyncio.sleep(1000)
        except BaseException:
            pass
"""


async def test_left_over_tasks_are_ended(house):
    seen = []

    async def main():
        async def background():
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("ended")

        task = asyncio.create_task(background())
        await asyncio.sleep(0)
        return task.get_name() != ""

    assert await house.value(main) is True
    assert seen == ["ended"]


async def test_calls_that_no_thread_awaits_end_with_the_process(house):
    """A coroutine that a program drives by hand: its task waits for something else, and cannot be told."""

    async def main() -> None:
        async with await kv.create() as file:
            await file.append(range(1, 90))
            for call in (file.extract((1, 30)), syscalls.recv("never")):
                call.send(None)
            await syscalls.sleep(60.0)

    running = house.start(main)
    await house.until(lambda: len(running.waiting) == 3)
    house.kernel.kill(running.pid, "the test wants it")
    await running.wait_exit()
    assert running.waiting == {}
    assert fsck.check(house.kernel.fs, house.kernel.processes) == []


async def test_dying_tasks_cannot_breed(house):
    async def main():
        async def breeder():
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(3):
                    asyncio.create_task(breeder())

        for _ in range(3):
            asyncio.create_task(breeder())
        await asyncio.sleep(0)

    assert (await house.run(main)).code == 0


# --- asyncio works as everywhere ----------------------------------------------------------------------------------


async def test_asyncio_inside_a_program(house):
    async def main():
        async def part(i: int) -> int:
            await asyncio.sleep(0)
            return i

        first = await asyncio.gather(*(part(i) for i in range(3)))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part(i)) for i in range(3)]
        late = False
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            late = True
        queue: asyncio.Queue[int] = asyncio.Queue()
        queue.put_nowait(4)
        return [first, [t.result() for t in tasks], late, await queue.get(), await asyncio.to_thread(len, "abc")]

    assert await house.value(main) == [[0, 1, 2], [0, 1, 2], True, 4, 3]


async def test_a_timeout_takes_a_call_back(house):
    async def main():
        async with await kv.prompt("x") as f:
            try:
                async with asyncio.timeout(0):
                    await f.text(max_tokens=1000)
            except TimeoutError:
                pass
            while True:  # its batch may be in flight still
                try:
                    return await f.text(max_tokens=2) != ""
                except kv.Busy:
                    await asyncio.sleep(0)

    assert await house.value(main) is True


# --- two hundred of them ------------------------------------------------------------------------------------------


async def raises():
    await kv.prompt("some text")
    raise RuntimeError("on purpose")


async def exits():
    await kv.prompt("some text")
    sys.exit(9)


async def swallows():
    while True:
        try:
            f = await kv.prompt("some text")
            await f.text(max_tokens=1000)
        except BaseException:
            await asyncio.sleep(0)


async def leaves_tasks():
    async def forever():
        f = await kv.prompt("some text")
        while True:
            await f.text(max_tokens=5)

    for _ in range(3):
        asyncio.create_task(forever())
    await asyncio.sleep(0)


async def never_closes():
    f = await kv.prompt("a text that takes a few pages, so that there is something to leak")
    forks = [await f.fork() for _ in range(5)]
    await asyncio.gather(*(k.text(max_tokens=3) for k in forks))


async def long_lived():
    f = await kv.prompt("some text")
    while True:
        g = await f.fork()
        async for _ in g.stream(max_tokens=20):
            pass


async def test_two_hundred_programs_that_misbehave(house):
    """Each raises, exits, swallows its cancellation, leaves tasks, never closes, or is killed at some await."""
    dice = random.Random(5)
    kinds = [raises, exits, swallows, leaves_tasks, never_closes, long_lived]
    processes = [house.start(kinds[i % len(kinds)]) for i in range(200)]
    while any(p.status is None for p in processes):
        for _ in range(dice.randrange(20)):
            await asyncio.sleep(0)
        alive = [p for p in processes if p.status is None]
        if alive:
            victim = dice.choice(alive)
            if victim.name in ("swallows", "long_lived"):
                victim.end(KILLED, "killed at random")
    codes = {p.name: p.status.code for p in processes}
    assert codes == {
        "raises": 1,
        "exits": 9,
        "swallows": KILLED,
        "leaves_tasks": 0,
        "never_closes": 0,
        "long_lived": KILLED,
    }
    assert not house.kernel.panicked.done()

    async def still_answers():
        async with await kv.prompt("hello") as f:
            return len(await f.text(max_tokens=4)) > 0

    assert await house.value(still_answers) is True
