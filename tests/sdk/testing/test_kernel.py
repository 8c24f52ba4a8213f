"""The fake kernel: what a test sees of a program."""

import asyncio

import pytest

from sdk import DeviceLost, Errno, InvalidArgument, TooLong, kv, process, rusage, spawn
from sdk.abi import calls
from sdk.abi.errors import NotSupported, SyscallError
from sdk.abi.table import TABLE
from sdk.abi.trap import trap
from sdk.abi.values import Fd
from sdk.testing import FakeKernel, run_lip
from sdk.testing.process import Process


async def double(n: int, deep: int = 0) -> int:
    """A program that may start itself."""
    if deep:
        child = await spawn(".", n=n, deep=deep - 1)
        return int((await child.wait()).result)
    return 2 * n


def test_there_is_a_method_for_every_call() -> None:
    methods = {name.removeprefix("sys_") for name in dir(Process) if name.startswith("sys_")}
    assert methods == {entry.name for entry in TABLE.values()}


async def test_run_lip_returns_what_main_returns() -> None:
    assert await run_lip(double, 4) == 8
    assert await run_lip(double, n=4, deep=2) == 8


async def test_run_lip_lets_exceptions_through() -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await run_lip(fail)


async def test_the_door_closes_with_the_kernel() -> None:
    async with FakeKernel():
        await rusage()
    with pytest.raises(NotSupported):
        await rusage()


async def test_two_kernels_share_nothing() -> None:
    async def make() -> list[str]:
        async with FakeKernel():
            await (await kv.create("/mine")).close()
            await asyncio.sleep(0)
            return [entry.name for entry in await kv.readdir()]

    assert list(await asyncio.gather(make(), make())) == [["mine"], ["mine"]]


async def test_replies_come_in_the_order_of_the_calls() -> None:
    async with FakeKernel(replies=["one", "two"]), await kv.prompt("x") as file:
        assert await file.text() == "one"
        assert "".join([c.text async for c in file.stream()]) == "two"
        with pytest.raises(AssertionError, match="replies"):
            await file.text()


async def test_fail_strikes_once() -> None:
    async with FakeKernel() as kernel, await kv.prompt("x") as file:
        kernel.fail("generate", Errno.EIO)
        with pytest.raises(DeviceLost):
            await file.text()
        assert await file.text(max_tokens=2, ignore_eos=True)


async def test_arguments_are_checked_as_the_kernel_checks_them() -> None:
    async with FakeKernel(max_model_len=8):
        with pytest.raises(InvalidArgument, match="fd"):
            await trap(calls.Close(fd="three"))  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="seconds"):
            await trap(calls.Sleep(seconds=-1.0))
        with pytest.raises(TooLong):
            await kv.prompt("123456789")
        async with await kv.prompt("12345678") as full:
            assert await full.text() == ""


async def test_calls_are_noted_and_counted() -> None:
    async with FakeKernel() as kernel:
        async with await kv.prompt("abc") as file:
            await file.generate(max_tokens=2, ignore_eos=True)
        usage = await rusage()
        assert (usage.n_prompt_tokens, usage.n_generated_tokens) == (3, 2)
        assert usage.n_syscalls == len(kernel.calls) == 6
        assert kernel.calls[1] == calls.Create()


async def test_other_threads_run_while_the_model_does() -> None:
    async with FakeKernel():
        order: list[int] = []

        async def write(i: int) -> None:
            async with await kv.create() as file:
                for _ in range(2):
                    await file.append("x")
                    order.append(i)

        await asyncio.gather(write(0), write(1))
        assert order == [0, 1, 0, 1]


async def test_handles_of_one_process_mean_nothing_to_another() -> None:
    async def peek(fd: int) -> str:
        try:
            await trap(calls.Tokens(fd=Fd(fd)))
        except SyscallError as e:
            return str(e.errno)
        return "read"

    async with FakeKernel(programs={"peek": peek}), await kv.prompt("secret") as file:
        child = await spawn("peek", fd=file.fd)
        assert (await child.wait()).result == b'"EBADF"'


async def test_pins_are_granted_and_end_as_they_should() -> None:
    async def main() -> list[tuple[int, float | None]]:
        seen = []

        async def look() -> None:
            stat = await kv.stat("/a")
            seen.append((stat.n_pinned_pages, stat.pinned_until_s))

        file = await kv.prompt("twenty characters...", "/a")
        await file.pin()
        await look()
        await file.unpin()
        await look()
        done = await file.pin(5.0)
        assert (done.n_pages, done.outcome) == (2, "accepted")
        await file.close()
        await look()
        await process.sleep(6.0)
        await look()
        assert (await (await kv.open("/a")).willneed()).outcome == "accepted"
        return seen

    (first, second, third, last) = await run_lip(main)
    assert (first, second, last) == ((2, None), (0, None), (0, None))
    assert third[0] == 2
    assert third[1] is not None


async def test_a_pin_does_not_shorten_what_a_closed_handle_has_left() -> None:
    async def main() -> list[float | None]:
        await (await kv.prompt("twenty characters...", "/a")).close()
        seen = []
        for ttl in (60.0, 5.0, None):
            async with await kv.open("/a") as file:
                await file.pin(ttl)
            seen.append((await kv.stat("/a")).pinned_until_s)
        return seen

    first, *others = await run_lip(main)
    assert first is not None
    assert others == [first, first]
