"""System calls on locks: park who has to wait, wake whom kvfs lets through. Who that is, `kvfs/locks.py` decides.

An answer to a wait goes through the ready queue as all others do; a lock whose caller has gone when its turn comes is
given back. Closing a handle answers waits as well (`kernel/sys_file.py`), and so does the end of a process, which
closes its handles. A wait for a child (`kernel/sys_process.py`) may refuse one, since it can close a circle too.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from kernel.core import Kernel
from kernel.dispatch import handles
from kernel.process import Caller, Process
from kernel.sys_file import answer, file_of
from kvfs.locks import WAITING, Ticket
from sdk.abi import calls
from sdk.abi.errors import TimedOut
from sdk.abi.trap import Pending

# What this thread has locked, or was started under. Tasks begin with a copy of the context in which they are made.
locked: ContextVar[tuple[Ticket, ...]] = ContextVar("symphony_locked", default=())


class LockWaiter(NamedTuple):
    """A parked `lock`."""

    caller: Caller
    ticket: Ticket
    leave: Callable[[], None]

    def answer(self) -> None:
        if self.ticket.error is not None:
            self.caller.fail(self.ticket.error)
        else:
            self.caller.complete(None, lambda _: self.leave())


@handles(calls.Lock)
def sys_lock(kernel: Kernel, process: Process, call: calls.Lock) -> Pending | None:
    file, above = file_of(process, call.fd), still_held(kernel)
    ticket, answered = kernel.fs.lock(
        file,
        call.mode,
        thread=asyncio.current_task(),
        under=[lock.lock for lock in above],
        wait=call.timeout != 0,
    )
    locked.set((*above, ticket))
    if ticket.state is WAITING:
        future = wait_for(kernel, process, call, ticket)
        answer(answered)  # and by that this one, perhaps: if one of them has gone, and its lock comes back
        return Pending(future)
    answer(answered)
    if ticket.error is not None:
        raise ticket.error
    return None


def wait_for(kernel: Kernel, process: Process, call: calls.Lock, ticket: Ticket) -> "asyncio.Future[Any]":
    """Park the caller until its ticket is answered, or its time is over."""
    fs, file, late = kernel.fs, ticket.file, call.timeout

    def leave() -> None:
        answer(fs.cancel_lock(ticket))

    def give_up() -> None:
        if ticket.state is WAITING:
            caller.fail(TimedOut(f"this file was locked for {late} s by {fs.locks.holders(file)}"))
            leave()

    until = None if late is None else kernel.now() + late
    future = process.park("lock", leave, lambda: f"fd {call.fd}, held by {fs.locks.holders(file)}", until=until)
    caller = Caller(process, future)
    ticket.waiter = LockWaiter(caller, ticket, leave)
    if late is not None:
        timer = kernel.loop.call_later(late, give_up)
        future.add_done_callback(lambda _: timer.cancel())
    return future


@handles(calls.Unlock)
def sys_unlock(kernel: Kernel, process: Process, call: calls.Unlock) -> None:
    answer(kernel.fs.unlock(file_of(process, call.fd)))
    locked.set(still_held(kernel))


def join(kernel: Kernel, process: Process, child: int, future: "asyncio.Future[Any]") -> None:
    """The caller is parked until the end of a child: if that waits for a lock of the caller's, it never comes."""
    locks, thread = kernel.fs.locks, asyncio.current_task()
    future.add_done_callback(lambda _: locks.joined(thread))
    answer(locks.join(thread, process.pid, child, [lock.lock for lock in still_held(kernel)]))


def still_held(kernel: Kernel) -> tuple[Ticket, ...]:
    """Of what this thread has locked or was started under."""
    return tuple(filter(kernel.fs.locks.is_held, locked.get()))
