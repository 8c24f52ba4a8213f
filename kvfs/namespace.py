"""Names: absolute paths, directories, and the links from names to files.

A path is resolved here by walking dictionaries, never by the operating system's file system. '/' separates
names; empty names and '.' are skipped, so '/a//b/' is '/a/b'; '..' is refused, since no path of ours needs it
and every path trick does. All characters must be printable, so that a path is safe in a log or on a terminal.

Directories form a tree with the root at its top. Each has one name and one parent. Files may have many names,
or none; a name is a link, counted in the file's `n_links`. A directory cannot be linked, replaced, or moved
below itself, and goes only when it is empty. No path in the tree is longer or deeper than the limits, so
whatever is in it can be reached.

Called by fs.py. Never add here: permissions, open files, pages. Whether a file without names lives on is not
decided here; `remove` and `rename` return what lost a name.
"""

from collections.abc import Iterator
from typing import ClassVar, TypeAlias

from kvfs.inode import Inode
from sdk.abi.errors import (
    DirectoryNotEmpty,
    FileExists,
    FileNotFound,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
)
from sdk.abi.values import DirEntry, FileKind, Stat

DIRECTORY_MODE = 0o755
ROOT_INO = 1


class Directory:
    """Names and what they stand for."""

    kind: ClassVar = FileKind.DIRECTORY
    __slots__ = ("created_s", "entries", "ino", "modified_s", "owner")

    def __init__(self, ino: int, owner: str, now: float) -> None:
        self.ino = ino
        self.owner = owner
        self.created_s = now
        self.modified_s = now  # when a name last came or went
        self.entries: dict[str, Inode | Directory] = {}

    def stat(self) -> Stat:
        return Stat(
            ino=self.ino,
            kind=self.kind,
            n_tokens=0,
            n_resident=0,
            n_pages=0,
            n_host_pages=0,
            n_shared_pages=0,
            n_links=1,
            n_open=0,
            owner=self.owner,
            mode=DIRECTORY_MODE,
            worker=None,
            created_s=self.created_s,
            modified_s=self.modified_s,
        )


Node: TypeAlias = Inode | Directory


class Slot:
    """A place in a directory, where a name is or could be."""

    __slots__ = ("directory", "name", "path")

    def __init__(self, directory: Directory, name: str, path: str) -> None:
        self.directory = directory
        self.name = name
        self.path = path

    @property
    def node(self) -> Node | None:
        return self.directory.entries.get(self.name)

    def put(self, node: Node, now: float) -> None:
        self.directory.entries[self.name] = node
        self.directory.modified_s = now
        if isinstance(node, Inode):
            node.n_links += 1
            node.note(f"link {self.path}", now)

    def clear(self, now: float) -> Node:
        node = self.directory.entries.pop(self.name)
        self.directory.modified_s = now
        if isinstance(node, Inode):
            node.n_links -= 1
            node.note(f"unlink {self.path}", now)
        return node


class Namespace:
    """The tree of directories."""

    def __init__(self, *, max_path: int, max_depth: int) -> None:
        self.max_path = max_path  # bytes of UTF-8
        self.max_depth = max_depth  # names in a path
        self.root = Directory(ROOT_INO, "kernel", 0.0)
        self.n_directories = 1

    # --- finding ---

    def parse(self, path: str) -> list[str]:
        """The names of a path; none for the root. Raises InvalidArgument."""
        if not path.startswith("/"):
            raise InvalidArgument(f"{path!r} is not absolute: start it with '/'")
        if not path.isprintable():
            raise InvalidArgument(f"{path!r} has control characters: use printable ones")
        if len(path.encode()) > self.max_path:
            raise InvalidArgument(
                f"a path has at most {self.max_path} bytes, this one {len(path.encode())}: shorten it"
            )
        names = [name for name in path.split("/") if name not in ("", ".")]
        if ".." in names:
            raise InvalidArgument(f"{path!r} has '..': write the path without it")
        if len(names) > self.max_depth:
            raise InvalidArgument(f"a path has at most {self.max_depth} names, this one {len(names)}: make it flatter")
        return names

    def find(self, path: str) -> Node:
        """Raises FileNotFound, NotADirectory, InvalidArgument."""
        if not self.parse(path):
            return self.root
        node = self._slot(path).node
        if node is None:
            raise FileNotFound(f"no file {path!r}: create it, or look with readdir")
        return node

    def find_file(self, path: str) -> Inode:
        """Raises IsADirectory besides."""
        node = self.find(path)
        if isinstance(node, Directory):
            raise IsADirectory(f"{path!r} is a directory: name a file in it")
        return node

    def vacant(self, path: str) -> Slot:
        """Where a new name can be put. Raises FileExists, FileNotFound, NotADirectory, InvalidArgument."""
        slot = self._slot(path)
        if slot.node is not None:
            raise FileExists(f"{path!r} exists: open it, unlink it, or choose another name")
        return slot

    def readdir(self, path: str) -> list[DirEntry]:
        """Sorted by name. Raises NotADirectory on a file."""
        node = self.find(path)
        if isinstance(node, Inode):
            raise NotADirectory(f"{path!r} is a file: list the directory it is in")
        return [DirEntry(name, below.kind) for name, below in sorted(node.entries.items())]

    def _slot(self, path: str) -> Slot:
        """Where a name is or could be; the directory that it is in must exist."""
        names = self.parse(path)
        if not names:
            raise InvalidArgument("'/' is the root directory and stays as it is: name something in it")
        directory = self.root
        for depth, name in enumerate(names[:-1], start=1):
            node = directory.entries.get(name)
            if not isinstance(node, Directory):
                above = "/" + "/".join(names[:depth])
                if node is None:
                    raise FileNotFound(f"no directory {above!r}: mkdir it first")
                raise NotADirectory(f"{above!r} is a file, so nothing can be below it: correct the path")
            directory = node
        return Slot(directory, names[-1], path)

    # --- changing ---

    def mkdir(self, slot: Slot, ino: int, owner: str, now: float) -> None:
        slot.put(Directory(ino, owner, now), now)
        self.n_directories += 1

    def link(self, old: str, new: str, now: float) -> None:
        """One more name for a file. Raises IsADirectory, FileExists, FileNotFound."""
        inode = self.find_file(old)
        self.vacant(new).put(inode, now)

    def remove(self, path: str, now: float) -> Inode | None:
        """Unlink a file, and return it, or an empty directory. Raises DirectoryNotEmpty, FileNotFound."""
        slot = self._slot(path)
        node = slot.node
        if node is None:
            raise FileNotFound(f"no file {path!r}: look with readdir")
        if isinstance(node, Directory):
            if node.entries:
                raise DirectoryNotEmpty(f"{path!r} has {len(node.entries)} entries: unlink them first")
            self.n_directories -= 1
        slot.clear(now)
        return node if isinstance(node, Inode) else None

    def rename(self, old: str, new: str, now: float) -> Inode | None:
        """Move a name; returns the file that was replaced by it. Two names of one file stay as they are (POSIX).

        Raises FileNotFound; IsADirectory and NotADirectory when what is there cannot be replaced; InvalidArgument
        when a directory would come to lie below itself, or what is in it too deep."""
        source, target = self._slot(old), self._slot(new)
        node, replaced = source.node, target.node
        if node is None:
            raise FileNotFound(f"no file {old!r}: look with readdir")
        if node is replaced:
            return None
        if isinstance(replaced, Directory):
            raise IsADirectory(f"{new!r} is a directory and cannot be replaced: name something in it")
        if isinstance(node, Directory):
            if replaced is not None:
                raise NotADirectory(f"{new!r} is a file and cannot be replaced by a directory: unlink it first")
            self._check_move(node, old, new)
        if replaced is not None:
            target.clear(now)
        target.put(source.clear(now), now)
        return replaced

    def _check_move(self, directory: Directory, old: str, new: str) -> None:
        names, onto = self.parse(old), self.parse(new)
        if onto[: len(names)] == names:
            raise InvalidArgument(f"{new!r} is below {old!r}: move the directory somewhere else")
        base = "/" + "/".join(onto)
        for path, _ in self.walk(directory, base):
            if path.count("/") > self.max_depth or len(path.encode()) > self.max_path:
                raise InvalidArgument(f"{path!r} would be too long or too deep: move it nearer to the root")

    def walk(self, directory: Directory, path: str = "") -> Iterator[tuple[str, Node]]:
        """Everything below a directory, with the path it has if the directory has that one."""
        for name, node in directory.entries.items():
            below = f"{path}/{name}"
            yield below, node
            if isinstance(node, Directory):
                yield from self.walk(node, below)
