"""`lip trace`: has the kernel record what happens, and writes it to a file for ui.perfetto.dev.

The recording is the kernel's (`kernel/tracing.py`); it ends after the time that was asked for, when the traced
program ends, or at Ctrl-C, and in each case the file is whole.
"""

import asyncio
import sys
from contextlib import aclosing
from pathlib import Path

from sdk.client import Client, KernelError

WRONG = 400  # as HTTP has it: the command, and not the kernel, is at fault


async def record(client: Client, *, pid: int | None, everything: bool, seconds: float, output: Path | None) -> None:
    """Record one program and its children, or all of them; says where the file is. Raises KernelError."""
    if (pid is None) is not everything:
        raise KernelError("say what to record: lip trace PID, or lip trace --all", WRONG)
    path = output or Path(f"trace-{'all' if pid is None else pid}.json")
    receiving = asyncio.ensure_future(_receive(client, pid, seconds, path))
    try:
        size = await asyncio.shield(receiving)
    except asyncio.CancelledError:  # Ctrl-C: that is all; once more: and nobody wants it
        await client.stop_trace()
        size = await receiving
    except OSError as e:
        raise KernelError(f"cannot write {path}: {e.strerror or e}", WRONG) from None
    print(f"{path} ({size / 1e6:.1f} MB): open it at https://ui.perfetto.dev (Open trace file) or in chrome://tracing")


async def _receive(client: Client, pid: int | None, seconds: float, path: Path) -> int:
    """Receive a recording into a file, which is not touched before it has begun. Returns its size in bytes."""
    size = 0
    async with aclosing(client.trace(pid, seconds)) as pieces:
        await anext(pieces)
        with path.open("wb") as file:
            what = "all programs" if pid is None else f"process {pid}"
            print(f"recording {what} for {seconds:g} s; Ctrl-C ends it earlier", file=sys.stderr, flush=True)
            try:
                async for piece in pieces:
                    size += file.write(piece)
            except BaseException:
                path.unlink()
                raise
    return size
