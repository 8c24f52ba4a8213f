"""Starts and ends the kernel's own worker: `python -m gpuworker` as a subprocess.

The worker gets a socket in a private directory, this process as its parent to watch, and a pipe on which it says
that it is ready or why it is not. Nothing else in the kernel starts OS processes.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

END_S = 5.0  # how long a worker may take to end before it is killed


class WorkerFailed(Exception):
    """The local worker did not start; the text is one line."""


class LocalWorker:
    """One worker process of ours."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process = process
        self.address = address

    @classmethod
    async def start(cls, directory: Path, options: Sequence[str], number: int = 0) -> "LocalWorker":
        """Start a worker and wait until it is ready. Raises WorkerFailed."""
        address = f"ipc://{directory}/worker-{number}"
        reader, writer = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gpuworker",
                "--listen",
                address,
                "--parent",
                str(os.getpid()),
                "--ready-fd",
                str(writer),
                *options,
                pass_fds=(writer,),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the kernel, which ends its workers in order
            )
        finally:
            os.close(writer)
        self = cls(process, address)
        try:
            line = await _first_line(reader)
        except asyncio.CancelledError:
            await self.end()
            raise
        report = json.loads(line) if line else {}
        if "address" not in report:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await process.wait()  # it ends by itself, and knows best how
            await self.end()
            raise WorkerFailed(report.get("error", f"the worker ended at start-up with status {process.returncode}"))
        return self

    async def end(self) -> None:
        """End the process, by force if it must be. Safe to call twice."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(END_S):
                    await self.process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self.process.kill()
                await self.process.wait()
        with contextlib.suppress(FileNotFoundError):
            Path(self.address.removeprefix("ipc://")).unlink()


async def _first_line(fd: int) -> bytes:
    """What the other end of a pipe says first; empty when it closes without a word."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb"))
    try:
        return await reader.readline()
    finally:
        transport.close()
