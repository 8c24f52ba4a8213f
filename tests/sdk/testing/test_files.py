"""The toy kvfs: names against a plain model, and streams that cut characters in two."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.abi.errors import (
    DirectoryNotEmpty,
    FileExists,
    FileNotFound,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    SyscallError,
)
from sdk.abi.values import FinishReason, Generation
from sdk.testing.files import File, Names, Stream

PATHS = st.sampled_from(["/a", "/b", "/a/x", "/a/y", "/b/x", "/a/x/deep"])
OPERATIONS = st.lists(st.tuples(st.sampled_from(["file", "mkdir", "unlink", "rename"]), PATHS, PATHS), max_size=25)


def everything(names: Names, path: str = "/") -> set[str]:
    """All paths below one, found by readdir and stat alone."""
    found = set()
    for entry in names.readdir(path):
        below = f"{path.rstrip('/')}/{entry.name}"
        found |= {below}
        if names.find(below) is None:
            found |= everything(names, below)
    return found


@given(OPERATIONS)
def test_names_stay_a_tree(operations: list[tuple[str, str, str]]) -> None:
    names = Names()
    expected: set[str] = set()
    for what, path, other in operations:
        try:
            match what:
                case "file":
                    names.new_file(path)
                    expected.add(path)
                case "mkdir":
                    names.mkdir(path)
                    expected.add(path)
                case "unlink":
                    names.unlink(path)
                    expected.remove(path)
                case "rename":
                    names.rename(path, other)
                    moved = {p for p in expected if p == path or p.startswith(path + "/")}
                    expected = (expected - moved) | {other + p.removeprefix(path) for p in moved}
        except SyscallError:
            pass
        assert everything(names) == expected


def test_errors_of_names() -> None:
    names = Names()
    names.mkdir("/d")
    names.new_file("/d/f")
    names.new_file("/f")
    for error, act in (
        (InvalidArgument, lambda: names.find("relative")),
        (InvalidArgument, lambda: names.find("/d/../d")),
        (InvalidArgument, lambda: names.unlink("/")),
        (InvalidArgument, lambda: names.rename("/d", "/d/below")),
        (FileNotFound, lambda: names.find("/x")),
        (FileNotFound, lambda: names.new_file("/x/y")),
        (NotADirectory, lambda: names.find("/d/f/x")),
        (NotADirectory, lambda: names.readdir("/d/f")),
        (NotADirectory, lambda: names.rename("/d", "/f")),
        (IsADirectory, lambda: names.open("/d")),
        (IsADirectory, lambda: names.rename("/d/f", "/d")),
        (FileExists, lambda: names.mkdir("/d")),
        (DirectoryNotEmpty, lambda: names.unlink("/d")),
    ):
        with pytest.raises(error):
            act()


def test_a_stream_joins_the_bytes_of_a_character() -> None:
    file, tokens = File(), list("é!".encode())
    stream = Stream(file, Generation("é!", tokens, FinishReason.STOP, n_sampled=4))
    chunks = [stream.next() for _ in tokens]
    assert [c.text for c in chunks] == ["", "é", "!"]
    assert [c.n_sampled for c in chunks] == [1, 2, 4]
    assert file.tokens == tokens
    assert file.positions == [0, 1, 2]


def test_a_stream_of_nothing_has_one_chunk() -> None:
    chunk = Stream(File(), Generation("", [], FinishReason.STOP, n_sampled=1)).next()
    assert (chunk.text, chunk.finish) == ("", FinishReason.STOP)
