"""The commands on files, against a kernel in another process."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdk.cli import app
from tests.sdk.conftest import one_line

MAKE = """
from sdk import kv
async def main():
    await kv.mkdir('/d')
    async with await kv.create('/d/a') as a:
        await a.append('a fox')
        await kv.mkdir('/d/e')
        await a.fork('/d/e/b')
    await kv.create('/d/none')
"""
HOLD = """
import asyncio
from sdk import LockMode, kv, syscalls
async def main():
    async with await kv.open('/d/a') as a, await kv.open('/d/a', 'r') as other:
        await asyncio.create_task(syscalls.lock(other.fd, mode=LockMode.SHARED))
        async with a.lock("shared") as lock:
            await kv.unlink('/d/none')
            await lock.convert("exclusive")
"""


@pytest.fixture
def files(lip: Callable[..., Any], write: Callable[[str], str]) -> Iterator[None]:
    """/d with the files a (5 tokens), e/b (a fork of it) and none (empty)."""
    lip("run", write(MAKE))
    yield
    if "d/" in lip("ls").stdout:
        lip("rm", "-r", "/d")


def rows(text: str) -> list[list[str]]:
    return [re.split("  +", line.strip()) for line in text.splitlines()]


def test_ls_names_one_a_line(lip, files) -> None:
    assert lip("ls", "/d").stdout == "a\ne/\nnone\n"
    assert lip("ls", "/d/a").stdout == "/d/a\n"
    assert "d/\n" in lip("ls").stdout
    assert "'/nix'" in one_line(lip("ls", "/nix", code=1))


def test_ls_of_several(lip, files) -> None:
    result = lip("ls", "/d", "/nix", "/d/a", "/d/e", code=1)
    assert result.stdout == "/d/a\n\n/d:\na\ne/\nnone\n\n/d/e:\nb\n"
    assert result.stderr == "lip: no file '/nix': create it, or look with readdir\n"
    found = json.loads(lip("ls", "--json", "/d/e", "/d/a").stdout)
    assert [f["path"] for f in found] == ["/d/a", "/d/e/b"]


def test_ls_long(lip, files) -> None:
    head, a, e, none = rows(lip("ls", "-l", "/d").stdout)
    assert head == ["MODE", "LINKS", "OWNER", "GROUP", "TOKENS", "SIZE", "SHARED", "OPEN", "KV", "CHANGED", "NAME"]
    assert a[:5] == ["-rwxr-xr-x", "1", "local", "local", "5"]
    assert (a[6:9], a[-1]) == (["1", "0", "device"], "a")
    assert (e[0], e[4:9], e[-1]) == ("drwxr-xr-x", ["-"] * 5, "e/")
    assert (none[4], none[8]) == ("0", "-")
    found = json.loads(lip("ls", "--json", "/d").stdout)
    assert [(f["name"], f["n_tokens"]) for f in found] == [("a", 5), ("e", 0), ("none", 0)]


def test_what_is_pinned_is_shown(lip, write, files) -> None:
    lip("run", write("from sdk import kv\nasync def main():\n    await (await kv.open('/d/a', 'r')).pin(7200)\n"))
    assert rows(lip("ls", "-l", "/d").stdout)[1][8] == "device, pinned for 1h"
    shown = dict(row for row in rows(lip("stat", "/d/a").stdout) if len(row) == 2)
    assert (shown["n_pinned_pages"], shown["pinned"]) == ("1", "for 1h")


def test_tree(lip, files) -> None:
    text = "/d\n├── a  (5 tokens)\n├── e/\n│   └── b  (5 tokens)\n└── none  (0 tokens)\n\n1 directory, 3 files\n"
    assert lip("tree", "/d").stdout == text
    assert "'/d/a' is a file" in one_line(lip("tree", "/d/a", code=1))
    assert [f["name"] for f in json.loads(lip("tree", "--json", "/d").stdout)] == ["a", "e", "e/b", "none"]


def test_stat(lip, files) -> None:
    shown = dict(row for row in rows(lip("stat", "/d/a").stdout) if len(row) == 2)
    assert (shown["kind"], shown["n_tokens"], shown["mode"]) == ("file", "5", "755 -rwxr-xr-x")
    assert shown["modified"].endswith("s ago")
    assert json.loads(lip("stat", "--json", "/d/a").stdout)["n_tokens"] == 5
    shown = dict(row for row in rows(lip("stat", "/").stdout) if len(row) == 2)
    assert (shown["kind"], shown["path"], "n_tokens" in shown) == ("directory", "/", False)
    assert re.fullmatch(r"\d+[sm] ago", shown["created"]), "with the kernel"
    assert "'/nix'" in one_line(lip("stat", "/nix", code=1))


def test_cat_prints_the_text_or_the_tokens(lip, files) -> None:
    assert lip("cat", "/d/a").stdout == "a fox\n"
    assert lip("cat", "/d/none").stdout == ""
    ids = lip("cat", "--tokens", "/d/a").stdout.split()
    assert len(ids) == 5
    assert all(map(str.isdigit, ids))
    assert lip("cat", "/d/a", "/d/e/b").stdout == "a fox\na fox\n"
    assert "is a directory" in one_line(lip("cat", "/d", code=1))


def test_mv_renames_and_moves_into_a_directory(lip, files) -> None:
    lip("mv", "/d/a", "/d/c")
    lip("mv", "/d/c", "/d/e")
    assert lip("ls", "/d/e").stdout == "b\nc\n"
    lip("mv", "/d/e/c", "/d/none")
    assert lip("cat", "/d/none").stdout == "a fox\n", "a file that is there is replaced"
    assert "'/nix'" in one_line(lip("mv", "/nix", "/d", code=1))
    assert "'/d/f/' is no directory" in one_line(lip("mv", "/d/none", "/d/f/", code=1))
    assert "lip mv OLD NEW" in one_line(lip("mv", "/d", code=2))


def test_mv_of_several(lip, files) -> None:
    assert "'/nix'" in one_line(lip("mv", "/d/a", "/nix", "/d/none", "/d/e", code=1))
    assert lip("ls", "/d/e").stdout == "a\nb\nnone\n"
    assert "/d/e/a is no directory" in one_line(lip("mv", "/d/e/b", "/d/e/none", "/d/e/a", code=1))
    assert lip("ls", "/d/e").stdout == "a\nb\nnone\n"


def test_mkdir(lip, files) -> None:
    assert "'/d/e'" in one_line(lip("mkdir", "/d/e", "/d/f", code=1))
    assert lip("ls", "/d").stdout == "a\ne/\nf/\nnone\n"


def test_chmod(lip, files) -> None:
    lip("chmod", "640", "/d/a", "/d/e")
    assert [f["mode"] for f in json.loads(lip("ls", "--json", "/d").stdout)[:2]] == [0o640] * 2
    for mode in ("9", "888", "64", "1777", "u+x", "0o640", "٦٤٠"):
        assert "three octal digits" in one_line(lip("chmod", mode, "/d/a", code=2))
    assert "'/nix'" in one_line(lip("chmod", "600", "/nix", "/d/a", code=1))
    assert json.loads(lip("stat", "--json", "/d/a").stdout)["mode"] == 0o600


def test_cp_there_and_back(lip, files, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target in ("a.kv", ".", str(tmp_path)):
        assert lip("cp", "kv:/d/a", target).stderr.endswith(" written\n")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a", "a.kv", "prog.py"]
    assert Path("a").read_bytes() == Path("a.kv").read_bytes()
    result = lip("cp", "a.kv", "kv:/d/e")
    assert result.stderr == "5 tokens, 5 of them with their KV\n"
    assert lip("cat", "/d/e/a.kv").stdout == "a fox\n"
    assert "exists" in one_line(lip("cp", "a.kv", "kv:/d/e", code=1))
    assert "no directory" in one_line(lip("cp", "a.kv", "kv:/d/f/", code=1))


def test_cp_that_fails_leaves_nothing(lip, files, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert "'/nix'" in one_line(lip("cp", "kv:/nix", "x.kv", code=1))
    assert one_line(lip("cp", "kv:/", ".", code=1)) == "lip: .: Is a directory\n"
    assert one_line(lip("cp", "kv:/d/a", "no/x.kv", code=1)) == "lip: no/x.kv: No such file or directory\n"
    assert one_line(lip("cp", "x.kv", "kv:/d/x", code=1)) == "lip: x.kv: No such file or directory\n"
    for words in (("a", "b"), ("kv:/d/a", "kv:/d/b")):
        assert "one of the two is in the kernel" in one_line(lip("cp", *words, code=2))
    assert sorted(tmp_path.iterdir()) == before


def test_cp_replaces_files_and_nothing_else(lip, files, tmp_path: Path) -> None:
    (tmp_path / "file.kv").write_text("old")
    (tmp_path / "link").symlink_to("file.kv")
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    for name in ("link", "pipe"):
        lip("cp", "kv:/d/a", str(tmp_path / name))
    written = (tmp_path / "file.kv").read_bytes()
    assert os.read(pipe, len(written) + 1) == written
    os.close(pipe)
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.glob("*.part")) == []


def test_cp_through_pipes(lip, kernel_socket: Path, files) -> None:
    lip_at = [sys.executable, "-c", "from sdk.cli import main; main()", "--socket", str(kernel_socket), "cp"]
    out = subprocess.run([*lip_at, "kv:/d/a", "-"], capture_output=True, timeout=60, check=True)
    subprocess.run([*lip_at, "-", "kv:/d/b"], input=out.stdout, timeout=60, check=True)
    assert lip("cat", "--tokens", "/d/b").stdout == lip("cat", "--tokens", "/d/a").stdout


def test_rm(lip, files) -> None:
    assert "/d" in one_line(lip("rm", "/d", code=1))
    assert "'/nix'" in one_line(lip("rm", "/d/a", "/nix", "/d/none", code=1)), "the others go all the same"
    lip("rm", "-r", "/d/e")
    assert lip("ls", "/d").stdout == ""
    lip("rm", "-r", "/d")
    assert "'/d'" in one_line(lip("stat", "/d", code=1))


def test_df(lip, files) -> None:
    head, device, host = rows(lip("df").stdout)
    assert head == ["DEVICE", "TIER", "SIZE", "USED", "FREE", "USE%", "PAGES", "USED PAGES", "FILES"]
    assert (device[1], host[1], device[0]) == ("device", "host", host[0])
    report = json.loads(lip("df", "--json").stdout)
    (found,) = report["devices"]
    assert report["disk"] is None
    assert found["n_pages"] - found["n_free"] > 0, "other tests may have left files"
    assert device[6:] == [str(found["n_pages"]), str(found["n_pages"] - found["n_free"]), str(found["n_files"])]


def test_fsck(lip, files) -> None:
    result = lip("fsck")
    assert result.stdout == ""
    assert re.match(r"0 problems in \d+ pages, \d+ host pages, \d+ inodes, \d+ directories, ", result.stderr)
    found = json.loads(lip("fsck", "--json").stdout)
    assert found["problems"] == []
    assert found["checked"]["inodes"] >= 3


def test_lsof(lip, write, files) -> None:
    pid = int(lip("run", "--detach", write(HOLD)).stdout)
    other = int(
        lip("run", "--detach", write("from sdk import process\nasync def main(): await process.sleep(9)")).stdout
    )
    while "none" in lip("ls", "/d").stdout:  # until it waits
        pass
    head, first, second = rows(lip("lsof", "-p", str(pid)).stdout)
    assert head == ["PID", "PROGRAM", "FD", "MODE", "LOCK", "TOKENS", "FILE", "NAME"]
    assert first[0] == second[0] == str(pid)
    assert (first[3:5], first[-1]) == (["w", "shared, waits for exclusive"], "/d/a")
    assert (second[3:5], second[-1]) == (["r", "shared"], "/d/a")
    assert [f["lock"] for f in json.loads(lip("lsof", "--json", "-p", str(pid)).stdout)] == ["shared", "shared"]
    assert rows(lip("lsof", "--pid", str(other)).stdout) == [head]
    lip("rm", "/d/a")
    assert "(no name)" in lip("lsof").stdout
    lip("kill", str(pid))
    lip("kill", str(other))


@pytest.mark.parametrize(
    "words",
    [
        *(["ls"], ["ls", "-l"], ["tree"], ["stat", "/"], ["cat", "/x"], ["rm", "/x"], ["mv", "/x", "/y"]),
        *(["chmod", "640", "/x"], ["mkdir", "/x", "/y"], ["df"], ["fsck"], ["lsof"], ["cp", "kv:/x", "-"]),
    ],
)
def test_without_a_kernel(tmp_path: Path, words: list[str]) -> None:
    result = CliRunner().invoke(app, ["--socket", str(tmp_path / "k.sock"), *words])
    assert result.exit_code == 2
    assert one_line(result) == "lip: no kernel is running; start one with `python -m kernel`\n"
