"""A kernel that hangs or dies is followed by another one, on the same doors and with the same workers."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

pytestmark = pytest.mark.e2e

ENDLESS = """
import collections, itertools

async def main():
    hold()

def hold():
    collections.deque(itertools.repeat(0), maxlen=0)  # C code that never looks for signals
"""

PANIC = """
import gc
from kernel.core import Kernel

async def main():
    next(o for o in gc.get_objects() if isinstance(o, Kernel)).panic(RuntimeError("on purpose"))
"""


@pytest.fixture(autouse=True)
def tmp(tmp_path, monkeypatch):
    """Whatever a kernel leaves in the directory for temporary files can be seen there."""
    path = tmp_path / "tmp"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


@pytest.fixture
def program(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def family(kernel):
    """The kernel, and its worker."""
    found = psutil.Process(kernel.process.pid).children(recursive=True)
    (kernel,) = [p for p in found if "kernel" in p.cmdline()]
    (worker,) = [p for p in found if "gpuworker" in p.cmdline()]
    return kernel, worker


def wait_restarted(kernel, times=1):
    """Until it is ready again, and healthy on its old port."""
    until = time.monotonic() + 30
    while sum("  ready " in line for line in kernel.lines) <= times:
        assert time.monotonic() < until, "\n".join(kernel.lines)
    while kernel.http.get("/healthz").status_code != 200:
        assert time.monotonic() < until, "\n".join(kernel.lines)


def complete(kernel):
    body = {"model": "null", "prompt": "hello", "max_tokens": 4, "ignore_eos": True, "temperature": 0}
    return kernel.http.post("/v1/completions", json=body).json()["choices"][0]["text"]


def gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=30)
    return [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def test_an_endless_call_into_c(start_kernel, program, tmp):
    kernel = start_kernel("--backend", "null", "--served-model-name", "null")
    answer = complete(kernel)
    old, worker = family(kernel)
    path = program("endless.py", ENDLESS)
    done = kernel.lip("run", path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    told = "lip: the kernel was restarted, and the program has ended with it: it did not answer for "
    assert re.fullmatch(told + rf"\d+\.\d s: held by {path}:8 \(in hold\)", line), line
    kernel.wait_for(f"supervisor: the kernel is restarted: .*held by {path}:8")
    wait_restarted(kernel)
    new, same = family(kernel)
    assert (new.pid != old.pid, same.pid) == (True, worker.pid)
    assert complete(kernel) == answer
    assert kernel.lip("ps").returncode == 0
    assert kernel.end() == 0
    assert gone([old, new, worker])
    assert not kernel.socket.exists()
    assert list(tmp.iterdir()) == []


@pytest.mark.parametrize("how", ["kill", "stop", "panic"])
def test_a_kernel_that_dies(start_kernel, program, how):
    kernel = start_kernel("--backend", "null", "--served-model-name", "null")
    old, worker = family(kernel)
    if how == "panic":
        kernel.lip("run", program("panic.py", PANIC))
        kernel.wait_for("ended with status 70")
    else:
        old.send_signal(signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    wait_restarted(kernel)
    new, same = family(kernel)
    assert (new.pid != old.pid, same.pid) == (True, worker.pid)
    assert complete(kernel)


def test_attached_workers_are_attached_again(start_kernel, start_worker):
    (_, first), (two, second) = (start_worker("--backend", "null") for _ in range(2))
    kernel = start_kernel("--no-local-worker", "--worker", first)
    assert kernel.lip("worker", "attach", second).returncode == 0
    psutil.Process(kernel.process.pid).children()[0].kill()
    wait_restarted(kernel)
    listed = kernel.lip("worker", "list").stdout
    assert first in listed
    assert second in listed
    assert two.process.poll() is None


def test_a_worker_that_has_died_with_the_kernel(start_kernel):
    kernel = start_kernel("--backend", "null", "--served-model-name", "null")
    old, worker = family(kernel)
    old.suspend()
    worker.kill()
    old.kill()
    wait_restarted(kernel)
    assert family(kernel)[1].pid != worker.pid
    assert complete(kernel)


def test_all_end_with_the_supervisor(start_kernel):
    kernel = start_kernel("--backend", "null")
    processes = family(kernel)
    kernel.process.kill()
    assert gone(processes)


def test_what_a_killed_supervisor_has_left_is_removed_by_the_next(start_kernel, tmp):
    first = start_kernel("--backend", "null")
    processes = family(first)
    first.process.kill()
    assert gone(processes)
    left = set(tmp.iterdir())
    assert left
    start_kernel("--backend", "null")
    assert not left & set(tmp.iterdir())


def test_without_a_supervisor(start_kernel):
    kernel = start_kernel("--backend", "null", "--no-supervisor")
    (worker,) = psutil.Process(kernel.process.pid).children(recursive=True)
    assert "gpuworker" in worker.cmdline()
    assert httpx.get(f"{kernel.url}/healthz").status_code == 200


def test_a_second_kernel_is_refused_before_it_starts_anything(start_kernel):
    kernel = start_kernel("--backend", "null")
    command = [sys.executable, "-m", "kernel", "--backend", "null", "--port", "0", "--socket", str(kernel.socket)]
    done = subprocess.run(
        command, cwd=Path(__file__).resolve().parents[2], env=dict(os.environ), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert str(kernel.socket) in line
