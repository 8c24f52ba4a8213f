"""The one door between a program and the kernel.

Whoever runs a program puts a door into the ContextVar before its first step; all threads of the program inherit
it. A door takes a call and either answers at once or returns something to await. Nothing else in the sdk reaches
out, so a test or a remote host replaces the kernel by replacing the door.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from sdk.abi.errors import NotSupported
from sdk.abi.table import Syscall

R = TypeVar("R")


class Pending:
    """What a door returns instead of a result when the call must wait: `future` yields the result."""

    __slots__ = ("future",)

    def __init__(self, future: Any) -> None:
        self.future = future


class Again(Pending):
    """What a door returns when the caller has had its turn: nothing is done yet; await `future` and call once more."""

    __slots__ = ()


Door = Callable[[Syscall[Any]], Any]
door: ContextVar[Door] = ContextVar("symphony_door")


async def trap(call: Syscall[R]) -> R:
    """Make a system call. Raises SyscallError; ENOSYS outside a program."""
    try:
        enter = door.get()
    except LookupError:
        raise NotSupported(
            "system calls work inside a program: start it with `lip run FILE`, or under sdk.testing"
        ) from None
    while type(answer := enter(call)) is Again:
        await answer.future
    if type(answer) is Pending:
        answer = await answer.future
    result: R = answer
    return result
