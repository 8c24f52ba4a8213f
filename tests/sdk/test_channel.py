"""`sdk.channel` over the fake kernel."""

import asyncio

import pytest

import sdk
from sdk import BrokenPipe, Channel, InvalidArgument, QuotaExceeded, TimedOut, emit
from sdk.testing import Event, FakeKernel


async def test_messages_come_in_order_each_once() -> None:
    async with FakeKernel():
        channel = Channel("c")
        for message in (1, {"two": [2]}, None):
            await channel.send(message)
        assert [await channel.recv() for _ in range(3)] == [1, {"two": [2]}, None]
        with pytest.raises(TimedOut):
            await channel.recv(timeout=0)


async def test_recv_waits_for_send() -> None:
    async with FakeKernel():
        receiver = asyncio.create_task(Channel("c").recv())
        await asyncio.sleep(0)
        await Channel("c").send("late")
        assert await receiver == "late"


async def test_channels_refuse_what_is_not_json_and_too_much() -> None:
    async with FakeKernel():
        channel = Channel("c")
        with pytest.raises(InvalidArgument):
            await channel.send(object())
        with pytest.raises(QuotaExceeded):
            await asyncio.gather(*(channel.send(i) for i in range(2000)))
        assert [await channel.recv() for _ in range(10)] == list(range(10))


async def test_emit_and_input_are_the_clients() -> None:
    async with FakeKernel(inputs=["yes"]) as kernel:
        await emit("text")
        await emit({"n": 1}, stream="debug")
        assert kernel.events == [Event("text"), Event({"n": 1}, "debug")]
        assert await sdk.input("sure? ") == "yes"
        with pytest.raises(BrokenPipe):
            await sdk.input()
