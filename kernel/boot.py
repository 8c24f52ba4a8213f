"""Boot order, as a list; and the way down again.

`serve` is `python -m kernel`, `run_program` is `python -m kernel run FILE`. Both start the same kernel; the
latter opens no door to the outside and ends with its program.
"""

import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kernel import (
    dispatch,
    stepper,
    sys_advice,
    sys_edit,
    sys_file,
    sys_ipc,
    sys_lock,
    sys_model,
    sys_process,
    sys_rights,
    sys_sync,
)
from kernel.config import Config
from kernel.core import AttachError, Kernel
from kernel.disk import DirectoryInUse, RealDisk
from kernel.durable import Durable
from kernel.foreground import check_program, run_foreground
from kernel.frontdoor.server import FrontDoorError, check_socket, serve_http, serve_socket
from kernel.guard import guard
from kernel.heart import heart
from kernel.link import StreamTransport
from kernel.loader import LoadError
from kernel.loading import Loading
from kernel.local import WorkerFailed
from kernel.rundir import RunDirectory, Standing
from kernel.signals import Signals
from kvfs.store.ledger import Ledger
from kvfs.store.store import Store
from sdk.abi.errors import NoDevice
from sdk.abi.values import ModelInfo

# Importing them registers their handlers.
SYSTEM_CALLS = (sys_advice, sys_edit, sys_file, sys_ipc, sys_lock, sys_model, sys_process, sys_rights, sys_sync)
SWITCH_S = 0.0005  # for how long a thread that some program has started may keep the interpreter from the kernel
COLLECT = (10_000, 50, 50)  # objects made, looks at the newest, looks at those that outlived one
GRACE_S = 5.0  # for programs to unwind when the kernel stops
INTERRUPTED = 130  # exit status after a signal, as a shell reports SIGINT
PANIC = 70  # exit status after a broken invariant (sysexits.h: internal software error)

Say = Callable[[str], None]

log = logging.getLogger(__name__)


class BootError(Exception):
    """The kernel could not start; the text is one line."""


def check_house() -> None:
    """Refuse to run beside somebody else's modules: `kernel` and `sdk` are names that others use too."""
    house = Path(__file__).resolve().parent.parent
    for name in ("sdk", "kvfs", "gpuworker"):
        found = Path(sys.modules[name].__file__ or "").resolve().parent.parent
        if found != house:
            raise BootError(f"module {name!r} comes from {found}, not from {house}: start from the checkout")


def calm_collector() -> None:
    """Have the garbage collector look at what is new, and seldom at all there is: with ten thousand programs a look at
    everything stops the kernel for 40 ms, and each batch makes enough objects for several looks at the newest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[tuple[Kernel, RunDirectory]]:
    """A kernel without workers yet, and the directory for the sockets of its own. Leaves nothing behind.

    Raises BootError, also for what workers and doors raise in its `with`."""
    check_house()
    missing = dispatch.missing()
    if missing:
        raise BootError(f"system calls without a handler: {', '.join(missing)}")
    loop = asyncio.get_running_loop()
    stepper.install(loop, config.max_threads)  # tasks of programs become their threads
    sys.setswitchinterval(SWITCH_S)
    calm_collector()
    kernel = Kernel(config, dispatch.make_door, StreamTransport())
    keep_files(kernel)
    directory = RunDirectory(config.run_directory) if config.run_directory is not None else RunDirectory.create()
    if config.step_soft_ms:
        who = partial(stepper.current.get, None)
        guard.start(loop, config.step_soft_ms / 1e3, config.step_hard_ms / 1e3, who=who, on_turn=heart.beat)
    try:
        yield kernel, directory
    except (AttachError, WorkerFailed, FrontDoorError) as e:
        raise BootError(str(e)) from None
    finally:
        try:
            await kernel.stop(GRACE_S)
        finally:
            guard.stop()
            heart.stop()
            if config.run_directory is None:
                directory.remove()


def keep_files(kernel: Kernel) -> None:
    """Have what `--kv-dir` has, and keep named files there. Raises BootError."""
    config = kernel.config
    if config.kv_dir is None:
        return
    n_bytes = None if config.kv_dir_size is None else int(config.kv_dir_size * 2**30)
    try:
        disk = RealDisk(config.kv_dir, own_pid(config))
        store = Store(disk, n_bytes)
    except DirectoryInUse as e:
        raise BootError(str(e)) from None
    except OSError as e:
        raise BootError(f"--kv-dir {config.kv_dir} cannot be used: {e.strerror or e}") from None
    found = store.recovered
    if found.n_lost:
        text = (
            "the journal in %s is not whole: %d files without a name are kept as lost-*.kv; `lip cp` brings them back"
        )
        log.error(text, config.kv_dir, found.n_lost)
    elif found.n_damaged:
        log.error("the journal in %s is damaged: some changes of names are lost", config.kv_dir)
    elif found.n_torn or found.n_removed:
        log.info("%s: dropped %d bytes and %d files never acknowledged", config.kv_dir, found.n_torn, found.n_removed)
    wall_s = time.time() - kernel.now()  # noqa: TID251  (what is on disk must mean something to the next kernel)
    kernel.durable = Durable(kernel.fleet, disk, store, Ledger(kernel.fs, store.tree, wall_s), kernel.panic)
    loading = Loading(kernel.fleet, kernel.durable, repairs=config.kv_repair == "recompute")
    kernel.fleet.bring, kernel.advisor.fetch = loading.bring, loading.fetch


async def attach_workers(kernel: Kernel, directory: RunDirectory, say: Say) -> None:
    """Start our own worker and attach those that were named, or take over those of the kernel before this one.

    Raises WorkerFailed, AttachError; the latter not for the workers of another kernel, who may be gone."""
    config, before = kernel.config, directory.kept(Standing)
    if config.local_worker:
        if before is None:
            say(f"starting a worker for {config.local_model}")
        try:
            await kernel.fleet.start_local(directory.path)
        except AttachError:
            if before is None:
                raise
            await kernel.fleet.start_local(directory.path)  # it was no good any more, and is gone now
    for address in config.worker if before is None else before.workers:
        say(f"attaching {address}")
        try:
            await kernel.attach(address)
        except AttachError as e:
            if before is None:
                raise
            say(f"kernel: {e}; it is looked for")
            kernel.fleet.recovery.seek(address)


async def serve(config: Config, say: Say) -> int:
    """Run until a signal. Returns the exit status.

    The doors are tried first: a port or socket that is taken is known before a model is loaded, and whoever asks on the
    port meanwhile is told 503. The socket for `lip` is opened last: there the kernel is ready."""
    with Signals(config.parent) as signals:
        async with running(config) as (kernel, directory), AsyncExitStack() as doors:
            check_socket(config.socket)
            standing = directory.kept(Standing) or Standing(config.port, config.worker)
            addresses = [f"unix:{config.socket}"]
            if config.http:
                http = await serve_http(kernel, config.host, standing.port)
                doors.push_async_callback(http.stop)
                addresses.append(http.address)
                standing = Standing(http.port, standing.workers)
            await attach_workers(kernel, directory, say)
            directory.keep(standing)
            for line in banner(kernel, addresses):
                say(line)
            doors.push_async_callback((await serve_socket(kernel, config.socket)).stop)
            if config.beat_fd is not None:
                heart.start(config.beat_fd, kernel.loop)
            if config.parent is None or config.beat_fd is not None:
                say(f"  ready    pid {own_pid(config)}; Ctrl-C ends it")
            status = await until_told(kernel, signals, say)
            if status == PANIC and config.beat_fd is not None:
                os._exit(PANIC)  # the next kernel takes over what this one cannot be trusted to put in order
            heart.end()
            kernel.stopping = True
            return status


async def run_program(config: Config, target: str, words: list[str], say: Say) -> int:
    """Run one program in this very process, so that `breakpoint()` works in it. Returns its exit status."""
    try:
        check_program(target, words)
    except LoadError as e:
        raise BootError(str(e)) from None
    with Signals(config.parent) as signals:
        async with running(config) as (kernel, directory):
            await attach_workers(kernel, directory, say)
            program = asyncio.ensure_future(run_foreground(kernel, target, words))
            told = asyncio.ensure_future(until_told(kernel, signals, say))
            await asyncio.wait({program, told}, return_when=asyncio.FIRST_COMPLETED)
            if program.done():
                told.cancel()
                return program.result()
            program.cancel()
            await asyncio.wait({program})
            return told.result() or INTERRUPTED


def own_pid(config: Config) -> int:
    """The process to stop when this kernel is to end: it, or its supervisor."""
    return os.getpid() if config.beat_fd is None or config.parent is None else config.parent


async def until_told(kernel: Kernel, signals: Signals, say: Say) -> int:
    """Wait for a signal (status 0), or a broken invariant (status PANIC)."""
    signals.running = True
    waiter: asyncio.Future[Any] = asyncio.ensure_future(signals.told.wait())
    panic: asyncio.Future[Any] = kernel.panicked
    try:
        await asyncio.wait([waiter, panic], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
    if panic.done():
        error = panic.result()
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
    except NoDevice:
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
    return lines
