"""`python -m sdk.abi`: the generated files are current, well laid out, and say what the table says."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdk import syscalls
from sdk.abi.__main__ import GENERATED, ROOT, entries, main, manual, stubs
from sdk.abi.errors import Errno
from sdk.abi.table import Entry, Syscall
from sdk.abi.trap import door
from sdk.abi.values import Fd

ENTRIES = entries()


def test_the_files_in_the_checkout_are_current() -> None:
    assert main(["--check"], ROOT) == 0


def test_check_names_what_is_stale_and_write_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--write"], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    (tmp_path / "sdk/syscalls.py").write_text("async def pred(): ...\n")
    (tmp_path / "docs/syscalls.md").unlink()
    capsys.readouterr()
    assert main(["--check"], tmp_path) == 1
    out = capsys.readouterr().out
    assert "sdk/syscalls.py: stale" in out
    assert "docs/syscalls.md: stale" in out
    assert main(["--write"], tmp_path) == 0
    assert (tmp_path / "sdk/syscalls.py").read_text() == stubs()


def test_current_files_are_not_written_again(tmp_path: Path) -> None:
    main(["--write"], tmp_path)
    before = [(tmp_path / name).stat().st_mtime_ns for name in GENERATED]
    main(["--write"], tmp_path)
    assert [(tmp_path / name).stat().st_mtime_ns for name in GENERATED] == before


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff_has_nothing_to_say_about_the_stubs(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", "sdk/syscalls.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("entry", ENTRIES, ids=[e.name for e in ENTRIES])
async def test_a_stub_makes_its_call(entry: Entry) -> None:
    """With the required arguments alone, a stub makes the very struct that its call makes of them."""
    made: list[Syscall[Any]] = []
    token = door.set(made.append)
    stub = getattr(syscalls, entry.name)
    required = {
        name: example(str(p.annotation))
        for name, p in inspect.signature(stub).parameters.items()
        if p.default is p.empty
    }
    try:
        await stub(**required)
    finally:
        door.reset(token)
    assert made == [entry.call(**required)]
    assert stub.__doc__.strip().splitlines()[0] == entry.doc.splitlines()[0]


def example(annotation: str) -> Any:
    for name, value in (("Message", []), ("Sequence", [1, 2]), ("Fd", 3), ("Pid", 4), ("float", 0.5), ("int", 5)):
        if name in annotation:
            return value
    return "x"


async def test_stubs_copy_what_can_change() -> None:
    made: list[Any] = []
    token = door.set(made.append)
    tokens, args = [1, 2], {"n": 1}
    try:
        await syscalls.pred(Fd(3), tokens=tokens, positions=(0, 1))
        await syscalls.spawn("x", args=args)
    finally:
        door.reset(token)
    tokens.append(3)
    args["n"] = 2
    assert made[0].tokens == [1, 2]
    assert made[0].positions == [0, 1]
    assert made[1].args == {"n": 1}


def test_the_manual_has_every_call_with_its_errors() -> None:
    text = manual()
    for entry in ENTRIES:
        row = next(line for line in text.splitlines() if line.startswith(f"| {entry.nr} | [`{entry.name}`]"))
        assert all(errno in row for errno in entry.errnos)
        assert ("| yes |" in row) == entry.blocks
        assert f"\n### {entry.name}\n" in text
    page = text.split("\n### fork\n")[1].split("\n### ")[0]
    assert "EEXIST (`FileExists`)" in page
    assert "fork(fd: Fd, *, path: str | None = None) -> Fd" in page
    assert Errno.E2BIG not in page
