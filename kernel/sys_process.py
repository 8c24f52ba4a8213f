"""System calls on processes and time."""

from typing import Any

from kernel.core import Kernel
from kernel.dispatch import handles
from kernel.process import KILLED, Process
from kernel.sys_lock import join
from sdk.abi import calls
from sdk.abi.errors import AccessDenied, Killed, NoSuchProcess, NotAChild
from sdk.abi.trap import Pending
from sdk.abi.values import ExitStatus, Limits, Pid, Usage


@handles(calls.Spawn)
def sys_spawn(kernel: Kernel, process: Process, call: calls.Spawn) -> Pid:
    program = process.program if call.program == "." else kernel.installed(call.program)
    args = kernel.bind(program, call.args)
    child = kernel.spawn(program, args, owner=process.who.user, client=None, parent=process, detach=call.detach)
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
    about = "" if call.pid is None else f"pid {call.pid}"
    future = process.park("wait", lambda: forget(waiters, entry), about)
    entry = (call.pid, future)
    waiters.append(entry)
    if call.pid is not None:
        join(kernel, process, call.pid, future)
    return Pending(future)


@handles(calls.Exit)
def sys_exit(kernel: Kernel, process: Process, call: calls.Exit) -> None:
    process.end(call.code, "")
    raise Killed


@handles(calls.Kill)
def sys_kill(kernel: Kernel, process: Process, call: calls.Kill) -> None:
    victim = own(process, other(kernel, process, call.pid))
    victim.end(KILLED, f"killed by process {process.pid}")
    if process.dying:  # it killed itself, or its parent
        raise Killed


@handles(calls.GetPid)
def sys_getpid(kernel: Kernel, process: Process, call: calls.GetPid) -> Pid:
    return process.pid


@handles(calls.Sleep)
def sys_sleep(kernel: Kernel, process: Process, call: calls.Sleep) -> Pending:
    until = kernel.now() + call.seconds
    future = process.park("sleep", lambda: timer.cancel(), lambda: f"{call.seconds:g} s", until=until)
    timer = kernel.loop.call_later(call.seconds, process.complete, future, None)
    return Pending(future)


@handles(calls.Now)
def sys_now(kernel: Kernel, process: Process, call: calls.Now) -> float:
    return kernel.now()


@handles(calls.Random)
def sys_random(kernel: Kernel, process: Process, call: calls.Random) -> float:
    return process.dice.random()


@handles(calls.RUsage)
def sys_rusage(kernel: Kernel, process: Process, call: calls.RUsage) -> Usage:
    return process.usage if call.pid is None else other(kernel, process, call.pid).usage


@handles(calls.Priority)
def sys_priority(kernel: Kernel, process: Process, call: calls.Priority) -> int:
    target = process if call.pid is None else other(kernel, process, call.pid)
    account = target.account
    if call.value is not None:
        own(process, target)
        if call.value < account.most_urgent:
            raise AccessDenied(
                f"process {target.pid} was started with priority {account.most_urgent}, and cannot become more urgent "
                f"than that: not {call.value} (lower goes first)"
            )
        account.priority = call.value
    return account.priority


@handles(calls.SetLimits)
def sys_limits(kernel: Kernel, process: Process, call: calls.SetLimits) -> Limits:
    wanted = Limits(**{name: getattr(call, name) for name in Limits.__struct_fields__})
    if wanted != Limits():
        process.account.narrow(wanted)
        process.watch_limits()
        if process.dying:  # its time is up already
            raise Killed
    return process.account.limits


def other(kernel: Kernel, process: Process, pid: Pid) -> Process:
    """What runs under a pid, as far as the caller may know: those of other tenants are not there for it. Raises
    NoSuchProcess."""
    found = kernel.processes.get(pid)
    if found is None or (found.who.tenant != process.who.tenant and not process.who.root):
        raise NoSuchProcess(f"no process {pid} is running")
    return found


def own(process: Process, target: Process) -> Process:
    """The target, when it is the caller's user's. Raises AccessDenied."""
    if target.who.user != process.who.user:
        raise AccessDenied(f"process {target.pid} belongs to {target.who.user!r}: only that user may do this to it")
    return target


def forget(waiters: list[Any], entry: Any) -> None:
    """Nobody waits there any more, if somebody did: a call that was answered does not."""
    if entry in waiters:
        waiters.remove(entry)
