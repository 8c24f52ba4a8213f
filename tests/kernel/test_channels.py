import asyncio

import pytest

import sdk
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


class Reader:
    """Somebody who waits."""

    def __init__(self):
        self.gone = False
        self.got = None

    def complete(self, result, give_back):
        self.got = result
        self.give_back = give_back


def test_readers_wait_in_order_and_the_gone_are_passed_over():
    channels = Channels(n_messages_max=3, n_channels_max=2)
    first, second, third = Reader(), Reader(), Reader()
    for reader in (first, second, third):
        channels.wait("a", reader)
    second.gone = True
    channels.send("a", "x")
    channels.send("a", "y")
    assert (first.got, second.got, third.got) == ("x", None, "y")
    assert channels.take("a") is None


def test_a_message_that_was_not_seen_goes_to_the_next_reader_or_is_the_first_again():
    channels = Channels(n_messages_max=1, n_channels_max=1)
    first, second = Reader(), Reader()
    for reader in (first, second):
        channels.wait("a", reader)
    channels.send("a", "x")
    first.give_back("x")
    assert second.got == "x"
    channels.send("a", "y")
    second.give_back("x")
    assert list(channels.take("a")) == ["x", "y"], "one more than there is room for is better than one lost"


async def test_a_message_is_not_lost_with_a_reader_that_was_late(house):
    """The reader's time is up in the very moment in which the message waits for its turn."""

    async def main():
        channel = sdk.Channel("c")
        reader = asyncio.create_task(channel.recv())
        await asyncio.sleep(0)
        await channel.send("x")
        reader.cancel()
        await asyncio.wait([reader])
        return [reader.cancelled(), await channel.recv(timeout=1)]

    assert await house.value(main) == [True, "x"]


async def test_too_many_channels_leave_no_reader_behind(house):
    house.kernel.channels.n_channels_max = 1

    async def main():
        await sdk.Channel("a").send(1)
        try:
            await sdk.Channel("b").recv()
        except QuotaExceeded as e:
            return e.errno

    assert await house.value(main) == "EDQUOT"


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
