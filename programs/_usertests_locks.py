"""The tests of `programs/usertests.py` on locks. Threads with handles of their own stand for programs."""

import asyncio
from contextlib import AsyncExitStack

from programs._usertests import Tally, sample_file, test
from sdk import Deadlock, Errno, KVFile, LockMode, kv
from sdk.abi import calls
from sdk.abi.values import Fd

NO_FD = Fd(2**31)


async def opened(path: str, n: int, stack: AsyncExitStack) -> list[KVFile]:
    return [await stack.enter_async_context(await kv.open(path)) for _ in range(n)]


@test
async def locks_keep_others_from_writing(t: Tally) -> None:
    path = f"{t.home}/file"
    async with await sample_file(path) as mine, await kv.open(path) as other, await kv.open(path, "r") as reader:
        async with mine.lock():
            await t.refuses(
                Errno.EBUSY,
                calls.Pred(fd=other.fd, tokens=[1]),
                calls.Generate(fd=other.fd, prompt=[1]),
                calls.Stream(fd=other.fd, prompt=[1]),
                calls.Truncate(fd=other.fd, n_tokens=0),
            )
            await t.refuses(Errno.ETIMEDOUT, calls.Lock(fd=other.fd, timeout=0))
            late = calls.Lock(fd=reader.fd, mode=LockMode.SHARED, timeout=0.01)
            await asyncio.create_task(t.refuses(Errno.ETIMEDOUT, late))
            assert (await mine.next()).top_tokens == (await reader.next()).top_tokens, "reading is free"
            await mine.append([1])
        await other.truncate(0)
        await t.refuses(Errno.EACCES, calls.Lock(fd=reader.fd))
        await t.refuses(Errno.EBADF, calls.Lock(fd=NO_FD), calls.Unlock(fd=NO_FD))
        await t.refuses(Errno.EINVAL, calls.Lock(fd=mine.fd, timeout=-1.0))
    await kv.unlink(path)


@test
async def readers_share_a_lock_and_writers_take_turns(t: Tally) -> None:
    path = f"{t.home}/file"
    await (await sample_file(path)).close()
    n_writing = n_most = 0

    async def write(file: KVFile) -> None:
        nonlocal n_writing, n_most
        async with file.lock():
            n_writing += 1
            n_most = max(n_most, n_writing)
            await file.append([1])
            n_writing -= 1

    async with AsyncExitStack() as stack:
        first, second, *writers = await opened(path, 6, stack)
        async with first.lock("shared"), second.lock("shared", timeout=0):
            tasks = [asyncio.create_task(write(file)) for file in writers]
            await asyncio.sleep(0)
            await t.refuses(Errno.EBUSY, calls.Lock(fd=writers[0].fd))
        await asyncio.gather(*tasks)
        assert n_most == 1
        assert (await first.tokens())[-4:] == [1] * 4
    await kv.unlink(path)


@test
async def a_lock_goes_with_its_handle(t: Tally) -> None:
    path = f"{t.home}/file"
    await (await sample_file(path)).close()
    async with AsyncExitStack() as stack:
        holder, waiter, other = await opened(path, 3, stack)
        async with holder.lock():
            waiting = asyncio.create_task(t.refuses(Errno.EBADF, calls.Lock(fd=waiter.fd)))
            await asyncio.sleep(0)
            await waiter.close()
            await waiting
            await kv.rename(path, f"{path}-2")
            async with await holder.fork(path) as fork, fork.lock(timeout=0):
                await t.refuses(Errno.ETIMEDOUT, calls.Lock(fd=other.fd, timeout=0))
            await holder.close()
            async with other.lock(timeout=0):
                pass
    await kv.unlink(path)
    await kv.unlink(f"{path}-2")


@test
async def a_deadlock_is_broken(t: Tally) -> None:
    path, n_refused, both = f"{t.home}/file", 0, asyncio.Barrier(2)
    await (await sample_file(path)).close()

    async def go_up(file: KVFile) -> None:
        nonlocal n_refused
        async with file.lock("shared") as lock:
            await both.wait()
            try:
                await lock.convert("exclusive")
            except Deadlock:
                n_refused += 1

    async with AsyncExitStack() as stack:
        await asyncio.gather(*(go_up(file) for file in await opened(path, 2, stack)))
        assert n_refused == 1
        (file,) = await opened(path, 1, stack)
        async with file.lock():
            (other,) = await opened(path, 1, stack)
            await t.refuses(Errno.EDEADLK, calls.Lock(fd=other.fd))
    await kv.unlink(path)
