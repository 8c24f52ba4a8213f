"""System calls between processes, and between a process and its client."""

from typing import Any

from kernel.client import Event
from kernel.core import Kernel
from kernel.dispatch import handles
from kernel.process import Caller, Process
from kvfs.roots import file_name
from sdk.abi import calls
from sdk.abi.errors import BrokenPipe, TimedOut
from sdk.abi.trap import Pending


@handles(calls.Send)
def sys_send(kernel: Kernel, process: Process, call: calls.Send) -> None:
    kernel.channels.send(name_of(process, call.channel), call.message)


@handles(calls.Recv)
def sys_recv(kernel: Kernel, process: Process, call: calls.Recv) -> Any:
    name = name_of(process, call.channel)
    messages = kernel.channels.take(name)
    if messages is not None:
        message = messages.popleft()
        kernel.channels.taken(name)
        return message
    if call.timeout == 0:
        raise TimedOut(f"channel {call.channel!r} is empty")
    channels, late = kernel.channels, call.timeout
    channels.open(name)
    until = None if late is None else kernel.now() + late
    future = process.park("recv", lambda: channels.leave(name, caller), call.channel, until=until)
    caller = Caller(process, future)
    channels.wait(name, caller)

    def give_up() -> None:
        channels.leave(name, caller)
        caller.fail(TimedOut(f"nothing came on channel {call.channel!r} in {late} s"))

    if late is not None:
        timer = kernel.loop.call_later(late, give_up)
        future.add_done_callback(lambda _: timer.cancel())
    return Pending(future)


@handles(calls.Emit)
def sys_emit(kernel: Kernel, process: Process, call: calls.Emit) -> Pending | None:
    client = process.client
    if client is None or client.emit(Event(data=call.event, stream=call.stream)):
        return None
    future = process.park("emit", lambda: client.forget(caller))
    caller = Caller(process, future)
    client.wait_for_room(caller)
    return Pending(future)


@handles(calls.Input)
def sys_input(kernel: Kernel, process: Process, call: calls.Input) -> Pending:
    client = process.client
    if client is None:
        raise BrokenPipe("this program was started without a client to ask")
    client.check_input()
    future = process.park("input", lambda: client.forget(caller))
    caller = Caller(process, future)
    client.ask(call.prompt, caller)
    return Pending(future)


def name_of(process: Process, channel: str) -> str:
    """A tenant's channels are its own. The operator has those of all, as he spells them: TENANT/CHANNEL."""
    tenant = process.who.tenant
    return f"{file_name(tenant)}/{channel}" if tenant else channel
