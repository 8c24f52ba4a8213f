"""A whole kernel in this process, and programs of ours in it: what measurements of the kernel stand on.

The kernel is the one that `python -m kernel` runs, on uvloop, with a worker process of its own and no front door.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvloop

from kernel.boot import BootError, attach_workers, running
from kernel.config import Config
from kernel.core import Kernel
from kernel.loader import Program
from kernel.process import Process
from perf.harness import Failed

T = TypeVar("T")

Main = Callable[..., Coroutine[Any, Any, Any]]


class Inside:
    """A running kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def start(self, main: Main, tenant: str | None = None, **args: Any) -> Process:
        """Start `main` as a program, of a tenant of its own if one is named."""
        program = Program(main.__name__, main, Path(main.__code__.co_filename), main.__doc__ or "")
        return self.kernel.spawn(program, args, owner="perf", client=None, tenant=tenant)

    async def value(self, main: Main, **args: Any) -> Any:
        """What `main` returns as a program. Raises Failed."""
        return await self.end(self.start(main, **args))

    async def end(self, process: Process) -> Any:
        """What a started program returns. Raises Failed."""
        status = await process.wait_exit()
        if status.code != 0:
            raise Failed(f"its program failed: {status.error}")
        return msgspec.json.decode(status.result)


def inside(config: Config, body: Callable[[Inside], Awaitable[T]]) -> T:
    """Boot a kernel, do `body` in its loop, and stop it. Raises Failed."""

    async def go() -> T:
        async with running(config) as (kernel, directory):
            await attach_workers(kernel, directory, lambda line: None)
            return await body(Inside(kernel))

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(go())
    except BootError as e:
        raise Failed(str(e)) from None
