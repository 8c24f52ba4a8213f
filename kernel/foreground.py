"""`python -m kernel run X`: one program in the kernel's own process, in plain text, so that `breakpoint()` works.

Nothing looks at standard input before the program asks for a line, and nothing redraws the terminal. What the
program emits is printed as it comes, its result as JSON at the end, errors on standard error. Called by
`kernel/boot.py`, which also takes Ctrl-C and then cancels `run_foreground`.
"""

import asyncio
import os
import select
import sys
from typing import Any

import msgspec

from kernel.client import Client, Event
from kernel.core import Kernel
from kernel.loader import LoadError, load, options
from sdk.abi.errors import SyscallError
from sdk.abi.values import ExitStatus

OWNER = "local"
WRONG_USE = 2  # exit status, as shells have it
LOOK_S = 0.2  # how long a thread waits for standard input at a time, and so how long it outlives an interrupt


def check_program(target: str, words: list[str]) -> None:
    """Raises LoadError when `run_foreground` would refuse these, so that nothing is started for them."""
    program = load(target)
    if "--help" not in words:
        program.bind(options(words), text=True)


async def run_foreground(kernel: Kernel, target: str, words: list[str]) -> int:
    """Run a file or an installed program with the parameters in `words`; returns the exit status."""
    client = Client(interactive=True, n_buffered_max=kernel.config.max_client_events)
    try:
        program = load(target)
        if "--help" in words:
            print(f"Usage: python -m kernel run {target} [--parameter value ...]\n\n{program.describe().help}")
            return 0
        process = kernel.spawn(program, program.bind(options(words), text=True), owner=OWNER, client=client)
    except (LoadError, SyscallError) as e:
        complain(str(e))
        return WRONG_USE
    printer, stdin = Printer(), InputLines(sys.stdin.fileno())
    try:
        while (event := await client.next()) is not None:
            if event.prompt is None:
                printer.show(event)
            else:
                await answer(client, event.prompt, printer, stdin)
        status = await process.wait_exit()
    finally:
        if process.status is None:
            client.leave()
            kernel.kill(process.pid, "interrupted")
            await process.wait_exit()
    printer.end(status)
    return status.code


async def answer(client: Client, prompt: str, printer: "Printer", stdin: "InputLines") -> None:
    """Ask the user, and give the program the line."""
    printer.write(prompt)
    line = await stdin.next()
    if line is None:
        client.no_more_input()
    else:
        client.answer(line)
        printer.at_line_start = True  # the terminal has echoed the newline


class Printer:
    """Standard output: text as it comes, other events as a line of JSON, streams under their names."""

    def __init__(self) -> None:
        self.at_line_start = True
        self._stream: str | None = None

    def show(self, event: Event) -> None:
        if event.stream != self._stream:
            self._stream = event.stream
            self._new_line()
            if event.stream is not None:
                self.write(f"[{event.stream}] ")
        if isinstance(event.data, str):
            self.write(event.data)
        else:
            self._new_line()
            self.write(json_text(event.data) + "\n")

    def end(self, status: ExitStatus) -> None:
        """The result, or what went wrong."""
        self._new_line()
        if status.code == 0 and status.result not in (b"", b"null"):
            self.write(json_text(msgspec.json.decode(status.result)) + "\n")
        elif status.error:
            sys.stderr.write(status.traceback)
            complain(status.error)

    def write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self.at_line_start = text.endswith("\n")

    def _new_line(self) -> None:
        if not self.at_line_start:
            self.write("\n")


class InputLines:
    """Lines of a file descriptor, read when asked for and without blocking the event loop."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = b""

    async def next(self) -> str | None:
        """The next line without its end; None at the end of input."""
        while b"\n" not in self._buffer:
            await readable(self._fd)
            data = os.read(self._fd, 65536)
            if not data:
                if not self._buffer:
                    return None
                data = b"\n"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")


async def readable(fd: int) -> None:
    """Wait until reading would not block.

    In a thread, a moment at a time: uvloop's own way would leave the terminal in non-blocking mode, and so break
    `breakpoint()` and `print`.
    """
    while not (await asyncio.to_thread(select.select, [fd], [], [], LOOK_S))[0]:
        pass


def json_text(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def complain(message: str) -> None:
    print(f"kernel: {message}", file=sys.stderr, flush=True)
