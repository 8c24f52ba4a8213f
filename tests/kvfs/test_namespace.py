from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfs.access import OPERATOR, Who
from kvfs.fs import Kvfs
from kvfs.fsck import check
from sdk.abi.errors import (
    DirectoryNotEmpty,
    FileExists,
    FileNotFound,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    SyscallError,
)
from sdk.abi.values import DirEntry, FileKind, OpenMode

ANN: dict[str, Any] = {"who": Who("ann", root=True), "now": 1.0}


def touch(fs: Kvfs, path: str) -> int:
    """A closed, empty file; its number."""
    f = fs.create(path, **ANN)
    fs.close(f, 1.0)
    return f.inode.ino


@pytest.mark.parametrize("path", ["/a", "//a", "/a/", "/./a/."])
def test_empty_names_and_dots_are_skipped(fs: Kvfs, path: str) -> None:
    ino = touch(fs, "/a")
    assert fs.stat(path, who=OPERATOR, now=1.0).ino == ino


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("", "start it with '/'"),
        ("a", "start it with '/'"),
        ("/a/../b", "without it"),
        ("/..", "without it"),
        ("/a\0b", "printable"),
        ("/a\nb", "printable"),
        ("/a\x1b[2J", "printable"),
        ("/a\u2028b", "printable"),
        ("/\ud800", "printable"),
        ("/" + 255 * "a", "shorten it"),
        ("/" + 127 * "é" + "a", "shorten it"),
        (17 * "/a", "make it flatter"),
    ],
)
def test_bad_paths(fs: Kvfs, path: str, hint: str) -> None:
    touch(fs, "/f")
    for use in (
        lambda: fs.create(path, **ANN),
        lambda: fs.open(path, OpenMode.READ, **ANN),
        lambda: fs.stat(path, who=OPERATOR, now=1.0),
        lambda: fs.unlink(path, who=OPERATOR, now=1.0),
        lambda: fs.rename(path, "/x", who=OPERATOR, now=1.0),
        lambda: fs.rename("/f", path, who=OPERATOR, now=1.0),
    ):
        with pytest.raises(InvalidArgument, match=hint):
            use()


@pytest.mark.parametrize("path", ["/" + 254 * "a", "/" + 127 * "é", "/a b", "/日本"])
def test_good_paths(fs: Kvfs, path: str) -> None:
    touch(fs, path)
    assert fs.readdir("/", who=OPERATOR, now=1.0) == [DirEntry(path[1:], FileKind.FILE)]


def test_sixteen_names_deep(fs: Kvfs) -> None:
    for depth in range(1, 16):
        fs.mkdir("/d" * depth, **ANN)
    touch(fs, "/d" * 16)


def test_readdir_is_sorted_and_tells_kinds(fs: Kvfs) -> None:
    touch(fs, "/b")
    fs.mkdir("/c", **ANN)
    fs.mkdir("/a", **ANN)
    touch(fs, "/c/x")
    kinds = [("a", FileKind.DIRECTORY), ("b", FileKind.FILE), ("c", FileKind.DIRECTORY)]
    assert fs.readdir("/", who=OPERATOR, now=1.0) == [DirEntry(name, kind) for name, kind in kinds]
    assert [e.name for e in fs.readdir("/c", who=OPERATOR, now=1.0)] == ["x"]
    with pytest.raises(NotADirectory):
        fs.readdir("/b", who=OPERATOR, now=1.0)
    with pytest.raises(FileNotFound):
        fs.readdir("/d", who=OPERATOR, now=1.0)


def test_stat_of_a_directory(fs: Kvfs) -> None:
    fs.mkdir("/d", who=Who("bob", root=True), now=2.0)
    fs.create("/d/f", who=Who("ann", root=True), now=3.0)
    stat = fs.stat("/d", who=OPERATOR, now=1.0)
    assert (stat.kind, stat.owner, stat.mode, stat.created_s, stat.modified_s) == ("directory", "bob", 0o755, 2.0, 3.0)
    assert fs.stat("/", who=OPERATOR, now=1.0).ino == 1


def test_what_is_missing_is_named(fs: Kvfs) -> None:
    touch(fs, "/f")
    fs.mkdir("/d", **ANN)
    with pytest.raises(FileNotFound, match="no directory '/d/e': mkdir it first"):
        fs.create("/d/e/f", **ANN)
    with pytest.raises(NotADirectory, match="'/f' is a file"):
        fs.create("/f/g", **ANN)
    with pytest.raises(FileNotFound, match="no file '/g': create it"):
        fs.open("/g", OpenMode.READ, **ANN)
    with pytest.raises(IsADirectory, match="'/d' is a directory"):
        fs.open("/d", OpenMode.READ, **ANN)


@pytest.mark.parametrize("path", ["/d", "/f"])
def test_a_name_is_taken_once(fs: Kvfs, path: str) -> None:
    fs.mkdir("/d", **ANN)
    touch(fs, "/f")
    for use in (
        lambda: fs.create(path, **ANN),
        lambda: fs.mkdir(path, **ANN),
        lambda: fs.link("/f", path, who=OPERATOR, now=1.0),
        lambda: fs.fork(fs.open("/f", OpenMode.READ, **ANN), path, **ANN),
    ):
        with pytest.raises(FileExists, match="choose another name"):
            use()


def test_only_empty_directories_go(fs: Kvfs) -> None:
    fs.mkdir("/d", **ANN)
    touch(fs, "/d/f")
    with pytest.raises(DirectoryNotEmpty, match="1 entries"):
        fs.unlink("/d", who=OPERATOR, now=2.0)
    fs.unlink("/d/f", who=OPERATOR, now=2.0)
    fs.unlink("/d", who=OPERATOR, now=2.0)
    assert fs.readdir("/", who=OPERATOR, now=1.0) == []


def test_the_root_stays(fs: Kvfs) -> None:
    fs.mkdir("/d", **ANN)
    uses: list[Callable[[], None]] = [
        lambda: fs.unlink("/", who=OPERATOR, now=1.0),
        lambda: fs.rename("/", "/x", who=OPERATOR, now=1.0),
        lambda: fs.rename("/d", "/", who=OPERATOR, now=1.0),
        lambda: fs.mkdir("/", **ANN),
    ]
    for use in uses:
        with pytest.raises(InvalidArgument, match="root"):
            use()


def test_links_are_names_of_equal_right(fs: Kvfs) -> None:
    ino = touch(fs, "/a")
    fs.link("/a", "/b", who=OPERATOR, now=2.0)
    assert fs.stat("/a", who=OPERATOR, now=1.0).n_links == 2
    fs.unlink("/a", who=OPERATOR, now=3.0)
    assert (fs.stat("/b", who=OPERATOR, now=1.0).ino, fs.stat("/b", who=OPERATOR, now=1.0).n_links) == (ino, 1)
    fs.mkdir("/d", **ANN)
    with pytest.raises(IsADirectory):
        fs.link("/d", "/e", who=OPERATOR, now=2.0)


def test_rename_moves_and_replaces(fs: Kvfs) -> None:
    ino, replaced = touch(fs, "/a"), touch(fs, "/b")
    fs.rename("/a", "/b", who=OPERATOR, now=2.0)
    assert (fs.stat("/b", who=OPERATOR, now=1.0).ino, fs.stat("/b", who=OPERATOR, now=1.0).n_links) == (ino, 1)
    assert replaced not in fs.files
    fs.mkdir("/d", **ANN)
    touch(fs, "/d/x")
    fs.rename("/d", "/e", who=OPERATOR, now=2.0)
    fs.rename("/b", "/e/y", who=OPERATOR, now=2.0)
    assert [path for path, _ in fs.names.walk(fs.names.root)] == ["/e", "/e/x", "/e/y"]


def test_a_replaced_file_lives_on_while_it_is_open(fs: Kvfs) -> None:
    f = fs.create("/a", **ANN)
    touch(fs, "/b")
    fs.rename("/b", "/a", who=OPERATOR, now=2.0)
    assert fs.fstat(f).n_links == 0
    fs.close(f, 3.0)
    assert f.inode.ino not in fs.files


def test_renaming_one_name_of_a_file_to_another_does_nothing(fs: Kvfs) -> None:
    touch(fs, "/a")
    fs.link("/a", "/b", who=OPERATOR, now=1.0)
    fs.rename("/a", "/b", who=OPERATOR, now=2.0)
    fs.rename("/a", "/a", who=OPERATOR, now=2.0)
    assert [e.name for e in fs.readdir("/", who=OPERATOR, now=1.0)] == ["a", "b"]


def test_what_cannot_be_replaced(fs: Kvfs) -> None:
    fs.mkdir("/d", **ANN)
    fs.mkdir("/e", **ANN)
    touch(fs, "/f")
    with pytest.raises(IsADirectory, match="cannot be replaced"):
        fs.rename("/f", "/d", who=OPERATOR, now=1.0)
    with pytest.raises(IsADirectory):
        fs.rename("/e", "/d", who=OPERATOR, now=1.0)
    with pytest.raises(NotADirectory, match="unlink it first"):
        fs.rename("/d", "/f", who=OPERATOR, now=1.0)
    with pytest.raises(InvalidArgument, match="'/d/x' is below '/d'"):
        fs.rename("/d", "/d/x", who=OPERATOR, now=1.0)


def test_a_directory_does_not_move_to_where_its_files_could_not_be_reached(fs: Kvfs) -> None:
    for depth in range(1, 15):
        fs.mkdir("/d" * depth, **ANN)
    fs.mkdir("/m", **ANN)
    fs.mkdir("/m/n", **ANN)
    touch(fs, "/m/n/f")
    with pytest.raises(InvalidArgument, match="move it nearer to the root"):
        fs.rename("/m", "/d" * 14 + "/m", who=OPERATOR, now=1.0)
    fs.rename("/m/n", "/d" * 14 + "/n", who=OPERATOR, now=1.0)
    touch(fs, "/m/" + "n" * 230)
    with pytest.raises(InvalidArgument, match="move it nearer to the root"):
        fs.rename("/m", "/" + "m" * 40, who=OPERATOR, now=1.0)


PATHS = ["/a", "/b", "/d", "/d/a", "/d/b", "/d/e", "/d/e/a"]
Call = st.tuples(
    st.sampled_from(["touch", "mkdir", "unlink", "rename", "link"]), st.sampled_from(PATHS), st.sampled_from(PATHS)
)


class Tree:
    """The model: a flat dict of paths; None is a directory, a number a file."""

    def __init__(self) -> None:
        self.nodes: dict[str, int | None] = {}

    def need_slot(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent:
            self.need_slot(parent)
            if parent not in self.nodes:
                raise FileNotFound(parent)
            if self.nodes[parent] is not None:
                raise NotADirectory(parent)

    def need(self, path: str) -> None:
        self.need_slot(path)
        if path not in self.nodes:
            raise FileNotFound(path)

    def need_vacant(self, path: str) -> None:
        self.need_slot(path)
        if path in self.nodes:
            raise FileExists(path)

    def below(self, path: str) -> list[str]:
        return [p for p in self.nodes if p.startswith(path + "/")]

    def do(self, call: str, path: str, new: str, ino: int) -> None:
        if call in ("touch", "mkdir"):
            self.need_vacant(path)
            self.nodes[path] = ino if call == "touch" else None
            return
        if call != "rename":
            self.need(path)
        if call == "unlink":
            if self.below(path):
                raise DirectoryNotEmpty(path)
            del self.nodes[path]
        elif call == "link":
            if self.nodes[path] is None:
                raise IsADirectory(path)
            self.need_vacant(new)
            self.nodes[new] = self.nodes[path]
        else:
            self.rename(path, new)

    def rename(self, old: str, new: str) -> None:
        self.need_slot(old)
        self.need_slot(new)
        self.need(old)
        moved, there = self.nodes[old], self.nodes.get(new)
        if old == new or (moved is not None and moved == there):
            return
        if new in self.nodes and there is None:
            raise IsADirectory(new)
        if new in self.nodes and moved is None:
            raise NotADirectory(new)
        if new.startswith(old + "/"):
            raise InvalidArgument(new)
        for path in [old, *self.below(old)]:
            self.nodes[new + path.removeprefix(old)] = self.nodes.pop(path)


@settings(max_examples=200, deadline=None)
@given(st.lists(Call, max_size=30))
def test_the_namespace_against_a_dict_of_paths(calls: list[tuple[str, str, str]]) -> None:
    fs, tree = Kvfs(), Tree()
    for call, path, new in calls:
        found, expected, ino = None, None, 0
        try:
            if call == "touch":
                ino = touch(fs, path)
            elif call == "mkdir":
                fs.mkdir(path, **ANN)
            elif call == "unlink":
                fs.unlink(path, who=OPERATOR, now=1.0)
            elif call == "rename":
                fs.rename(path, new, who=OPERATOR, now=1.0)
            else:
                fs.link(path, new, who=OPERATOR, now=1.0)
        except SyscallError as e:
            found = e.errno
        try:
            tree.do(call, path, new, ino)
        except SyscallError as e:
            expected = e.errno
        assert found == expected
        walked = {p: None if n.kind == FileKind.DIRECTORY else n.ino for p, n in fs.names.walk(fs.names.root)}
        assert walked == tree.nodes
        assert set(fs.files) == {ino for ino in tree.nodes.values() if ino is not None}
        assert check(fs) == []
