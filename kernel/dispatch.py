"""From a system call to its handler, and the only place where a program's mistake becomes an errno.

A handler is a plain `def (kernel, process, call)`. It returns the result, raises SyscallError, or parks the
caller and returns `Pending`: it never awaits, so no two calls interleave inside the kernel. Anything else that
comes out of a handler is a broken invariant and stops the kernel. `kernel/boot.py` refuses to start unless each
call of the table has a handler.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from kernel.core import Kernel
from kernel.guard import guard
from kernel.process import Process
from sdk.abi import calls  # noqa: F401  (fills the table)
from sdk.abi.errors import InvalidArgument, Killed, NotSupported, SyscallError
from sdk.abi.table import TABLE, Syscall
from sdk.abi.trap import Again

C = TypeVar("C", bound=Syscall[Any])
Handler = Callable[[Kernel, Process, C], Any]

HANDLERS: dict[type[Syscall[Any]], Handler[Any]] = {}


def handles(call: type[C]) -> Callable[[Handler[C]], Handler[C]]:
    """Register the handler of one call."""

    def register(handler: Handler[C]) -> Handler[C]:
        if call in HANDLERS:
            raise ValueError(f"{call.__name__} has two handlers")
        HANDLERS[call] = handler
        return handler

    return register


def missing() -> list[str]:
    """Names of calls without a handler."""
    return [entry.name for call, entry in TABLE.items() if call not in HANDLERS]


def make_door(kernel: Kernel, process: Process) -> Callable[[Syscall[Any]], Any]:
    """The door of one process: what its threads call through `sdk.abi.trap`."""

    def enter(call: Syscall[Any]) -> Any:
        if process.dying:
            raise Killed
        if guard.has_had_its_turn():
            return Again(next_pass(kernel.loop))
        process.n_syscalls += 1
        kernel.counters.n_syscalls += 1
        handler = HANDLERS.get(type(call))
        if handler is None:
            raise NotSupported(f"this kernel has no call {type(call).__name__}")
        try:
            return handler(kernel, process, checked(call))
        except (SyscallError, Killed):
            raise
        except BaseException as e:
            kernel.panic(e)
            raise Killed from None

    return enter


def next_pass(loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
    """Done when everybody else who is ready has had a turn."""
    future: asyncio.Future[None] = loop.create_future()

    def come() -> None:
        if not future.done():
            future.set_result(None)

    loop.call_soon(come)
    return future


def checked(call: Syscall[Any]) -> Syscall[Any]:
    """The call with every argument of its declared type and range, and no object shared with the program.

    Structs check types when they are decoded, not when they are made, so a call is converted once, here.
    """
    if not call.__struct_fields__:
        return call
    try:
        valid: Syscall[Any] = msgspec.convert(msgspec.to_builtins(call), type(call))
        return valid
    except (msgspec.ValidationError, TypeError, OverflowError, RecursionError, ValueError) as e:
        raise InvalidArgument(f"{TABLE[type(call)].name}: {e}") from None
