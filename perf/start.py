"""How long until something happens? `lip run` without a kernel to its first token, and what that is made of.

Every process is a fresh one and ends before the next begins; the files they read are in the page cache by then.
"""

import asyncio
import os
import pty
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from gpuworker.options import DEFAULT_MODEL
from kernel.config import Config
from kernel.local import LocalWorker, WorkerFailed
from perf.harness import Failed, Findings
from perf.machine import HOUSE
from sdk.launch import environment

LIP = (sys.executable, "-c", "from sdk.cli import main; main()")  # what the console script `lip` is
KERNEL = (sys.executable, "-m", "kernel")
READY = b"Ctrl-C ends it"  # in the last line of the kernel's banner


def measure(quick: bool = False, model: str = DEFAULT_MODEL) -> Findings:
    found = Findings()
    n = 1 if quick else 5
    directory = Path(tempfile.mkdtemp(prefix="perf-"))
    try:
        runs = [lip_run(directory, model) for _ in range(n)]
        found.add("lip run: to its first token", "s", [first for first, _ in runs])
        found.add("lip run: to its exit", "s", [whole for _, whole in runs])
        found.add("worker: to ready", "s", repeat(n, lambda: worker(directory, Config(model=model))))
        found.add("null worker: to ready", "s", repeat(n, lambda: worker(directory, Config(backend="null"))))
        found.add(
            "kernel without a worker: to its banner", "s", repeat(n, lambda: kernel(directory, "--no-local-worker"))
        )
        found.add(
            "kernel with a null worker: to its banner", "s", repeat(n, lambda: kernel(directory, "--backend=null"))
        )
        for package in ("torch", "kernel.boot", "sdk.cli"):
            found.add(f"python -c 'import {package}'", "s", repeat(n, partial(importing, package)))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return found


def repeat(n: int, once: Callable[[], float]) -> list[float]:
    return [once() for _ in range(n)]


def lip_run(directory: Path, model: str) -> tuple[float, float]:
    """Seconds until a program's first token is on the terminal, and until `lip` has ended."""
    screen, terminal = pty.openpty()
    words = ("--socket", str(directory / "nobody.sock"), "run", "programs/parallel.py", "--n", "1", "--max-tokens", "1")
    began = time.perf_counter()
    child = spawn((*LIP, *words, f"--kernel-arg=--model={model}"), stdout=terminal)
    os.close(terminal)
    try:
        read(screen)
        first = time.perf_counter() - began
        while read(screen):
            pass
    finally:
        os.close(screen)
    if child.wait() != 0:
        raise Failed(f"`lip run` ended with status {child.returncode}")
    return first, time.perf_counter() - began


def read(screen: int) -> bytes:
    """What was written; nothing once the other end is closed, which Linux reports as an error."""
    with suppress(OSError):
        return os.read(screen, 4096)
    return b""


def worker(directory: Path, config: Config) -> float:
    """Seconds until a worker process of the kernel's kind is ready."""

    async def go() -> float:
        began = time.perf_counter()
        started = await LocalWorker.start(directory, config.worker_options())
        taken = time.perf_counter() - began
        await started.end()
        return taken

    try:
        return asyncio.run(go())
    except WorkerFailed as e:
        raise Failed(str(e)) from None


def kernel(directory: Path, *options: str) -> float:
    """Seconds until `python -m kernel` listens."""
    began = time.perf_counter()
    child = spawn((*KERNEL, "--socket", str(directory / "kernel.sock"), "--port=0", *options), stderr=subprocess.PIPE)
    assert child.stderr is not None
    with child.stderr:
        said = next((line for line in child.stderr if READY in line), None)
        taken = time.perf_counter() - began
        child.terminate()
        child.stderr.read()
    child.wait()
    if said is None:
        raise Failed(f"the kernel did not start; it ended with status {child.returncode}")
    return taken


def importing(package: str) -> float:
    began = time.perf_counter()
    if spawn((sys.executable, "-c", f"import {package}")).wait() != 0:
        raise Failed(f"{package} cannot be imported")
    return time.perf_counter() - began


def spawn(
    words: Sequence[str], stdout: int = subprocess.DEVNULL, stderr: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    variables = environment() | {"TERM": "xterm"}
    return subprocess.Popen(words, cwd=HOUSE, env=variables, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
