"""The commands on files, against a kernel in another process."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdk.cli import app
from sdk.cli_fs import branches, size
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
    assert "'/nix'" in one_line(lip("ls", "/nix", code=2))


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
    assert rows(lip("ls", "-l", "/d").stdout)[1][8] == "device, pinned for 2h"
    shown = dict(row for row in rows(lip("stat", "/d/a").stdout) if len(row) == 2)
    assert (shown["n_pinned_pages"], shown["pinned_until"]) == ("1", "for 2h")


def test_tree(lip, files) -> None:
    text = "/d\n├── a  (5 tokens)\n├── e/\n│   └── b  (5 tokens)\n└── none  (0 tokens)\n"
    assert lip("tree", "/d").stdout == text
    assert "'/d/a' is a file" in one_line(lip("tree", "/d/a", code=2))
    assert [f["name"] for f in json.loads(lip("tree", "--json", "/d").stdout)] == ["a", "e", "e/b", "none"]


def test_stat(lip, files) -> None:
    shown = dict(row for row in rows(lip("stat", "/d/a").stdout) if len(row) == 2)
    assert (shown["kind"], shown["n_tokens"], shown["mode"]) == ("file", "5", "755 -rwxr-xr-x")
    assert shown["modified"].endswith("s ago")
    assert json.loads(lip("stat", "--json", "/d/a").stdout)["n_tokens"] == 5


def test_cat_prints_the_text_or_the_tokens(lip, files) -> None:
    assert lip("cat", "/d/a").stdout == "a fox\n"
    assert lip("cat", "/d/none").stdout == ""
    ids = lip("cat", "--tokens", "/d/a").stdout.split()
    assert len(ids) == 5
    assert all(map(str.isdigit, ids))
    assert "is a directory" in one_line(lip("cat", "/d", code=2))


def test_mv_renames_and_moves_into_a_directory(lip, files) -> None:
    lip("mv", "/d/a", "/d/c")
    lip("mv", "/d/c", "/d/e")
    assert lip("ls", "/d/e").stdout == "b\nc\n"
    lip("mv", "/d/e/c", "/d/none")
    assert lip("cat", "/d/none").stdout == "a fox\n", "a file that is there is replaced"
    assert "'/nix'" in one_line(lip("mv", "/nix", "/d", code=2))


def test_chmod(lip, files) -> None:
    lip("chmod", "640", "/d/a", "/d/e")
    assert [f["mode"] for f in json.loads(lip("ls", "--json", "/d").stdout)[:2]] == [0o640] * 2
    for mode in ("9", "888", "64", "1777", "u+x", "0o640", "٦٤٠"):
        assert "three octal digits" in one_line(lip("chmod", mode, "/d/a", code=2))
    assert "'/nix'" in one_line(lip("chmod", "640", "/nix", code=2))


def test_rm(lip, files) -> None:
    assert "/d" in one_line(lip("rm", "/d", code=2))
    lip("rm", "/d/a", "/d/none")
    lip("rm", "-r", "/d/e")
    assert lip("ls", "/d").stdout == ""
    lip("rm", "-r", "/d")
    assert "'/d'" in one_line(lip("stat", "/d", code=2))


def test_df(lip, files) -> None:
    head, device, host = rows(lip("df").stdout)
    assert head == ["DEVICE", "TIER", "SIZE", "USED", "FREE", "USE%", "PAGES", "USED PAGES", "FILES"]
    assert (device[1], host[1], device[0]) == ("device", "host", host[0])
    (found,) = json.loads(lip("df", "--json").stdout)
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
        *(["chmod", "640", "/x"], ["df"], ["fsck"], ["lsof"]),
    ],
)
def test_without_a_kernel(tmp_path: Path, words: list[str]) -> None:
    result = CliRunner().invoke(app, ["--socket", str(tmp_path / "k.sock"), *words])
    assert result.exit_code == 2
    assert one_line(result) == "lip: no kernel is running; start one with `python -m kernel`\n"


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1.0K"), (1536, "1.5K"), (23 << 20, "23M"), (5 << 30, "5.0G"), (1 << 50, "1.0P")],
)
def test_size(n_bytes: int, text: str) -> None:
    assert size(n_bytes) == text


def test_the_bars_of_a_tree_end_where_a_directory_does() -> None:
    found = [
        {"name": name, "kind": "directory" if name in ("a", "a/b", "c") else "file", "n_tokens": 1}
        for name in ("a", "a/b", "a/b/x", "a/y", "c", "c/z")
    ]
    assert branches(found) == [
        "├── a/",
        "│   ├── b/",
        "│   │   └── x  (1 tokens)",
        "│   └── y  (1 tokens)",
        "└── c/",
        "    └── z  (1 tokens)",
    ]
