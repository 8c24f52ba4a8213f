"""A kernel for one run: started, used, gone."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from sdk import launch
from sdk.client import KernelError

pytestmark = pytest.mark.e2e

LIP = [sys.executable, "-c", "from sdk.cli import main; main()"]
NULL = ["--kernel-arg", "--backend null"]


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No kernel runs, and temporary files go where they can be counted."""
    monkeypatch.setenv("SYMPHONY_SOCKET", str(tmp_path / "nobody.sock"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def nothing_left(directory: Path) -> bool:
    ours = [p for p in psutil.process_iter(["environ"]) if str(directory) in str(p.info["environ"])]
    return not list((directory / "tmp").iterdir()) and all(p.pid == os.getpid() for p in ours)


def test_a_run_without_a_kernel_brings_its_own(nobody: Path) -> None:
    (nobody / "kernel").mkdir()  # a stranger's package of the same name in the user's directory
    (nobody / "kernel" / "__init__.py").write_text("raise ImportError('not this one')")
    (nobody / "hello.py").write_text(
        "from sdk import kv\nfrom sdk.channel import emit\n"
        "async def main(n: int):\n    print('a print')\n    await emit('text')\n"
        "    async with await kv.prompt('x') as f:\n        return len(await f.text(max_tokens=n)) > 0\n"
    )
    lip = subprocess.run(
        [*LIP, "run", "hello.py", "--n", "4", *NULL], cwd=nobody, capture_output=True, text=True, timeout=60
    )
    assert (lip.returncode, lip.stdout) == (0, "text\ntrue\n"), lip.stderr
    assert "starting a worker" in lip.stderr
    assert "a print\n" in lip.stderr
    assert "stopping" not in lip.stderr
    assert nothing_left(nobody)


def test_mistakes_are_told_before_a_kernel_is_started(nobody: Path) -> None:
    (nobody / "args.py").write_text("async def main(n: int): ...\n")
    for words, message in [
        (["nix.py"], "there is no file"),
        (["args.py"], "parameter n is missing"),
        (["args.py", "--n", "x"], "parameter n: expected int, got 'x'"),
    ]:
        lip = subprocess.run([*LIP, "run", *words], cwd=nobody, capture_output=True, text=True, timeout=60)
        assert (lip.returncode, lip.stdout, lip.stderr.count("\n")) == (2, "", 1), lip.stderr
        assert message in lip.stderr
    shown = subprocess.run([*LIP, "run", "args.py", "--help"], cwd=nobody, capture_output=True, text=True, timeout=60)
    assert "--n  int  required" in shown.stdout
    assert nothing_left(nobody)


async def test_a_kernel_that_does_not_start_says_why(nobody: Path) -> None:
    lines: list[str] = []
    with pytest.raises(KernelError, match=r"the kernel did not start: a wrong option: .*port"):
        async with launch.private_kernel(["--port", "99999999"], lines.append):
            pass
    assert nothing_left(nobody)


def test_an_interrupt_takes_the_kernel_along(nobody: Path) -> None:
    (nobody / "wait.py").write_text(
        "from sdk.channel import Channel, emit\n"
        "async def main():\n    await emit('waiting')\n    await Channel('never').recv()\n"
    )
    with subprocess.Popen([*LIP, "run", "wait.py", *NULL], cwd=nobody, stdout=subprocess.PIPE, text=True) as lip:
        assert lip.stdout is not None
        assert lip.stdout.read(7) == "waiting"
        lip.send_signal(signal.SIGINT)
        lip.communicate(None, 60)
    assert lip.returncode == 130
    assert nothing_left(nobody)
