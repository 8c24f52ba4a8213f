"""`file.lock` over the fake kernel: what it asks for, and that a block always gives its lock back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sdk import Busy, Deadlock, Errno, LockMode, TimedOut, kv
from sdk.abi import calls
from sdk.abi.errors import AccessDenied, InvalidArgument
from sdk.testing import FakeKernel


async def test_a_block_holds_the_lock_to_its_end() -> None:
    async with FakeKernel(), await kv.create("/f") as file, await kv.open("/f") as other:
        with pytest.raises(ValueError, match="an error of the program"):
            async with file.lock():
                with pytest.raises(TimedOut):
                    async with other.lock(timeout=0):
                        pass
                with pytest.raises(Busy):
                    await other.append("a")
                await file.append("a")
                raise ValueError("an error of the program")
        async with other.lock(timeout=0):
            await other.append("b")


async def test_readers_share_and_the_writer_comes_when_they_have_gone() -> None:
    async with FakeKernel(), await kv.create("/f") as file, await kv.open("/f", "r") as reader:

        async def write() -> str:
            async with file.lock(timeout=5):
                return await file.read_text()

        async with reader.lock("shared"), file.lock(LockMode.SHARED, timeout=0):
            pass
        async with reader.lock("shared"):
            writing = asyncio.create_task(write())
            await asyncio.sleep(0)
            assert not writing.done()
        assert await writing == ""
        with pytest.raises(AccessDenied):
            async with reader.lock():
                pass


async def test_a_lock_can_be_converted() -> None:
    async with FakeKernel() as kernel, await kv.create("/f") as file, await kv.open("/f") as other:
        async with file.lock("exclusive") as lock:
            await lock.convert("shared")
            async with other.lock("shared", timeout=0):
                with pytest.raises(TimedOut):
                    await lock.convert("exclusive", timeout=0)
            await lock.convert("exclusive", timeout=0)
        asked = [(c.mode, c.timeout) for c in kernel.calls if isinstance(c, calls.Lock) and c.fd == file.fd]
        assert asked == [("exclusive", None), ("shared", None), ("exclusive", 0), ("exclusive", 0)]


async def test_a_file_may_be_closed_in_the_block() -> None:
    async with FakeKernel(), await kv.create("/f") as file:
        async with file.lock():
            await file.close()
        async with await kv.open("/f") as again, again.lock(timeout=0):
            pass


async def test_a_deadlock_is_an_error_of_its_own() -> None:
    async with FakeKernel() as kernel, await kv.create("/f") as file:
        kernel.fail("lock", Errno.EDEADLK)
        with pytest.raises(Deadlock):
            async with file.lock():
                pass


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, word: f.lock(word).__aenter__(), "shared, exclusive"),
        (lambda f, word: f.dup(word), "r, w"),
        (lambda f, word: f.extract((0, 1), positions=word), "keep, pack"),
        (lambda f, word: f.splice(0, 1, positions=word), "keep, pack"),
        (lambda f, word: kv.merge(f, positions=word), "keep, pack"),
        (lambda f, word: kv.open("/f", word), "r, w"),
    ],
)
async def test_a_wrong_word_is_told_which_there_are(call: Callable[[Any, Any], Awaitable[Any]], words: str) -> None:
    async with FakeKernel(), await kv.create("/f") as file:
        with pytest.raises(InvalidArgument, match=f"'append' is none of: {words}"):
            await call(file, "append")
