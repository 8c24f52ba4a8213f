"""The durable tree: which directories and files there are, under which names, and which version of a file counts.

It is what the journal says, record by record. A record is a list of `Change`s that hold together or not at all, and
each of them can be applied again without harm. Nodes have the inode numbers of kvfs, so that a rename, even of a whole
directory, is two changes. A file whose last name goes is forgotten; so is a directory.

Pure. Called by journal.py and store.py. Never add here: bytes, disks, what is in a file.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

ROOT = 1  # inode number of "/", which is always there

Number = Annotated[int, Meta(ge=0, lt=1 << 62)]


class Attributes(Struct, frozen=True, array_like=True):
    """Of a node. Times are seconds of the wall clock, since they must mean something to the next kernel."""

    owner: str
    group: str
    mode: Annotated[int, Meta(ge=0, le=0o777)]
    created_s: float
    modified_s: float


class SetDirectory(Struct, frozen=True, array_like=True, tag="d"):
    """The directory of that number has these attributes; it is new if it was not there."""

    ino: Number
    attributes: Attributes


class SetFile(Struct, frozen=True, array_like=True, tag="f"):
    """The file of that number has these attributes, and this version counts."""

    ino: Number
    attributes: Attributes
    version: Number
    n_bytes: Number
    n_tokens: Number


class SetAttributes(Struct, frozen=True, array_like=True, tag="a"):
    """The node of that number has these attributes. Nothing happens if there is no such node."""

    ino: Number
    attributes: Attributes


class SetName(Struct, frozen=True, array_like=True, tag="n"):
    """In directory `parent`, `name` is node `ino`. Nothing happens if there is no such node."""

    parent: Number
    name: str
    ino: Number


class ClearName(Struct, frozen=True, array_like=True, tag="c"):
    """In directory `parent`, `name` is nothing. Nothing happens if it was not there."""

    parent: Number
    name: str


Change = SetDirectory | SetFile | SetAttributes | SetName | ClearName
Key = tuple[int, str]  # directory, name


class Tree:
    """All nodes that have a name, and the root."""

    def __init__(self) -> None:
        self.directories: dict[int, Attributes | None] = {ROOT: None}  # None: the root as it is made
        self.files: dict[int, SetFile] = {}
        self.n_bytes = 0  # of all versions that count
        self.names: dict[Key, int] = {}
        self._links: dict[int, dict[Key, None]] = {}  # node → its names
        self._below: dict[int, dict[str, None]] = {ROOT: {}}  # directory → names in it
        self._unnamed: dict[int, None] = {}  # nodes that the changes at hand have left without a name

    def apply(self, changes: Iterable[Change]) -> list[int]:
        """Make these changes; returns the versions that do not count any more."""
        freed: list[int] = []
        for change in changes:
            match change:
                case SetDirectory(ino, attributes):
                    self.directories[ino] = attributes
                    if ino not in self._below:
                        self._below[ino] = {}
                        self._unnamed[ino] = None
                case SetFile():
                    before = self.files.get(change.ino)
                    if before is None:
                        self._unnamed[change.ino] = None
                    else:
                        self.n_bytes -= before.n_bytes
                        if before.version != change.version:
                            freed.append(before.version)
                    self.files[change.ino] = change
                    self.n_bytes += change.n_bytes
                case SetAttributes(ino, attributes):
                    if ino in self.files:
                        self.files[ino] = replace(self.files[ino], attributes=attributes)
                    elif ino in self.directories:
                        self.directories[ino] = attributes
                case SetName(parent, name, ino):
                    self._set(parent, name, ino)
                case ClearName(parent, name):
                    self._clear(parent, name)
        self._forget(freed)
        return freed

    def _set(self, parent: int, name: str, ino: int) -> None:
        known = ino in self.files or (ino in self.directories and ino != ROOT)
        if not known or parent not in self.directories or self._is_below(parent, ino):
            return
        if self.names.get((parent, name)) == ino:
            return
        self._clear(parent, name)
        self.names[parent, name] = ino
        self._links.setdefault(ino, {})[parent, name] = None
        self._below[parent][name] = None
        self._unnamed.pop(ino, None)

    def _is_below(self, ino: int, above: int) -> bool:
        """Whether a directory is that one, or below it."""
        while ino != above:
            link = next(iter(self._links.get(ino, ())), None)
            if link is None:
                return False
            ino = link[0]
        return True

    def _clear(self, parent: int, name: str) -> None:
        ino = self.names.pop((parent, name), None)
        if ino is None:
            return
        del self._links[ino][parent, name]
        del self._below[parent][name]
        if not self._links[ino]:
            del self._links[ino]
            self._unnamed[ino] = None

    def _forget(self, freed: list[int]) -> None:
        """Let go of what has no name, and of what is below it."""
        while self._unnamed:
            ino, _ = self._unnamed.popitem()
            file = self.files.pop(ino, None)
            if file is not None:
                self.n_bytes -= file.n_bytes
                freed.append(file.version)
            elif ino in self.directories:
                for name in list(self._below[ino]):
                    self._clear(ino, name)
                del self.directories[ino], self._below[ino]

    def changes(self) -> Iterator[list[Change]]:
        """This tree from nothing, as records; parents come before what is in them."""
        root = self.directories[ROOT]
        if root is not None:
            yield [SetDirectory(ROOT, root)]
        linked: set[int] = set()
        for parent, name, ino in self.walk():
            entry = SetName(parent, name, ino)
            if ino in linked:
                yield [entry]
                continue
            linked.add(ino)
            attributes = self.directories.get(ino)
            yield [SetDirectory(ino, attributes) if attributes is not None else self.files[ino], entry]

    def walk(self) -> Iterator[tuple[int, str, int]]:
        """(directory, name, node) of every name, a directory before what is in it."""
        waiting = [ROOT]
        while waiting:
            parent = waiting.pop()
            for name in self._below[parent]:
                ino = self.names[parent, name]
                yield parent, name, ino
                if ino in self.directories:
                    waiting.append(ino)
