"""Boot order, as a list; and the way down again.

`serve` is `python -m kernel`, `run_program` is `python -m kernel run FILE`. Both start the same kernel; the
latter opens no door to the outside and ends with its program. Signals are taken here and nowhere else.
"""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kernel import dispatch, stepper, sys_file, sys_ipc, sys_model, sys_process
from kernel.config import Config
from kernel.core import AttachError, Kernel
from kernel.foreground import run_foreground
from kernel.frontdoor.server import FrontDoorError, serve_http, serve_socket
from kernel.local import WorkerFailed
from sdk.abi.values import ModelInfo

SYSTEM_CALLS = (sys_file, sys_ipc, sys_model, sys_process)  # importing them registers their handlers
GRACE_S = 5.0  # for programs to unwind when the kernel stops
INTERRUPTED = 130  # exit status after a signal, as a shell reports SIGINT
PANIC = 70  # exit status after a broken invariant (sysexits.h: internal software error)

Say = Callable[[str], None]


class BootError(Exception):
    """The kernel could not start; the text is one line."""


def check_house() -> None:
    """Refuse to run beside somebody else's modules: `kernel` and `sdk` are names that others use too."""
    house = Path(__file__).resolve().parent.parent
    for name in ("sdk", "kvfs", "gpuworker"):
        found = Path(sys.modules[name].__file__ or "").resolve().parent.parent
        if found != house:
            raise BootError(f"module {name!r} comes from {found}, not from {house}: start from the checkout")


@asynccontextmanager
async def running(config: Config, say: Say) -> AsyncIterator[Kernel]:
    """A kernel with its workers attached. Raises BootError; leaves nothing behind."""
    check_house()
    missing = dispatch.missing()
    if missing:
        raise BootError(f"system calls without a handler: {', '.join(missing)}")
    loop = asyncio.get_running_loop()
    stepper.install(loop)  # tasks of programs become their threads
    kernel = Kernel(config, dispatch.make_door)
    directory = Path(tempfile.mkdtemp(prefix="symphony-"))  # for the local worker's socket; mode 0700
    try:
        if config.local_worker:
            say(f"starting a worker for {config.model}")
            await kernel.fleet.start_local(directory)
        for address in config.worker:
            say(f"attaching {address}")
            await kernel.attach(address)
        yield kernel
    except (AttachError, WorkerFailed) as e:
        raise BootError(str(e)) from None
    finally:
        await kernel.stop(GRACE_S)
        shutil.rmtree(directory, ignore_errors=True)


async def serve(config: Config, say: Say) -> int:
    """Run until a signal. Returns the exit status."""
    async with running(config, say) as kernel:
        doors = []
        try:
            try:
                doors.append(await serve_socket(kernel, config.socket))
                if config.http:
                    doors.append(await serve_http(kernel, config.host, config.port))
            except FrontDoorError as e:
                raise BootError(str(e)) from None
            for line in banner(kernel, [door.address for door in doors]):
                say(line)
            status = await until_told(kernel, say)
            kernel.stopping = True
            return status
        finally:
            for door in doors:
                await door.stop()


async def run_program(config: Config, target: str, args: list[str], say: Say) -> int:
    """Run one program in this very process, so that `breakpoint()` works in it. Returns its exit status."""
    async with running(config, say) as kernel:
        program = asyncio.ensure_future(run_foreground(kernel, target, args))
        told = asyncio.ensure_future(until_told(kernel, say))
        await asyncio.wait({program, told}, return_when=asyncio.FIRST_COMPLETED)
        if program.done():
            told.cancel()
            return program.result()
        program.cancel()
        await asyncio.wait({program})
        return told.result() or INTERRUPTED


async def until_told(kernel: Kernel, say: Say) -> int:
    """Wait for SIGINT or SIGTERM (status 0), or a broken invariant (status PANIC)."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    waiter: asyncio.Future[Any] = asyncio.ensure_future(told.wait())
    panic: asyncio.Future[Any] = kernel.panicked
    try:
        await asyncio.wait([waiter, panic], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    if kernel.panicked.done():
        error = kernel.panicked.result()
        say(f"kernel panic: {error}")
        sys.excepthook(type(error), error, error.__traceback__)
        return PANIC
    say("stopping")
    return 0


def banner(kernel: Kernel, addresses: list[str]) -> list[str]:
    """What a user wants to know at the start."""
    lines = ["Symphony: serve programs, not prompts"]
    try:
        info: ModelInfo = kernel.model_info()
    except Exception:
        lines.append("  no worker yet: attach one with `lip worker attach tcp://HOST:PORT`")
    else:
        lines.append(f"  model    {', '.join(kernel.model_names)} ({info.dtype}, context {info.max_model_len})")
    for worker in kernel.workers:
        if worker.welcome is not None:
            w = worker.welcome
            n_tokens = w.n_pages * w.model.page_size
            lines.append(
                f"  worker   {worker.name}: {w.device}, {w.attention} attention, "
                f"{w.n_pages} pages of {w.model.page_size} tokens ({n_tokens} tokens)"
            )
    lines.extend(f"  listens  {address}" for address in addresses)
    lines.append(f"  pid {os.getpid()}; Ctrl-C ends it")
    return lines
