"""Locks of real programs. The null worker computes for them; nobody here waits longer than a few milliseconds."""

import asyncio
import contextlib

import pytest

import sdk
from sdk import Deadlock, TimedOut, kv
from sdk.abi.errors import AccessDenied, BadFile, Busy

SLEEP_S = 3600.0


async def hold(path: str, mode: str = "exclusive") -> None:
    """Lock a file and keep it."""
    async with await kv.open(path) as file, file.lock(mode):
        await sdk.channel.Channel("held").send(path)
        await sdk.process.sleep(SLEEP_S)


async def held() -> None:
    await sdk.channel.Channel("held").recv()


async def make(path: str = "/f") -> str:
    async with await kv.create(path) as file:
        await file.append([1, 2, 3])
    return path


async def clean(*paths: str) -> None:
    for path in paths:
        await kv.unlink(path)


async def blocked(house, *processes):
    """Until each of these waits for a lock."""
    await house.until(lambda: all(p.waiting and "lock" in p.waits_for() for p in processes))


async def test_two_programs_take_turns(house):
    async def writer(n: int) -> list[int]:
        async with await kv.open("/f") as file, file.lock():
            before = len(await file.tokens())
            await file.append([n] * 3)
            await file.generate(max_tokens=4, ignore_eos=True)
            assert len(await file.tokens()) == before + 7, "nobody else has written"
            return (await file.tokens())[before:]

    await house.value(make)
    programs = [house.start(writer, n=n) for n in range(5, 13)]
    codes = [(await p.wait_exit()).code for p in programs]
    assert codes == [0] * 8
    await house.value(lambda: clean("/f"))


async def test_readers_share_and_a_writer_waits_for_them(house):
    await house.value(make)
    readers = [house.start(hold, path="/f", mode="shared") for _ in range(3)]
    for _ in readers:
        await house.value(held)

    async def write() -> str:
        async with await kv.open("/f") as file, file.lock(timeout=None):
            return "written"

    writer = house.start(write)
    await blocked(house, writer)
    for reader in readers:
        house.kernel.kill(reader.pid, "the test said so")
    assert (await writer.wait_exit()).code == 0
    await house.value(lambda: clean("/f"))


async def test_ps_says_what_a_process_waits_for(house):
    await house.value(make)
    holder = house.start(hold, path="/f")
    await house.value(held)
    waiter = house.start(hold, path="/f", mode="shared")
    await blocked(house, waiter)
    (line,) = [p.wait for p in house.kernel.ps() if p.pid == waiter.pid]
    assert line == f"lock fd 3, held by process {holder.pid} (exclusive)"
    house.kernel.kill(holder.pid, "enough")
    await house.value(held)
    house.kernel.kill(waiter.pid, "enough")
    await house.value(lambda: clean("/f"))


async def test_the_end_of_a_holder_lets_the_next_one_in(house):
    await house.value(make)
    holder = house.start(hold, path="/f")
    await house.value(held)
    waiter = house.start(hold, path="/f")
    await blocked(house, waiter)
    house.kernel.kill(holder.pid, "the test said so")
    await house.value(held)
    assert (await holder.wait_exit()).code == 137
    house.kernel.kill(waiter.pid, "enough")
    await waiter.wait_exit()
    await house.value(lambda: clean("/f"))


async def test_a_killed_waiter_leaves_the_queue(house):
    await house.value(make)
    reader = house.start(hold, path="/f", mode="shared")
    await house.value(held)
    writer = house.start(hold, path="/f")
    await blocked(house, writer)
    late = house.start(hold, path="/f", mode="shared")
    await blocked(house, late)
    house.kernel.kill(writer.pid, "the test said so")
    await house.value(held)
    for process in (reader, late):
        house.kernel.kill(process.pid, "enough")
        await process.wait_exit()
    await house.value(lambda: clean("/f"))
    assert house.kernel.fs.locks.files == {}


async def test_a_killed_process_that_was_just_let_in_lets_the_next_one_in(house):
    await house.value(make)
    holder = house.start(hold, path="/f")
    await house.value(held)
    first = house.start(hold, path="/f")
    await blocked(house, first)
    second = house.start(hold, path="/f")
    await blocked(house, second)
    (handle,) = [f for f in house.kernel.fs.open_files if f.pid == holder.pid]
    for ticket in house.kernel.fs.unlock(handle):
        ticket.waiter.answer()
    house.kernel.kill(first.pid, "before it has seen that it has the lock")
    await house.value(held)
    for process in (holder, second):
        house.kernel.kill(process.pid, "enough")
        await process.wait_exit()
    await house.value(lambda: clean("/f"))


async def test_timeouts(house):
    async def impatient() -> list[str]:
        errors = []
        async with await kv.open("/f") as file:
            for timeout in (0, 0.01):
                try:
                    async with file.lock(timeout=timeout):
                        pass
                except TimedOut as e:
                    errors.append(e.detail)
        return errors

    await house.value(make)
    holder = house.start(hold, path="/f")
    await house.value(held)
    assert await house.value(impatient) == [
        f"this file is locked by process {holder.pid} (exclusive)",
        f"this file was locked for 0.01 s by process {holder.pid} (exclusive)",
    ]
    house.kernel.kill(holder.pid, "enough")
    await holder.wait_exit()
    assert await house.value(impatient) == []
    await house.value(lambda: clean("/f"))


async def test_who_waits_no_longer_is_in_nobodys_way(house):
    """A writer that has given up, and still has its handle, keeps no reader waiting."""

    async def impatient() -> bool:
        async with await kv.open("/f") as late, await kv.open("/f") as reader:
            with contextlib.suppress(TimedOut):
                async with late.lock(timeout=0.01):
                    return False
            async with reader.lock("shared", timeout=0):
                return True

    await house.value(make)
    holder = house.start(hold, path="/f", mode="shared")
    await house.value(held)
    assert await house.value(impatient)
    house.kernel.kill(holder.pid, "enough")
    await holder.wait_exit()
    await house.value(lambda: clean("/f"))


async def test_a_cancelled_wait_is_no_lock(house):
    async def impatient() -> bool:
        async with await kv.open("/f") as file, await kv.open("/f") as other:
            async with other.lock():
                waiting = asyncio.create_task(file.lock().__aenter__())
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
            async with file.lock("shared", timeout=0), other.lock("shared", timeout=0):
                return waiting.cancelled()

    await house.value(make)
    assert await house.value(impatient)
    await house.value(lambda: clean("/f"))


# --- deadlocks ---


@pytest.mark.parametrize("n", [2, 3])
async def test_a_circle_of_programs_is_broken(house, n):
    """Each locks a file and then the next one's; the youngest is refused, gives its lock back and ends last."""

    async def locker(i: int, n: int) -> bool:
        me, arrivals = sdk.channel.Channel(f"go{i}"), sdk.channel.Channel("arrived")
        async with await kv.open(f"/f{i}") as mine, await kv.open(f"/f{(i + 1) % n}") as next_:
            try:
                async with mine.lock():
                    await arrivals.send(i)
                    await me.recv()
                    async with next_.lock():
                        return False
            except Deadlock:
                pass
        async with await kv.open(f"/f{i}") as mine, mine.lock():
            return True

    async def referee(n: int) -> None:
        for _ in range(n):
            await sdk.channel.Channel("arrived").recv()
        for i in range(n):
            await sdk.channel.Channel(f"go{i}").send(None)

    for i in range(n):
        await house.value(make, path=f"/f{i}")
    lockers = [house.start(locker, i=i, n=n) for i in range(n)]
    await house.value(referee, n=n)
    results = [(await p.wait_exit()).result for p in lockers]
    assert results == [b"false"] * (n - 1) + [b"true"], "the youngest had to give way"
    await house.value(lambda: clean(*(f"/f{i}" for i in range(n))))


async def test_a_circle_through_threads_that_their_parents_wait_for(house):
    """Each program has a lock and waits for a task of its own, which wants what the other program has."""

    async def gatherer(mine: str, other: str) -> str:
        async def child() -> None:
            async with await kv.open(other) as file, file.lock():
                pass

        try:
            async with await kv.open(mine) as file, file.lock():
                await sdk.channel.Channel("arrived").send(mine)
                await sdk.channel.Channel(f"go{mine}").recv()
                await asyncio.gather(child())
        except Deadlock:
            return "gave way"
        return "had both"

    async def referee() -> None:
        for _ in range(2):
            await sdk.channel.Channel("arrived").recv()
        for path in ("/f", "/g"):
            await sdk.channel.Channel(f"go{path}").send(None)

    for path in ("/f", "/g"):
        await house.value(make, path=path)
    both = [house.start(gatherer, mine="/f", other="/g"), house.start(gatherer, mine="/g", other="/f")]
    await house.value(referee)
    assert [(await p.wait_exit()).result for p in both] == [b'"had both"', b'"gave way"']
    await house.value(lambda: clean("/f", "/g"))


@pytest.mark.parametrize("order", ["wait first", "lock first"])
async def test_a_program_that_waits_for_a_child_which_wants_its_lock(house, order):
    """The child is told, whichever of the two waited first; and is let in once its parent has given up."""

    async def main(order: str = "", child: bool = False) -> list[str]:
        arrived = sdk.channel.Channel("arrived")
        async with await kv.open("/f") as file:
            if child:
                await arrived.send(None)
                try:
                    async with file.lock():
                        return ["locked"]
                except Deadlock as e:
                    return [e.detail]
            async with file.lock():
                copy = await sdk.process.spawn(".", child=True)
                if order == "lock first":
                    await arrived.recv()
                (refused,) = await asyncio.gather(copy.wait())
                second = await sdk.process.spawn(".", child=True)
                waiting = asyncio.create_task(second.wait())
                await asyncio.sleep(0)
                waiting.cancel()
            let_in = await second.wait()
        return [refused.result.decode(), let_in.result.decode()]

    await house.value(make)
    refused, let_in = await house.value(main, order=order)
    assert "wait for locks and ends of one another" in refused
    assert let_in == '["locked"]'
    assert house.kernel.fs.locks.joins == {}
    await house.value(lambda: clean("/f"))


async def test_a_child_may_wait_for_its_parents_lock(house):
    async def main() -> int:
        async def child() -> int:
            async with await kv.open("/f") as file, file.lock():
                return len(await file.tokens())

        async with await kv.open("/f") as file:
            async with file.lock():
                task = asyncio.create_task(child())
                await asyncio.sleep(0)
                await file.append([7])
            return await task

    await house.value(make)
    assert await house.value(main) == 4
    await house.value(lambda: clean("/f"))


async def test_two_that_both_go_up(house):
    async def up(path: str) -> str:
        async with await kv.open(path) as file, file.lock("shared") as lock:
            await sdk.channel.Channel("shared").send(None)
            await sdk.channel.Channel("go").recv()
            try:
                await lock.convert("exclusive")
            except Deadlock:
                return "gave way"
            await file.append([7])
            return "went up"

    async def referee() -> None:
        for _ in range(2):
            await sdk.channel.Channel("shared").recv()
        for _ in range(2):
            await sdk.channel.Channel("go").send(None)

    await house.value(make)
    both = [house.start(up, path="/f") for _ in range(2)]
    await house.value(referee)
    assert [(await p.wait_exit()).result for p in both] == [b'"went up"', b'"gave way"']
    await house.value(lambda: clean("/f"))


async def test_threads_of_one_program_take_turns_with_handles_of_their_own(house):
    async def gather() -> int:
        async def one() -> int:
            async with await kv.open("/f") as file, file.lock():
                before = len(await file.tokens())
                await file.append([5, 5])
                return len(await file.tokens()) - before

        return sum(await asyncio.gather(*(one() for _ in range(10))))

    await house.value(make)
    assert await house.value(gather) == 20
    await house.value(lambda: clean("/f"))


# --- what a lock belongs to ---


async def test_closing_a_handle_releases_it_and_refuses_its_wait(house):
    async def main() -> list[str]:
        seen = []
        async with await kv.open("/f") as holder:
            waiter = await kv.open("/f")
            async with holder.lock():
                task = asyncio.create_task(waiter.lock().__aenter__())
                await asyncio.sleep(0)
                await waiter.close()
                try:
                    await task
                except BadFile as e:
                    seen.append(e.detail)
                await holder.close()
                async with await kv.open("/f") as other, other.lock(timeout=0):
                    seen.append("free")
        return seen

    await house.value(make)
    assert await house.value(main) == ["this file was closed during the wait", "free"]
    await house.value(lambda: clean("/f"))


async def test_one_thread_at_a_time_waits_with_a_handle(house):
    async def main() -> str:
        async with await kv.open("/f") as holder, await kv.open("/f") as file, holder.lock():
            task = asyncio.create_task(file.lock().__aenter__())
            await asyncio.sleep(0)
            try:
                async with file.lock():
                    return "locked"
            except Busy as e:
                task.cancel()
                return e.detail

    await house.value(make)
    assert "a handle of its own" in await house.value(main)
    await house.value(lambda: clean("/f"))


async def test_locks_follow_the_file_and_forks_have_none(house):
    async def main() -> list[str]:
        seen = []
        async with await kv.open("/f") as file, file.lock():
            await kv.rename("/f", "/g")
            async with await kv.open("/g") as other, await file.fork("/f") as fork:
                for f in (other, fork):
                    try:
                        async with f.lock(timeout=0):
                            seen.append("free")
                    except TimedOut:
                        seen.append("locked")
                await kv.unlink("/g")
                try:
                    async with other.lock(timeout=0):
                        seen.append("free")
                except TimedOut:
                    seen.append("locked")
        return seen

    await house.value(make)
    assert await house.value(main) == ["locked", "free", "locked"]
    await house.value(lambda: clean("/f"))


async def test_who_writes_a_file_that_another_has_locked_is_told_who(house):
    async def write() -> list[str]:
        errors = []
        async with await kv.open("/f") as file:
            for call in (
                lambda: file.append([1]),
                lambda: file.generate(max_tokens=2),
                lambda: file.stream([1], max_tokens=2).__anext__(),
                lambda: file.truncate(1),
            ):
                try:
                    await call()
                except Busy as e:
                    errors.append(e.detail)
            assert await file.tokens() == [1, 2, 3]
            assert (await file.next()).top_tokens, "reading is free"
            async with await file.fork() as fork:
                await fork.append([4])
        return errors

    await house.value(make)
    holder = house.start(hold, path="/f")
    await house.value(held)
    why = f"this file is locked by process {holder.pid} (exclusive): wait for it with lock, or fork the file"
    assert await house.value(write) == [why] * 4
    house.kernel.kill(holder.pid, "enough")
    await holder.wait_exit()
    await house.value(lambda: clean("/f"))


async def test_an_exclusive_lock_takes_a_handle_that_can_write(house):
    async def main() -> str:
        async with await kv.open("/f", "r") as file:
            async with file.lock("shared"):
                pass
            try:
                async with file.lock():
                    return "locked"
            except AccessDenied as e:
                return e.detail

    await house.value(make)
    assert "mode 'w'" in await house.value(main)
    await house.value(lambda: clean("/f"))
