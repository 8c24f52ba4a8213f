import asyncio

import pytest

from kernel.client import Client, Event
from sdk import syscalls
from sdk.abi.errors import BrokenPipe


class Thread:
    """Somebody who waits for the client."""

    gone = False

    def __init__(self):
        self.got = None

    def complete(self, result):
        self.got = ("result", result)

    def fail(self, error):
        self.got = ("error", str(error))


async def test_events_come_in_order_and_end():
    client = Client(interactive=False)
    assert client.emit(Event(data=1))
    assert client.emit(Event(data=2))
    client.end()
    assert [(await client.next()).data, (await client.next()).data, await client.next()] == [1, 2, None]


async def test_a_full_buffer_makes_the_writer_wait():
    client = Client(interactive=False, n_buffered_max=2)
    writer, gone = Thread(), Thread()
    assert client.emit(Event(data=1))
    assert not client.emit(Event(data=2))
    client.wait_for_room(gone)
    client.wait_for_room(writer)
    client.forget(gone)
    assert writer.got is None
    await client.next()
    assert (writer.got, gone.got) == (("result", None), None)


async def test_lines_answer_the_oldest_question():
    client = Client(interactive=True)
    assert not client.answer("nobody asked")
    gone, first, second = Thread(), Thread(), Thread()
    for i, thread in enumerate((gone, first, second)):
        client.ask(f"{i}> ", thread)
    assert [(await client.next()).prompt for _ in range(3)] == ["0> ", "1> ", "2> "]
    gone.gone = True
    assert client.answer("a")
    client.no_more_input()
    assert first.got == ("result", "a")
    assert second.got == ("error", "EPIPE: the client has no more input")
    with pytest.raises(BrokenPipe):
        client.ask("3> ", Thread())


async def test_a_client_that_leaves():
    client = Client(interactive=True, n_buffered_max=1)
    writer, reader = Thread(), Thread()
    client.emit(Event(data=1))
    client.wait_for_room(writer)
    client.ask("> ", reader)
    client.leave()
    assert writer.got == ("result", None)
    assert reader.got == ("error", "EPIPE: the client has no more input")
    with pytest.raises(BrokenPipe, match="left"):
        client.emit(Event(data=2))


async def test_a_program_talks_to_its_client(house):
    async def main():
        name = await syscalls.input(prompt="name? ")
        await syscalls.emit(event={"hello": name}, stream="greeting")
        try:
            await syscalls.input(prompt="more? ")
        except BrokenPipe as e:
            return e.errno

    client = Client(interactive=True)
    process = house.start(main, client)
    assert (await client.next()).prompt == "name? "
    client.answer("Ada")
    event = await client.next()
    assert (event.data, event.stream) == ({"hello": "Ada"}, "greeting")
    assert (await client.next()).prompt == "more? "
    client.no_more_input()
    assert await client.next() is None
    assert (await process.wait_exit()).result == b'"EPIPE"'


async def test_a_slow_client_holds_its_program_back(house):
    sent = []

    async def main():
        for i in range(10):
            sent.append(i)
            await syscalls.emit(event=i)

    client = Client(interactive=False, n_buffered_max=3)
    process = house.start(main, client)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(sent) == 3
    assert [(await client.next()).data for _ in range(10)] == list(range(10))
    assert (await process.wait_exit()).code == 0
