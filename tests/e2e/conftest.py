"""Real processes: kernels and workers as a user starts them, on this machine's loopback."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

HOUSE = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Running:
    """A process of ours, with what it has said so far."""

    def __init__(self, args: list[str], environ: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            args, cwd=HOUSE, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._said:
                self.lines.append(line.rstrip())
                self._said.notify_all()
        with self._said:
            self._said.notify_all()

    def wait_for(self, pattern: str, timeout: float = 60.0) -> re.Match[str]:
        """Wait until a line matches; an end of the process before that is a failure."""

        def seen() -> re.Match[str] | None:
            return next((m for line in self.lines if (m := re.search(pattern, line))), None)

        with self._said:
            self._said.wait_for(lambda: seen() or not self._reader.is_alive(), timeout)
            found = seen()
        assert found, f"never said {pattern!r}:\n" + "\n".join(self.lines)
        return found

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(30)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


class Kernel(Running):
    """A kernel that serves, with its port and socket."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.socket = directory / "run" / "kernel.sock"
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SYMPHONY_")}
        self.environ = environ | {"SYMPHONY_SOCKET": str(self.socket)}
        command = [sys.executable, "-m", "kernel", "--port", "0", "--socket", str(self.socket), *options]
        super().__init__(command, self.environ)
        self.url = self.wait_for(r"listens\s+(http://[\d.]+:\d+)", 120).group(1)
        self.wait_for(r"  ready ")
        self.http = httpx.Client(base_url=self.url, timeout=120)

    def lip(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """The `lip` command against this kernel."""
        return lip(*args, environ=self.environ, **options)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.http.close()
        return super().end(number)


def lip(*args: str, environ: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lip")), *args]
    options = {"timeout": 120, "cwd": HOUSE, "stdin": subprocess.DEVNULL} | options
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def start_kernel(tmp_path: Path) -> Iterator[Callable[..., Kernel]]:
    """Kernels that end with the test. Null workers, unless the options say otherwise."""
    running: list[Kernel] = []

    def start(*options: str) -> Kernel:
        directory = tmp_path / f"kernel{len(running)}"
        directory.mkdir()
        kernel = Kernel(directory, *options)
        running.append(kernel)
        return kernel

    yield start
    for kernel in running:
        kernel.end()


@pytest.fixture
def start_worker() -> Iterator[Callable[..., tuple[Running, str]]]:
    """Workers by themselves, each on a port of its own: (process, address)."""
    running: list[Running] = []

    def start(*options: str) -> tuple[Running, str]:
        address = f"tcp://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "gpuworker", "--listen", address, *options]
        worker = Running(command, dict(os.environ))
        running.append(worker)
        worker.wait_for("ready on", 120)
        return worker, address

    yield start
    for worker in running:
        worker.end()


@pytest.fixture(scope="session")
def kernel_class() -> type[Kernel]:
    """For tests that share one kernel: `kernel_class(directory, *options)`, ended with `.end()`."""
    return Kernel
