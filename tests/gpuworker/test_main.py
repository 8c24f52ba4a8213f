"""`python -m gpuworker` as a process: what it prints, when it ends, with which code."""

import gc
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuworker import wire
from gpuworker.__main__ import load, long_lived, main
from gpuworker.options import Options
from tests.gpuworker.connection import Connection

PATIENCE_S = 60


class Process:
    """A worker and the pipe it reports to."""

    def __init__(self, *args: str) -> None:
        self.reports, theirs = os.pipe()
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "gpuworker", "--ready-fd", str(theirs), *args],
            pass_fds=[theirs],
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(theirs)

    def report(self) -> dict[str, Any]:
        """The line on the ready descriptor; it comes when the worker is ready or has failed."""
        with os.fdopen(self.reports, closefd=False) as f:
            facts: dict[str, Any] = json.loads(f.readline())
        return facts

    def end(self) -> tuple[int, str]:
        """Waits for its end: exit code and all it said."""
        _, said = self.popen.communicate(timeout=PATIENCE_S)
        return self.popen.returncode, said

    def close(self) -> None:
        os.close(self.reports)
        self.popen.kill()
        self.popen.communicate()


@contextmanager
def worker(*args: str) -> Iterator[Process]:
    process = Process(*args)
    try:
        yield process
    finally:
        process.close()


@contextmanager
def attached(address: str) -> Iterator[Connection]:
    kernel = Connection(address)
    try:
        kernel.greet(wire.Welcome)
        yield kernel
    finally:
        kernel.close()


def run(*args: str) -> "subprocess.CompletedProcess[str]":
    """A worker that ends by itself, with nobody waiting on a descriptor."""
    command = [sys.executable, "-m", "gpuworker", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def null(tmp_path: Path, *args: str) -> list[str]:
    return ["--backend", "null", "--listen", f"ipc://{tmp_path}/w", *args]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_with_a_goodbye(tmp_path: Path, number: signal.Signals) -> None:
    with worker(*null(tmp_path, "--name", "w7", "--num-pages", "99")) as process:
        facts = process.report()
        assert (facts["worker"], facts["os_pid"]) == ("w7", process.popen.pid)
        with attached(facts["address"]) as kernel:
            process.popen.send_signal(number)
            kernel.hear(wire.Bye)
        code, said = process.end()
        assert code == 0
        assert f"ready on ipc://{tmp_path}/w: null, none, 99 pages of 16 tokens, 99 in main memory\n" in said
        assert "Traceback" not in said


def test_a_long_step_does_not_hold_it(tmp_path: Path) -> None:
    """A step of an hour, and a signal in the middle of it."""
    with worker(*null(tmp_path, "--step-time-us", str(3600 * 10**6))) as process:
        with attached(process.report()["address"]) as kernel:
            small = wire.Batch(wire.BatchHead(1, [], [wire.Row(1, 0, 0, 0)]), *(array("I") for _ in range(4)))
            kernel.tell(small)
            kernel.tell(wire.Ping(1))
            kernel.hear(wire.Pong)
            process.popen.terminate()
            kernel.hear(wire.Bye)
        assert process.end()[0] == 0


def test_it_ends_when_its_kernel_leaves(tmp_path: Path) -> None:
    with (
        worker(*null(tmp_path, "--parent", str(os.getpid()))) as process,
        attached(process.report()["address"]) as kernel,
    ):
        kernel.tell(wire.Detach("done"))
        assert process.end()[0] == 0


def test_a_kernel_that_was_killed_finds_its_worker_again(tmp_path: Path) -> None:
    """It says nothing when it goes, and comes back under its name at once."""
    with worker(*null(tmp_path, "--parent", str(os.getpid()))) as process:
        address = process.report()["address"]
        for _ in range(3):
            with attached(address) as kernel:
                kernel.tell(wire.Ping(1))
                kernel.hear(wire.Pong)
        assert process.popen.poll() is None


def test_without_a_parent_it_waits_for_the_next_kernel(tmp_path: Path) -> None:
    with worker(*null(tmp_path)) as process:
        address = process.report()["address"]
        for _ in range(2):
            with attached(address) as kernel:
                kernel.tell(wire.Detach("done"))
                kernel.hear(wire.Bye)
        process.popen.terminate()
        assert process.end()[0] == 0


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """A shell starts it and is killed; nothing tells the worker but the loss."""
    reports, theirs = os.pipe()
    command = [sys.executable, "-m", "gpuworker", *null(tmp_path), "--ready-fd", str(theirs)]
    shell = subprocess.Popen(
        ["bash", "-c", '"$@" --parent $$ & wait', "bash", *command],
        pass_fds=[theirs],
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    with os.fdopen(reports) as f:
        assert "address" in json.loads(f.readline())
    shell.kill()
    shell.communicate(timeout=PATIENCE_S)  # until the worker has closed stderr, which is its end …
    assert not (tmp_path / "w").exists()  # … and an orderly one


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--listen", "nonsense"], "'nonsense' is no address"),
        (["--listen", "ipc:///nowhere/w"], "the directory does not exist"),
        (["--backend", "torch", "--device", "tpu"], "use auto, cpu, cuda or cuda:N"),
        (["--backend", "torch", "--model", "/nowhere"], "/nowhere: no such file"),
    ],
    ids=["address", "directory", "device", "model"],
)
def test_what_it_cannot_do_is_one_line_and_code_2(tmp_path: Path, args: list[str], complaint: str) -> None:
    """It is reported to who waits for it, and then it is theirs to say."""
    with worker(*null(tmp_path), *args) as process:
        assert complaint in process.report()["error"]
        code, said = process.end()
    assert code == 2
    assert "Traceback" not in said
    assert complaint not in said


def test_a_port_in_use_is_known_before_a_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("--listen", f"tcp://127.0.0.1:{port}")
    assert done.returncode == 2
    assert done.stderr == f"gpuworker: cannot listen on tcp://127.0.0.1:{port}: the address is in use\n"


def test_unknown_options_are_complained_about(tmp_path: Path) -> None:
    for args in (["--frobnicate"], null(tmp_path, "--num-pages", "0"), null(tmp_path, "--backend", "tpu"), []):
        done = run(*args)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "Error" in done.stderr


def test_a_descriptor_that_is_not_there(tmp_path: Path) -> None:
    done = run(*null(tmp_path), "--ready-fd", "77")
    assert (done.returncode, done.stderr) == (2, "gpuworker: --ready-fd 77: not an open file of this process\n")


def test_an_open_door_is_warned_of() -> None:
    with worker("--backend", "null", "--listen", "tcp://0.0.0.0:*") as process:
        assert process.report()["address"].startswith("tcp://0.0.0.0:")
        process.popen.terminate()
        code, said = process.end()
    assert code == 0
    assert "neither encrypted nor authenticated" in said


@pytest.mark.parametrize(
    ("options", "n_host_pages"),
    [
        (Options(num_pages=9), 9),
        (Options(num_pages=9, swap_space=0.001), 9),
        (Options(num_pages=9, swap_space=0), 0),
        (Options(num_pages=9, swap_space=0, num_host_pages=7), 7),
        (Options(num_pages=9, num_host_pages=0), 0),
    ],
)
def test_the_host_pages_of_a_null_worker(options: Options, n_host_pages: int) -> None:
    assert load(replace(options, backend="null")).info().n_host_pages == n_host_pages


def test_every_option_can_be_given() -> None:
    """A field of Options that no flag sets would be a KeyError at each start."""
    assert inspect.signature(main).parameters.keys() >= Options.__dataclass_fields__.keys()


def test_the_options_of_a_null_worker_reach_it(tmp_path: Path) -> None:
    args = ("--num-pages", "9", "--num-host-pages", "5", "--max-num-seqs", "3", "--step-time-us", "0.5")
    costs = ("--row-time-us", "1", "--token-time-us", "1", "--context-time-us", "0.1")
    with worker(*null(tmp_path, *args, *costs)) as process, attached(process.report()["address"]) as kernel:
        welcome = kernel.greet(wire.Welcome)
        assert (welcome.n_pages, welcome.n_host_pages, welcome.max_rows) == (9, 5, 3)


def test_a_loaded_worker_is_not_searched_for_garbage() -> None:
    before = gc.get_freeze_count()
    try:
        with long_lived():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


def test_a_null_worker_imports_no_tensors() -> None:
    script = (
        "import sys, gpuworker.__main__ as m; from gpuworker.options import Options;"
        "m.load(Options(backend='null')).assets(); print([n for n in ('torch', 'numpy', 'psutil') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
