"""The fake kernel itself: the state of one, and its life. See `sdk.testing` for what it models and what not."""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from sdk.abi.errors import Errno
from sdk.abi.table import by_name
from sdk.abi.trap import door
from sdk.abi.values import ExitStatus
from sdk.testing.process import Process, Program, World


class FakeKernel(World):
    """A kernel of plain lists; the code inside its `async with` is a program.

    `replies` are the texts that `generate` and `stream` give, in the order of the calls; stops and `max_tokens`
    apply to them. Without any the toy model speaks. `inputs` are the client's lines. `programs` can be spawned by
    name, and `main` as ".". `events` holds what was emitted, `calls` every system call.
    """

    def __init__(
        self,
        *,
        replies: Iterable[str] | None = None,
        inputs: Iterable[str] = (),
        programs: dict[str, Program] | None = None,
        main: Program | None = None,
        max_model_len: int = 1024,
    ) -> None:
        super().__init__(None if replies is None else iter(replies), iter(inputs), programs or {}, max_model_len)
        self._main = main

    async def __aenter__(self) -> Self:
        self._process = Process(self, self._main, None)
        self._token = door.set(self._process)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        door.reset(self._token)
        self._process.end(ExitStatus(self._process.pid, 0))
        while tasks := [process.task for process in self.processes.values() if process.task is not None]:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def fail(self, name: str, errno: Errno) -> None:
        """Let the next system call of that name fail: `kernel.fail("generate", Errno.EIO)`."""
        self.faults[by_name(name).call] = errno


async def run_lip(main: Program, /, *args: Any, **parameters: Any) -> Any:
    """Run `main` as a program of a fresh `FakeKernel` and return its result. Exceptions come through."""
    async with FakeKernel(main=main):
        return await main(*args, **parameters)
