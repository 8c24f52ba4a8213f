import asyncio

import pytest

from kernel.channels import Channels
from sdk import process, syscalls
from sdk.abi.errors import QuotaExceeded, TimedOut


async def test_messages_wait_in_order_and_the_channel_is_forgotten():
    channels = Channels(n_messages_max=3, n_channels_max=2)
    for i in range(3):
        channels.send("a", i)
    with pytest.raises(QuotaExceeded, match="holds 3 messages"):
        channels.send("a", 3)
    channels.send("b", 0)
    with pytest.raises(QuotaExceeded, match="2 channels"):
        channels.send("c", 0)
    messages = channels.take("a")
    assert [messages.popleft() for _ in range(3)] == [0, 1, 2]
    channels.taken("a")
    channels.send("c", 0)


async def test_readers_wait_in_order_and_the_gone_are_passed_over():
    channels = Channels(n_messages_max=3, n_channels_max=2)
    first, second, third = (asyncio.get_running_loop().create_future() for _ in range(3))
    for reader in (first, second, third):
        channels.wait("a", reader)
    second.cancel()
    channels.send("a", "x")
    channels.send("a", "y")
    assert (first.result(), third.result()) == ("x", "y")
    assert channels.take("a") is None


async def test_between_programs(house):
    async def main():
        async def echo() -> None:
            while True:
                await syscalls.send(channel="back", message=await syscalls.recv(channel="there"))

        task = asyncio.create_task(echo())
        got = []
        for message in (1, "two", {"three": [3]}):
            await syscalls.send(channel="there", message=message)
            got.append(await syscalls.recv(channel="back"))
        task.cancel()
        try:
            await syscalls.recv(channel="nothing", timeout=0)
        except TimedOut as e:
            got.append(e.errno)
        try:
            await syscalls.recv(channel="nothing", timeout=0.001)
        except TimedOut as e:
            got.append(e.errno)
        return [*got, await process.getpid() > 0]

    assert await house.value(main) == [1, "two", {"three": [3]}, "ETIMEDOUT", "ETIMEDOUT", True]
