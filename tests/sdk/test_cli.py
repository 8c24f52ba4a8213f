"""`lip`, against a kernel in another process: in this process where that will do, as a real command where not."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from sdk.cli import app
from tests.sdk.conftest import one_line

LIP = [sys.executable, "-c", "from sdk.cli import main; main()"]

COUNT = '''
from sdk.channel import emit
async def main(n: int = 3, fail: bool = False) -> list[int]:
    """Counts to n.

    More about it.
    """
    for i in range(n):
        await emit(f"{i} ")
    if fail:
        raise ValueError("as you wish")
    return list(range(n))
'''
ASK = """
from sdk.channel import input
async def main(n: int = 2) -> list[str]:
    return [await input(f"{i}? ") for i in range(n)]
"""
WAIT = """
from sdk.channel import Channel, emit
async def main() -> None:
    await emit("waiting")
    await Channel("never").recv()
"""
STREAMS = """
from sdk.channel import emit
async def main() -> None:
    for word in ("one ", "two "):
        await emit(word, stream="left")
        await emit(word.upper(), stream="right")
"""


# --- run --------------------------------------------------------------------------------------------------------


def test_text_then_the_result(lip, write) -> None:
    result = lip("run", write(COUNT), "--n", "2")
    assert result.stdout == "0 1 \n[0,1]\n"
    assert result.stderr == ""


def test_json_prints_the_result_alone(lip, write) -> None:
    assert lip("run", write(COUNT), "--json").stdout == "[0,1,2]\n"
    assert lip("run", "--json", write(COUNT), "--n=1").stdout == "[0]\n"
    assert lip("run", write(STREAMS), "--json").stdout == "null\n"


def test_streams_off_a_terminal(lip, write) -> None:
    assert lip("run", write(STREAMS)).stdout == "--- left ---\none two \n--- right ---\nONE TWO \n"


def test_installed_programs_run_by_name(lip) -> None:
    request = json.dumps({"prompt": "x", "max_tokens": 3, "model": "m"})
    result = lip("run", "completions", "--request", request, "--json")
    assert json.loads(result.stdout)["usage"]["completion_tokens"] == 3


def test_a_program_has_its_own_help(lip, write) -> None:
    for words in (("--help",), ("-h",), ("--n", "3", "--help")):
        text = lip("run", write(COUNT), *words).stdout
        assert "Counts to n.\n\nMore about it." in text
        assert re.search(r"--n +int +default 3", text)
        assert re.search(r"--fail +bool +default false", text)


def test_run_itself_has_help_too(lip) -> None:
    for words in (("run", "--help"), ("--help",), ("worker", "--help")):
        assert "Usage: lip" in lip(*words).stdout


def test_help_has_a_whole_line_for_each_command(lip) -> None:
    lines = lip("--help").stdout.splitlines()
    shown = {line.split()[0]: line for line in lines if re.match("  [a-z]", line)}
    assert sorted(shown) == sorted(get_command(app).commands)
    for name, line in shown.items():
        assert re.fullmatch(rf"  {name} +[A-Z].*\.", line), "it ends where its sentence does"
        assert "..." not in line


def test_a_failing_program_is_its_frames_and_one_line(lip, write) -> None:
    result = lip("run", write(COUNT), "--fail", "--n", "1", code=1)
    assert result.stdout == "0 \n"
    assert 'raise ValueError("as you wish")' in result.stderr
    assert "kernel/" not in result.stderr
    assert result.stderr.endswith("\nlip: ValueError: as you wish\n")


def test_the_exit_status_is_the_programs(lip, write) -> None:
    source = "from sdk import process\nasync def main(code: int): await process.exit(code)\n"
    lip("run", write(source), "--code", "7", code=7)
    lip("run", write(source), "--code", "0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.py"], "there is no file"),
        (["nix"], "no program 'nix' is installed"),
        (["PROG", "--n", "x"], "parameter n: expected int, got 'x'"),
        (["PROG", "--m", "1"], "there is no parameter m"),
        (["PROG", "7"], "'7' was not expected"),
        (["--n", "3", "PROG"], "--n comes before the program"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(lip, write, words, message) -> None:
    path = write(COUNT)
    assert message in one_line(lip("run", *(path if word == "PROG" else word for word in words), code=2))


@pytest.mark.parametrize(
    ("source", "message"),
    [("x = 1\n", "has no main"), ("async def main(:\n", ":1: SyntaxError"), ("1/0\n", ":1: ZeroDivisionError")],
)
def test_a_broken_program_is_one_line_and_status_2(lip, write, source, message) -> None:
    assert message in one_line(lip("run", write(source), code=2))


def test_detach_ps_kill(lip, write) -> None:
    pid = lip("run", "--detach", write(WAIT)).stdout.strip()
    shown = [line.split() for line in lip("ps").stdout.splitlines()]
    assert shown[0][:5] == ["PID", "PPID", "STATE", "TENANT", "PRIO"]
    (row,) = [line for line in shown if line[0] == pid]
    assert (row[1], row[3:5], row[-1]) == ("-", ["local", "0"], "prog")
    assert lip("kill", pid).stdout == ""
    assert "no process" in one_line(lip("kill", "99999", code=2))


def test_priority_and_tenant(lip, write) -> None:
    pid = int(lip("run", "--detach", "--priority", "7", "--tenant", "acme", write(WAIT)).stdout)
    (shown,) = [p for p in json.loads(lip("ps", "--json").stdout) if p["pid"] == pid]
    assert (shown["priority"], shown["tenant"], shown["usage"]["n_prompt_tokens"]) == (7, "acme", 0)
    lip("kill", str(pid))
    source = "from sdk import process\nasync def main(): return await process.priority()\n"
    assert lip("run", "--priority", "-3", write(source)).stdout == "-3\n"


# --- looking after ----------------------------------------------------------------------------------------------


def test_programs(lip) -> None:
    assert re.search(r"^completions +OpenAI's", lip("programs").stdout, re.MULTILINE)


def test_workers(lip) -> None:
    (row,) = lip("worker", "list").stdout.splitlines()[1:]
    address = row.split()[0]
    assert row.split()[1:3] == ["ready", "none"]
    assert "is attached already" in one_line(lip("worker", "attach", address, code=2))
    assert "no worker tcp://nix is attached" in one_line(lip("worker", "detach", "tcp://nix", code=2))


@pytest.mark.parametrize("words", [["ps"], ["kill", "1"], ["worker", "list"], ["programs"]])
def test_without_a_kernel(tmp_path: Path, words: list[str]) -> None:
    result = CliRunner().invoke(app, ["--socket", str(tmp_path / "k.sock"), *words])
    assert result.exit_code == 2
    assert one_line(result) == "lip: no kernel is running; start one with `python -m kernel`\n"


# --- as a real command ------------------------------------------------------------------------------------------


def start(kernel_socket: Path, *words: str, **options: Any) -> "subprocess.Popen[str]":
    environ = os.environ | {"SYMPHONY_SOCKET": str(kernel_socket)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([*LIP, *words], text=True, env=environ, **pipes)


@pytest.mark.e2e
def test_standard_input_answers_questions(kernel_socket: Path, write, tmp_path: Path) -> None:
    with start(kernel_socket, "run", write(ASK)) as lip:
        out, err = lip.communicate("Ada\nBob\n", 30)
    assert (lip.returncode, out, err) == (0, '0? 1? ["Ada","Bob"]\n', "")
    (tmp_path / "lines").write_text("Ada\nno newline")
    with (tmp_path / "lines").open() as lines, start(kernel_socket, "run", write(ASK), "--json", stdin=lines) as lip:
        out, err = lip.communicate(None, 30)
    assert (lip.returncode, out, err) == (0, '["Ada","no newline"]\n', "0? 1? ")


@pytest.mark.e2e
def test_the_end_of_input_reaches_the_program(kernel_socket: Path, write) -> None:
    with start(kernel_socket, "run", write(ASK)) as lip:
        _, err = lip.communicate("Ada\n", 30)
    assert lip.returncode == 1
    assert err.endswith("lip: EPIPE: the client has no more input\n")


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_program(kernel_socket: Path, write, number: signal.Signals) -> None:
    with start(kernel_socket, "run", write(WAIT)) as lip:
        assert lip.stdout is not None
        assert lip.stdout.read(7) == "waiting"
        lip.send_signal(number)
        assert lip.communicate(None, 30) == ("\n", "")
    assert lip.returncode == 130
    shown = CliRunner().invoke(app, ["--socket", str(kernel_socket), "ps"]).stdout
    assert "prog" not in shown


@pytest.mark.e2e
def test_a_reader_that_leaves_is_no_traceback(kernel_socket: Path, write) -> None:
    with start(kernel_socket, "run", write(COUNT), "--n", "20000") as lip:
        assert lip.stdout is not None
        assert lip.stderr is not None
        lip.stdout.read(1)
        lip.stdout.close()
        assert "Traceback" not in lip.stderr.read()
    assert lip.returncode == 1


@pytest.mark.e2e
def test_on_a_terminal_streams_are_columns(kernel_socket: Path, write) -> None:
    ours, theirs = pty.openpty()
    try:
        with start(kernel_socket, "run", write(STREAMS), stdin=theirs, stdout=theirs, stderr=theirs) as lip:
            os.close(theirs)
            text = drain(ours)
        assert lip.returncode == 0
    finally:
        os.close(ours)
    assert any("left" in line and "right" in line for line in text.splitlines())
    assert any("one two" in line and "ONE TWO" in line for line in text.splitlines())


def drain(fd: int) -> str:
    """Everything a terminal shows until its last user leaves."""
    parts: list[bytes] = []
    while select.select([fd], [], [], 30)[0]:
        try:
            parts.append(os.read(fd, 65536))
        except OSError:  # how Linux says that the other side is closed
            break
    return b"".join(parts).decode()
