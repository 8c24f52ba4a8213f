"""Starts and ends the kernel's own worker: `python -m gpuworker` as a subprocess.

The worker gets a socket in the run directory, that directory's owner as its parent to watch, and a pipe on which it
says that it is ready or why it is not. A kernel that comes after one that died finds its worker there, with the
weights loaded, and takes it over. Nothing else in the kernel starts OS processes.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kernel.rundir import RunDirectory, WorkerRecord

END_S = 5.0  # how long a worker may take to end before it is killed


class WorkerFailed(Exception):
    """The local worker did not start; the text is one line."""


class OsProcess(Protocol):
    """What is used of a process; `asyncio.subprocess.Process` is one."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """Exit status, as subprocess has it; None while it runs."""

    async def wait(self) -> int:
        """Wait for its end; returns the exit status."""

    def send_signal(self, signal: int) -> None: ...

    def kill(self) -> None: ...


class Adopted:
    """A worker that an earlier kernel has started. Whoever reaps it, it is not us, so its status stays unknown."""

    UNKNOWN = -1

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = pidfd
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.returncode = self.UNKNOWN
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        return self.UNKNOWN

    def send_signal(self, signal_: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, signal_)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class LocalWorker:
    """One worker process of ours."""

    def __init__(self, process: OsProcess, address: str) -> None:
        self.process = process
        self.address = address

    @classmethod
    async def start(cls, directory: Path, options: Sequence[str], number: int = 0) -> "LocalWorker":
        """Take over the worker that is there, or start one and wait until it is ready. Raises WorkerFailed."""
        run = RunDirectory(directory)
        record = run.kept(WorkerRecord)
        if record is not None and (adopted := adopt(record)) is not None:
            return cls(adopted, record.address)
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
                str(run.owner),
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
        run.keep(WorkerRecord(process.pid, address))
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
                await self.kill()
        self._unlink()

    async def kill(self) -> None:
        """End the process now. Safe to call twice."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        self._unlink()

    def _unlink(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            Path(self.address.removeprefix("ipc://")).unlink()


def adopt(record: WorkerRecord) -> Adopted | None:
    """The worker of a record, if it still runs."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except (OSError, AttributeError):  # it is gone; this system has no such thing
        return None
    if record.is_running():
        return Adopted(record.pid, pidfd)
    os.close(pidfd)
    return None


async def _first_line(fd: int) -> bytes:
    """What the other end of a pipe says first; empty when it closes without a word."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb"))
    try:
        return await reader.readline()
    finally:
        transport.close()
