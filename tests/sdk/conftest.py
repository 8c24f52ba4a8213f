"""One kernel in a process of its own, for what speaks to a kernel from outside."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kernel_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The unix socket of a running kernel with a null worker."""
    path = tmp_path_factory.mktemp("kernel") / "k.sock"
    command = [sys.executable, "-m", "kernel", "--backend", "null", "--no-http", "--socket", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as kernel:
        assert kernel.stderr is not None
        said = []
        for line in kernel.stderr:
            said.append(line)
            if "Ctrl-C" in line:
                break
        try:
            assert path.exists(), "".join(said)
            yield path
            kernel.terminate()
            kernel.stderr.read()
            assert kernel.wait(20) == 0
        finally:
            kernel.kill()
    assert not path.exists()
