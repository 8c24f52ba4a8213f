"""One `lip run`: find or start a kernel, run the program, show it, answer it.

The kernel is the one that listens on the socket, or else one that is started for this run and ends with it. When
this process is interrupted the connection closes, and that ends the program (`kernel/frontdoor/respond.py`).
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from sdk import launch
from sdk.client import Client, KernelError, KernelLost, NoKernel
from sdk.screen import Screen

RESTART_S = 5.0  # in which a supervised kernel is back
POLL_S = 0.05
REDRAW_S = 0.08  # between two looks of the screen, where it shows columns


def complain(message: str) -> None:
    """How every command of `lip` says what is wrong."""
    print(f"lip: {message}", file=sys.stderr, flush=True)


class Run:
    """One `lip run`."""

    def __init__(
        self,
        socket: Path | None,
        target: str,
        words: Sequence[str],
        options: Sequence[str],
        *,
        json_only: bool,
        priority: int,
        tenant: str | None,
    ) -> None:
        self.socket = socket
        self.target = target
        self.words = words
        self.options = options  # of a kernel that is started for this run
        self.screen = Screen(Console(), json_only=json_only)
        self.stdin = InputLines(0)
        is_file = "/" in target or target.endswith(".py")
        self.program: dict[str, Any] = {"file": Path(target)} if is_file else {"program": target}
        self.terms: dict[str, Any] = {"priority": priority, "tenant": tenant}

    async def go(self, *, detach: bool) -> int:
        """Raises KernelError."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(Client(self.socket))
            running = await is_running(client)
            if {"--help", "-h"} & set(self.words):
                found = await self.describe(client if running else None)
                print(f"Usage: lip run {self.target} [--parameter value ...]\n\n{found['help']}")
                return 0
            if detach:
                print(await client.start(**self.program, **self.terms, args=self.words))
                return 0
            if not running:
                await launch.describe(self.target, self.words)  # a mistake is told before a model is loaded
                client = await self.start_kernel(stack)
            return await self.follow(client)

    async def describe(self, client: Client | None) -> dict[str, Any]:
        if client is not None:
            return await client.describe(**self.program)
        return await launch.describe(self.target, ["--help"])

    async def start_kernel(self, stack: AsyncExitStack) -> Client:
        """A kernel for this run alone; what it says while it starts is shown in one place."""
        errors = Console(stderr=True)
        spinner = errors.status("starting a kernel") if errors.is_terminal else None
        ready = False

        def on_line(line: str) -> None:
            if spinner is not None and not ready:
                spinner.update(line.strip())
            else:
                print(line, file=sys.stderr, flush=True)

        if spinner is not None:
            spinner.start()
        try:
            return await stack.enter_async_context(launch.private_kernel(self.options, on_line))
        finally:
            ready = True
            if spinner is not None:
                spinner.stop()

    async def follow(self, client: Client) -> int:
        """Run the program and show what happens. Returns its exit status. Raises KernelError."""
        pid, ended = 0, None
        beside: set[asyncio.Task[None]] = {asyncio.create_task(self.redraw())}
        try:
            run = client.run(**self.program, **self.terms, args=self.words, interactive=True)
            async with aclosing(run) as events:
                async for event in events:
                    if event.pid is not None:
                        pid = event.pid
                    elif event.prompt is not None:
                        beside.add(asyncio.create_task(self.answer(client, pid, event.prompt)))
                    elif event.exit is not None:
                        ended = event.exit
                    else:
                        self.screen.emit(event.emit, event.stream)
        except KernelLost:
            pass
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            self.screen.end(ended)
        if ended is None:
            raise KernelError(await what_became_of(client), 503)
        if ended.error:
            sys.stderr.write(ended.traceback)
            complain(ended.error)
        return ended.code

    async def redraw(self) -> None:
        while True:
            await asyncio.sleep(REDRAW_S)
            self.screen.redraw()

    async def answer(self, client: Client, pid: int, prompt: str) -> None:
        """Give the program a line of standard input. Other events are shown meanwhile."""
        async with self.stdin.turn:
            self.screen.ask(prompt)
            with suppress(KernelError):  # it has ended in the meantime
                await client.input(pid, await self.stdin.next())


async def what_became_of(client: Client) -> str:
    """Why there is no end of the program to show: the kernel is gone, and perhaps another one has followed it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(RESTART_S):
            while True:
                with suppress(KernelError):
                    if (reason := await client.last_end()) is not None:
                        return f"the kernel was restarted, and the program has ended with it: {reason}"
                    break
                await asyncio.sleep(POLL_S)
    return "the kernel went away before the program ended"


async def is_running(client: Client) -> bool:
    """Whether a kernel listens there. Raises KernelError when somebody else does."""
    try:
        await client.workers()
    except NoKernel:
        return False
    return True


class InputLines:
    """Lines of a file descriptor, read when asked for and without blocking the event loop."""

    def __init__(self, fd: int) -> None:
        self.turn = asyncio.Lock()  # of whoever reads the next line
        self._fd = fd
        self._buffer = b""

    async def next(self) -> str | None:
        """The next line without its end; None at the end of input."""
        while b"\n" not in self._buffer:
            await self._readable()
            data = os.read(self._fd, 65536)
            if not data:
                if not self._buffer:
                    return None
                data = b"\n"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")

    async def _readable(self) -> None:
        """Wait until reading would not block. Regular files never do, and cannot be polled."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(self._fd, ready.set)
        except OSError:
            return
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)
