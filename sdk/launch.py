"""A kernel for one run: started when nobody else's is there, and gone afterwards with all it made.

The kernel is a child process with a socket in a directory of its own and no HTTP port. Its output (why it is not
ready yet, and what programs `print`) is handed on line by line. Used by `lip run`.
"""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from sdk.client import Client, KernelError, NoKernel

HOUSE = Path(__file__).parents[1]
POLL_S = 0.05  # between looks at the socket of a kernel that is starting
LINE_BYTES_MAX = 16 << 20  # of the kernel's output
END_S = 15.0  # for a kernel to let everything go before it is killed


def environment() -> dict[str, str]:
    """Ours, so that `python -m kernel` is this house's in any directory, also in one that has a `kernel` of its own."""
    path = [str(HOUSE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


async def describe(target: str, words: Sequence[str]) -> dict[str, Any]:
    """What a program takes, without a kernel; also checks `words` against it. Raises KernelError (status 400)."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "kernel.loader",
        target,
        *words,
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await child.communicate()
    if child.returncode != 0:
        raise KernelError(_last_line(err) or f"{target} cannot be loaded", 400)
    found: dict[str, Any] = msgspec.json.decode(out.splitlines()[-1])
    return found


@asynccontextmanager
async def private_kernel(options: Sequence[str], on_line: Callable[[str], None]) -> AsyncIterator[Client]:
    """A client of a new kernel, ready to run programs; `on_line` gets every line of its output.

    `options` are those of `python -m kernel`. Raises KernelError when it does not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="lip-"))  # mode 0700
    path = directory / "kernel.sock"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "kernel",
        *("--socket", str(path), "--no-http", "--no-supervisor", "--parent", str(os.getpid()), *options),
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=LINE_BYTES_MAX,
        start_new_session=True,  # a Ctrl-C is for us, who end the kernel in order
    )
    lines: list[str] = []
    ending = asyncio.Event()
    reader = asyncio.ensure_future(_hand_on(child, lines, ending, on_line))
    try:
        async with Client(path) as client:
            await _ready(child, client, reader, lines)
            yield client
    finally:
        ending.set()
        await asyncio.shield(_end(child, reader, directory))


async def _hand_on(
    child: asyncio.subprocess.Process, lines: list[str], ending: asyncio.Event, on_line: Callable[[str], None]
) -> None:
    """Pass the output on, but for goodbyes; `lines` keeps the last one."""
    assert child.stdout is not None
    async for raw in child.stdout:
        line = raw.decode(errors="replace").rstrip("\n")
        lines[:] = [line]
        if not ending.is_set():
            on_line(line)


async def _ready(
    child: asyncio.subprocess.Process, client: Client, reader: "asyncio.Future[None]", lines: list[str]
) -> None:
    """Wait until the kernel answers. Raises KernelError with its last words."""
    while True:
        try:
            await client.ps()
            return
        except NoKernel:
            if reader.done():
                code = await child.wait()
                said = lines[-1].removeprefix("kernel: ") if lines else f"it ended with status {code}"
                raise KernelError(f"the kernel did not start: {said}") from None
        await asyncio.sleep(POLL_S)


async def _end(child: asyncio.subprocess.Process, reader: "asyncio.Future[None]", directory: Path) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        await asyncio.wait_for(child.wait(), END_S)
    except TimeoutError:
        child.kill()
        await child.wait()
    await reader
    shutil.rmtree(directory, ignore_errors=True)


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
