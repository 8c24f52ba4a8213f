"""One kernel in a process of its own, for what speaks to a kernel from outside."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdk.cli import app


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


@pytest.fixture
def write(tmp_path: Path):
    def write(source: str) -> str:
        path = tmp_path / "prog.py"
        path.write_text(source)
        return str(path)

    return write


@pytest.fixture
def lip(kernel_socket: Path):
    def lip(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["--socket", str(kernel_socket), *words], prog_name="lip")
        assert result.exit_code == code, result.output
        return result

    return lip


def one_line(result: Any) -> str:
    """Of standard error, which must hold nothing else."""
    assert result.stdout == ""
    assert result.stderr.startswith("lip: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)
