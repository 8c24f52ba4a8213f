"""Processes, time and chance, as programs see them.

A program starts others as children and waits for them; within one program plain asyncio (`gather`, `TaskGroup`,
`timeout`) is the way to do several things at once. Use `sleep`, `now` and `random` from here rather than the
standard library's: a simulation runs them faster, and a recorded run replays them.

    await process.priority(10)            # let others go first
    await process.limits(tokens=50_000)   # no more than that, with all children; QuotaExceeded beyond
"""

from dataclasses import dataclass
from typing import Any

from sdk import syscalls
from sdk.abi.values import ExitStatus, Limits, Pid
from sdk.syscalls import exit, getpid, limits, now, priority, random, rusage, sleep  # noqa: A004

__all__ = [
    "Child",
    "Limits",
    "exit",
    "getpid",
    "limits",
    "now",
    "priority",
    "random",
    "rusage",
    "sleep",
    "spawn",
]


@dataclass(frozen=True)
class Child:
    """A program started by this one. It ends with its parent, unless it was detached."""

    pid: Pid

    async def wait(self) -> ExitStatus:
        """Wait until it ends and take its status. Raises NotAChild when that was taken before."""
        return await syscalls.wait(self.pid)

    async def kill(self) -> None:
        """End it with all its children; `wait` tells when it has ended. Raises NoSuchProcess after that."""
        await syscalls.kill(self.pid)


async def spawn(program: str, /, *, detach: bool = False, **parameters: Any) -> Child:
    """Start the installed program `program`, or another copy of this one ("."), with these parameters of its `main`.

    Raises FileNotFound for an unknown program, InvalidArgument for parameters that its `main` does not take.
    """
    return Child(await syscalls.spawn(program, args=parameters, detach=detach))
