"""What of a stack is the author's."""

import asyncio
import inspect

import pytest

from kernel.backtrace import awaits_at, one_line, own_frames
from kvfs.access import OPERATOR
from kvfs.fs import Kvfs
from sdk.abi.errors import FileNotFound


async def wait_for(gate: asyncio.Event):
    await asyncio.wait_for(gate.wait(), 60)


async def outer(gate: asyncio.Event):
    await wait_for(gate)


async def test_the_innermost_line_of_the_author():
    gate = asyncio.Event()
    coroutine = outer(gate)
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    _, line = inspect.getsourcelines(wait_for)
    assert awaits_at(coroutine) == f"test_backtrace.py:{line + 1}"
    gate.set()
    await task
    assert awaits_at(coroutine) == "", "it is over"


async def test_through_a_generator():
    async def numbers():
        await asyncio.Event().wait()
        yield 1

    async def read():
        async for _ in numbers():
            pass

    coroutine = read()
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    assert awaits_at(coroutine).startswith("test_backtrace.py:")
    task.cancel()
    await asyncio.wait([task])


def test_one_line():
    assert one_line(KeyError("x")) == "KeyError: 'x'"
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(FileNotFound("no /x")) == "ENOENT: no /x"
    assert one_line(ExceptionGroup("g", [KeyError("x")])) == "KeyError: 'x'"
    assert one_line(ExceptionGroup("g", [KeyError("x"), KeyError("y")])).startswith("ExceptionGroup: g")


def test_own_frames_are_in_order():
    def f():
        raise ValueError("x")

    try:
        f()
    except ValueError as e:
        lines = own_frames(e).splitlines()
    assert [line.split(", in ")[1] for line in lines if ", in " in line] == ["test_own_frames_are_in_order", "f"]


def test_where_the_file_system_refuses_is_no_line_of_the_author():
    with pytest.raises(FileNotFound) as caught:
        Kvfs().open("/nix", "r", who=OPERATOR, now=0.0)
    assert own_frames(caught.value).count(", in ") == 1
