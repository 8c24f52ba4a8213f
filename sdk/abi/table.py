"""The table of system calls, and how a call is declared.

A call is one frozen Struct: its fields are the arguments, its type parameter the result, its docstring the man
page. Stubs, docs, dispatch, counters and traces all derive from here. Rules: numbers are never reused, fields
are appended and never reordered, and only `sdk/abi/calls.py` adds entries.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

from msgspec import Struct

from sdk.abi.errors import Errno

R = TypeVar("R")


class Syscall(Struct, Generic[R], frozen=True, kw_only=True):
    """Base of all system calls; R is what the call returns."""


class Entry(NamedTuple):
    """One row of the table."""

    nr: int
    name: str  # as programs and traces spell it
    group: str
    blocks: bool  # may park the calling thread
    errnos: tuple[Errno, ...]
    call: type[Syscall[Any]]
    result: Any  # the type R

    @property
    def doc(self) -> str:
        return (self.call.__doc__ or "").strip()


TABLE: dict[type[Syscall[Any]], Entry] = {}

C = TypeVar("C", bound=type[Syscall[Any]])


def syscall(
    nr: int, name: str, *, group: str, blocks: bool = False, errnos: tuple[Errno, ...] = ()
) -> Callable[[C], C]:
    """Enter a call into the table under a number that no other call has or ever had."""

    def enter(cls: C) -> C:
        if any(e.nr == nr or e.name == name for e in TABLE.values()):
            raise ValueError(f"system call {nr} {name} is taken")
        base: Any = cls.__orig_bases__[0]  # type: ignore[attr-defined]
        TABLE[cls] = Entry(nr, name, group, blocks, errnos, cls, get_args(base)[0])
        return cls

    return enter


def by_name(name: str) -> Entry:
    """The entry called `name`; raises KeyError."""
    for entry in TABLE.values():
        if entry.name == name:
            return entry
    raise KeyError(name)


def fields_of(call: type[Syscall[Any]]) -> dict[str, Any]:
    """Argument names of a call with their types, in order."""
    hints = get_type_hints(call, include_extras=True)
    return {name: hints[name] for name in call.__struct_fields__}
