"""`sdk.process` over the fake kernel."""

import asyncio

import pytest

import sdk
from sdk import (
    AccessDenied,
    BrokenPipe,
    Channel,
    FileNotFound,
    InvalidArgument,
    NoSuchProcess,
    NotAChild,
    QuotaExceeded,
    emit,
    getpid,
    kv,
    now,
    process,
    random,
    rusage,
    sleep,
    spawn,
)
from sdk.syscalls import wait
from sdk.testing import FakeKernel
from sdk.testing.process import Program


async def double(n: int) -> int:
    await emit("a child's word")
    await Channel("done").send(n)
    return 2 * n


async def leave(code: int = 3) -> None:
    await sdk.exit(code)


async def fail() -> None:
    raise KeyError("x")


async def linger() -> None:
    await asyncio.Event().wait()


PROGRAMS: dict[str, Program] = {"double": double, "leave": leave, "fail": fail, "linger": linger}


async def test_a_child_returns_json() -> None:
    async with FakeKernel(programs=PROGRAMS) as kernel:
        child = await spawn("double", n=21)
        status = await child.wait()
        assert (status.pid, status.code, status.result) == (child.pid, 0, b"42")
        assert kernel.events == [], "children have no client"
        assert await Channel("done").recv() == 21
        with pytest.raises(NotAChild):
            await child.wait()


async def test_how_children_end() -> None:
    async with FakeKernel(programs=PROGRAMS):
        assert (await (await spawn("leave", code=5)).wait()).code == 5
        failed = await (await spawn("fail")).wait()
        assert (failed.code, failed.error) == (1, "KeyError: 'x'")
        child = await spawn("linger")
        await child.kill()
        assert (await child.wait()).code == 137
        with pytest.raises(NoSuchProcess):
            await child.kill()


async def test_wait_takes_whoever_ends_first() -> None:
    async with FakeKernel(programs=PROGRAMS):
        await spawn("linger")
        quick = await spawn("double", n=1)
        assert (await wait()).pid == quick.pid


async def test_spawn_checks_its_arguments() -> None:
    async with FakeKernel(programs=PROGRAMS):
        with pytest.raises(FileNotFound):
            await spawn("nothing")
        with pytest.raises(InvalidArgument):
            await spawn("double", m=1)


async def test_children_end_with_their_parent() -> None:
    async with FakeKernel(programs=PROGRAMS) as kernel:
        await spawn("linger")
        await spawn("linger", detach=True)
        await asyncio.sleep(0)
        assert len(kernel.processes) == 3
    assert kernel.processes == {}


async def test_a_detached_child_is_not_waited_for() -> None:
    async with FakeKernel(programs=PROGRAMS):
        await spawn("double", n=1, detach=True)
        with pytest.raises(NotAChild):
            await wait()


async def test_children_have_no_client_to_ask() -> None:
    asked: list[str] = []

    async def ask() -> None:
        with pytest.raises(BrokenPipe):
            asked.append(await sdk.input())

    async with FakeKernel(programs={"ask": ask}, inputs=["for the parent"]):
        assert (await (await spawn("ask")).wait()).code == 0
        assert await sdk.input() == "for the parent"
    assert asked == []


async def test_limits_and_priority() -> None:
    async def child() -> None:
        async with await kv.create() as file:
            await file.append([1] * 6)

    async with FakeKernel(programs={"child": child}), await kv.create() as file:
        await file.append([1, 2, 3])
        assert await process.limits(tokens=12, pages=4) == process.Limits(tokens=12, pages=4)
        assert (await (await spawn("child")).wait()).code == 0
        assert "EDQUOT" in (await (await spawn("child")).wait()).error, "a child's tokens are its parent's"
        with pytest.raises(QuotaExceeded):
            await file.append([1, 2, 3, 4])
        with pytest.raises(QuotaExceeded):
            await file.generate([1, 2], max_tokens=2, ignore_eos=True)
        with pytest.raises(AccessDenied):
            await process.limits(pages=5)
        assert await process.priority(3) == await process.priority() == 3
        assert await process.priority(pid=await getpid()) == 3
        with pytest.raises(AccessDenied):
            await process.priority(-1)


async def test_time_is_the_kernels() -> None:
    async with FakeKernel():
        began = await now()
        await sleep(3600)
        assert await now() - began == 3600
        assert 0 <= await random() < 1
        assert (await rusage(await getpid())).n_syscalls == 6
