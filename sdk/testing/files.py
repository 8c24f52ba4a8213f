"""Toy kvfs: files as lists of tokens, and a flat dict of names. Called by `sdk.testing.kernel`."""

import codecs
from typing import NamedTuple

from sdk.abi.errors import (
    DirectoryNotEmpty,
    FileExists,
    FileNotFound,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
)
from sdk.abi.values import Chunk, DirEntry, FileKind, Generation, OpenMode, Stat
from sdk.testing.locks import FileLock
from sdk.testing.model import render
from sdk.testing.pins import FilePins

PAGE_SIZE = 16
N_PAGES = 1 << 16
HOME = "/home/test"  # what ~ stands for


class File:
    """A KV file: its tokens and their positions."""

    def __init__(self, ino: int = 0) -> None:
        self.ino = ino
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.mode = 0o755
        self.edited = False  # it was made of parts of others
        self.busy = False  # a call is appending
        self.n_open = 0
        self.n_opens = 0  # handles there ever were
        self.lock = FileLock()
        self.pins = FilePins()
        self.used_s = 0.0

    @property
    def next_position(self) -> int:
        return self.positions[-1] + 1 if self.positions else 0

    def extend(self, tokens: list[int], positions: list[int] | None = None) -> None:
        first = self.next_position
        self.positions += range(first, first + len(tokens)) if positions is None else positions
        self.tokens += tokens


class Handle(NamedTuple):
    """An open file."""

    file: File
    mode: OpenMode


class Stream:
    """A generation whose tokens reach the file one by one, as they are read."""

    def __init__(self, file: File, plan: Generation) -> None:
        self.file = file
        self.plan = plan
        self.n_read = 0
        self.reading = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self) -> Chunk:
        i, plan = self.n_read, self.plan
        self.n_read += 1
        tokens, logprobs = plan.tokens[i : i + 1], plan.logprobs[i : i + 1]
        self.file.extend(tokens)
        if self.n_read < len(plan.tokens):
            return Chunk(self._decoder.decode(render(tokens)), tokens, logprobs, n_sampled=self.n_read)
        text = self._decoder.decode(render(tokens), final=True)
        return Chunk(text, tokens, logprobs, plan.finish, plan.stop_reason, plan.n_sampled)


class Names:
    """Paths, and what they stand for: a file, or None for a directory."""

    def __init__(self) -> None:
        self._nodes: dict[str, File | None] = {"/": None}
        self._n_inodes = 1

    def normal(self, path: str) -> str:
        """The normal form of a path whose directories exist. Raises InvalidArgument, FileNotFound, NotADirectory."""
        if path.split("/")[0] == "~":
            path = HOME + path[1:]
            self._nodes |= {"/home": None, HOME: None}
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if (not path.startswith("/") and parts[:1] != ["~"]) or ".." in parts:
            raise InvalidArgument(f"{path!r} must be absolute and without '..'")
        if not path.startswith("/"):
            parts[:1] = ["home", "test"]
        if parts[:1] in (["home"], ["tmp"], ["shared"]):  # they are always there
            self._nodes.setdefault(f"/{parts[0]}")
        if parts[:2] == ["home", "test"]:
            self._nodes.setdefault("/home/test")
        for i in range(1, len(parts)):
            above = "/" + "/".join(parts[:i])
            if above not in self._nodes:
                raise FileNotFound(f"no directory {above!r}: mkdir it first")
            if self._nodes[above] is not None:
                raise NotADirectory(f"{above!r} is a file")
        return "/" + "/".join(parts)

    def find(self, path: str) -> File | None:
        if (name := self.normal(path)) not in self._nodes:
            raise FileNotFound(f"no file {path!r}")
        return self._nodes[name]

    def open(self, path: str) -> File:
        if (file := self.find(path)) is None:
            raise IsADirectory(f"{path!r} is a directory")
        return file

    def new_file(self, path: str | None) -> File:
        self._n_inodes += 1
        file = File(self._n_inodes)
        if path is not None:
            self._nodes[self._vacant(path)] = file
        return file

    def mkdir(self, path: str) -> None:
        self._nodes[self._vacant(path)] = None

    def readdir(self, path: str) -> list[DirEntry]:
        if self.find(path) is not None:
            raise NotADirectory(f"{path!r} is a file")
        top = self.normal(path).rstrip("/") + "/"
        names = sorted(name for name in self._below(path) if "/" not in name.removeprefix(top))
        return [DirEntry(name.removeprefix(top), _kind(self._nodes[name])) for name in names]

    def unlink(self, path: str) -> None:
        node = self._movable(path)
        if node is None and self._below(path):
            raise DirectoryNotEmpty(f"{path!r} has entries: unlink them first")
        del self._nodes[self.normal(path)]

    def rename(self, old: str, new: str) -> None:
        node, source, target = self._movable(old), self.normal(old), self.normal(new)
        if source == target:
            return
        if target.startswith(source + "/"):
            raise InvalidArgument(f"{new!r} is below {old!r}")
        if target in self._nodes:
            if self._nodes[target] is None:
                raise IsADirectory(f"{new!r} is a directory and cannot be replaced")
            if node is None:
                raise NotADirectory(f"{new!r} is a file and cannot be replaced by a directory")
        for name in [source, *self._below(old)]:
            self._nodes[target + name.removeprefix(source)] = self._nodes.pop(name)

    def files(self) -> list[File]:
        """All that have a name."""
        return list({id(file): file for file in self._nodes.values() if file is not None}.values())

    def link(self, old: str, new: str) -> None:
        self._nodes[self._vacant(new)] = self.open(old)

    def chmod(self, path: str, mode: int) -> None:
        if (node := self.find(path)) is not None:
            node.mode = mode

    def stat(self, node: File | None, now: float) -> Stat:
        file = node or File()
        n_links = sum(other is node for other in self._nodes.values()) if node else 1
        n_pinned, until_s = file.pins.at(now, has_name=n_links > 0)
        return Stat(
            ino=file.ino,
            kind=_kind(node),
            n_tokens=len(file.tokens),
            n_resident=len(file.tokens),
            n_pages=-(-len(file.tokens) // PAGE_SIZE),
            n_host_pages=0,
            n_shared_pages=0,
            n_links=n_links,
            n_open=file.n_open,
            owner="test",
            mode=file.mode,
            worker="toy" if file.tokens else None,
            created_s=now,
            modified_s=now,
            group="test",
            used_s=file.used_s,
            n_opens=file.n_opens,
            edited=file.edited,
            n_pinned_pages=n_pinned,
            pinned_until_s=until_s,
        )

    def _vacant(self, path: str) -> str:
        if (name := self.normal(path)) in self._nodes:
            raise FileExists(f"{path!r} exists")
        return name

    def _movable(self, path: str) -> File | None:
        if self.normal(path) == "/":
            raise InvalidArgument("the root stays where it is")
        return self.find(path)

    def _below(self, path: str) -> list[str]:
        top = self.normal(path).rstrip("/") + "/"
        return [name for name in self._nodes if name.startswith(top) and name != "/"]


def _kind(node: File | None) -> FileKind:
    return FileKind.DIRECTORY if node is None else FileKind.FILE
