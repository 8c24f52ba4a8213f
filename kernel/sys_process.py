"""System calls on processes and time."""

from typing import Any

from kernel.core import Kernel
from kernel.dispatch import handles
from kernel.process import KILLED, Process
from sdk.abi import calls
from sdk.abi.errors import AccessDenied, Killed, NoSuchProcess, NotAChild
from sdk.abi.trap import Pending
from sdk.abi.values import ExitStatus, Pid, Usage


@handles(calls.Spawn)
def sys_spawn(kernel: Kernel, process: Process, call: calls.Spawn) -> Pid:
    program = process.program if call.program == "." else kernel.installed(call.program)
    args = kernel.bind(program, call.args)
    child = kernel.spawn(program, args, owner=process.owner, client=None, parent=None if call.detach else process)
    return child.pid


@handles(calls.Wait)
def sys_wait(kernel: Kernel, process: Process, call: calls.Wait) -> ExitStatus | Pending:
    ended = process.unwaited
    if call.pid is None:
        if ended:
            return ended.pop(next(iter(ended)))
        if not process.children:
            raise NotAChild("this process has no children to wait for")
    elif call.pid in ended:
        return ended.pop(call.pid)
    elif call.pid not in process.children:
        raise NotAChild(f"process {call.pid} is no child of process {process.pid}, or was waited for already")
    waiters = process.child_waiters
    future = process.park("wait", lambda: waiters.remove(entry))
    entry = (call.pid, future)
    waiters.append(entry)
    return Pending(future)


@handles(calls.Exit)
def sys_exit(kernel: Kernel, process: Process, call: calls.Exit) -> None:
    process.end(call.code, "")
    raise Killed


@handles(calls.Kill)
def sys_kill(kernel: Kernel, process: Process, call: calls.Kill) -> None:
    victim = kernel.processes.get(call.pid)
    if victim is None:
        raise NoSuchProcess(f"no process {call.pid} is running")
    if victim.owner != process.owner:
        raise AccessDenied(f"process {call.pid} belongs to {victim.owner}")
    victim.end(KILLED, f"killed by process {process.pid}")
    if process.dying:  # it killed itself, or its parent
        raise Killed


@handles(calls.GetPid)
def sys_getpid(kernel: Kernel, process: Process, call: calls.GetPid) -> Pid:
    return process.pid


@handles(calls.Sleep)
def sys_sleep(kernel: Kernel, process: Process, call: calls.Sleep) -> Pending:
    future = process.park("sleep", lambda: timer.cancel())
    timer = kernel.loop.call_later(call.seconds, wake, future, None)
    return Pending(future)


@handles(calls.Now)
def sys_now(kernel: Kernel, process: Process, call: calls.Now) -> float:
    return kernel.now()


@handles(calls.Random)
def sys_random(kernel: Kernel, process: Process, call: calls.Random) -> float:
    return process.dice.random()


@handles(calls.RUsage)
def sys_rusage(kernel: Kernel, process: Process, call: calls.RUsage) -> Usage:
    if call.pid is None:
        return process.usage
    other = kernel.processes.get(call.pid)
    if other is None:
        raise NoSuchProcess(f"no process {call.pid} is running")
    return other.usage


def wake(future: Any, value: Any) -> None:
    """Complete a parked call, unless its caller has gone away."""
    if not future.done():
        future.set_result(value)
