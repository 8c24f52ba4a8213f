"""`lip trace`, against a kernel in another process: the file, how a recording ends, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdk.cli import app

WAIT = """
from sdk.channel import Channel
async def main() -> None:
    await Channel("never").recv()
"""


@pytest.fixture
def lip(kernel_socket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def lip(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["--socket", str(kernel_socket), *words], prog_name="lip")
        assert result.exit_code == code, result.output
        return result

    return lip


@pytest.fixture
def waiting(lip, tmp_path: Path):
    """The pid of a program that waits."""
    (tmp_path / "prog.py").write_text(WAIT)
    pid = lip("run", "prog.py", "--detach").stdout.strip()
    yield pid
    lip("kill", pid)


def groups(path: Path) -> set[str]:
    return {e["args"]["name"] for e in json.loads(path.read_bytes())["traceEvents"] if e["name"] == "process_name"}


def test_one_program(lip, waiting: str, tmp_path: Path) -> None:
    found = lip("trace", waiting, "--seconds", "0.05")
    path = f"trace-{waiting}.json"
    assert found.stdout.startswith(f"{path} (0.0 MB): open it at https://ui.perfetto.dev")
    assert found.stderr == f"recording process {waiting} for 0.05 s; Ctrl-C ends it earlier\n"
    assert "prog" in groups(tmp_path / path)


def test_all_programs_to_a_file_of_ones_own(lip, waiting: str, tmp_path: Path) -> None:
    lip("trace", "--all", "--seconds", "0.05", "-o", "now.json")
    lip("trace", "--all", "--seconds", "0.05")
    assert groups(tmp_path / "now.json") == groups(tmp_path / "trace-all.json") == {"prog"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to record: lip trace PID, or lip trace --all"),
        (["1", "--all"], "say what to record: lip trace PID, or lip trace --all"),
        (["99999"], "no process 99999 is running"),
        (["--all", "--seconds", "0"], "a recording takes more than 0 seconds and no more than 3600"),
        (["--all", "-o", "no/such/directory"], "cannot write no/such/directory: No such file or directory"),
    ],
)
def test_what_is_refused_is_one_line_and_touches_no_file(lip, tmp_path: Path, words, message) -> None:
    (tmp_path / "trace-99999.json").write_text("an older one")
    result = lip("trace", *words, code=2)
    assert result.stdout == ""
    assert result.stderr == f"lip: {message}\n"
    assert (tmp_path / "trace-99999.json").read_text() == "an older one"
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_kernel(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--socket", str(tmp_path / "k.sock"), "trace", "--all"])
    assert (result.exit_code, result.stderr) == (2, "lip: no kernel is running; start one with `python -m kernel`\n")


@pytest.mark.e2e
def test_ctrl_c_ends_the_recording_and_not_the_file(kernel_socket: Path, waiting: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from sdk.cli import main; main()", "trace", "--all", "--seconds", "600"]
    environ = os.environ | {"SYMPHONY_SOCKET": str(kernel_socket)}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environ, **pipes) as lip:
        assert lip.stderr is not None
        assert lip.stderr.readline().startswith("recording all programs for 600 s")
        lip.send_signal(signal.SIGINT)
        out, err = lip.communicate(None, 30)
    assert (lip.returncode, err) == (0, "")
    assert out.startswith("trace-all.json")
    assert groups(tmp_path / "trace-all.json") == {"prog"}
