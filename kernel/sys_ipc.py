"""System calls between processes, and between a process and its client."""

import asyncio
from typing import Any

from kernel.client import Event
from kernel.core import Kernel
from kernel.dispatch import handles
from kernel.process import Process
from sdk.abi import calls
from sdk.abi.errors import BrokenPipe, TimedOut
from sdk.abi.trap import Pending


@handles(calls.Send)
def sys_send(kernel: Kernel, process: Process, call: calls.Send) -> None:
    kernel.channels.send(call.channel, call.message)


@handles(calls.Recv)
def sys_recv(kernel: Kernel, process: Process, call: calls.Recv) -> Any:
    messages = kernel.channels.take(call.channel)
    if messages is not None:
        message = messages.popleft()
        kernel.channels.taken(call.channel)
        return message
    if call.timeout == 0:
        raise TimedOut(f"channel {call.channel!r} is empty")
    timer: asyncio.TimerHandle | None = None

    def undo() -> None:
        kernel.channels.leave(call.channel, future)

    def late() -> None:
        if not future.done():
            undo()
            future.set_exception(TimedOut(f"nothing came on channel {call.channel!r} in {call.timeout} s"))

    future = process.park("recv", undo)
    kernel.channels.wait(call.channel, future)
    if call.timeout is not None:
        timer = kernel.loop.call_later(call.timeout, late)
        future.add_done_callback(lambda _: timer.cancel())
    return Pending(future)


@handles(calls.Emit)
def sys_emit(kernel: Kernel, process: Process, call: calls.Emit) -> Pending | None:
    if process.client is None:
        return None
    room = process.client.emit(Event(data=call.event, stream=call.stream))
    return None if room is None else Pending(relay(process, "emit", room))


@handles(calls.Input)
def sys_input(kernel: Kernel, process: Process, call: calls.Input) -> Pending:
    if process.client is None:
        raise BrokenPipe("this program was started without a client to ask")
    return Pending(relay(process, "input", process.client.ask(call.prompt)))


def relay(process: Process, call: str, source: "asyncio.Future[Any]") -> "asyncio.Future[Any]":
    """A parked future that follows `source`, and cancels it when the caller goes away."""

    def undo() -> None:
        source.cancel()

    future = process.park(call, undo)

    def follow(done: "asyncio.Future[Any]") -> None:
        if future.done() or done.cancelled():
            return
        error = done.exception()
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())

    source.add_done_callback(follow)
    return future
