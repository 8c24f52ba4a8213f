"""How a command of `lip` runs and prints: to an exit status, in columns, in one line when it fails.

Used by `sdk/cli.py` and `sdk/cli_fs.py`, which say what there is to run.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.cells import cell_len

from sdk.client import Client, KernelError, NoKernel
from sdk.runner import complain

WRONG_USE, FAILED, INTERRUPTED = 2, 1, 130

Json = Annotated[bool, typer.Option("--json", help="all that is known, as JSON")]


def execute(command: Coroutine[Any, Any, int | None]) -> None:
    """Run a command to its exit status. Whatever ends it, it ends in order."""

    async def interruptible() -> int | None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        return await command

    try:
        status = asyncio.run(interruptible())
    except asyncio.CancelledError:
        status = INTERRUPTED
    except KernelError as e:
        complain(str(e))
        status = WRONG_USE if isinstance(e, NoKernel) or 400 <= e.status < 500 else FAILED
    raise typer.Exit(status or 0)


def with_kernel(ctx: typer.Context, command: Callable[[Client], Coroutine[Any, Any, int | None]]) -> None:
    """Run a command that needs a running kernel."""

    async def connected() -> int | None:
        async with Client(ctx.obj) as client:
            return await command(client)

    execute(connected())


def table(rows: Sequence[Sequence[object]], *head: str, right: Sequence[str] = ()) -> None:
    """Columns on standard output, never cut: a terminal wraps what is too long; those of `right` are numbers."""
    cells = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        filled = []
        for name, cell, width in zip(head, line, widths, strict=True):
            space = " " * (width - cell_len(cell))
            filled.append(space + cell if name in right else cell + space)
        print("  ".join(filled).rstrip())


def print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
