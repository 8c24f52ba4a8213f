"""Directories: names and what they stand for, with an owner and rights.

A `Slot` is a place in a directory where a name is or could be; putting a file there counts a link in it. Used by
`namespace.py` and `roots.py`. What happens to names is also told to whoever keeps them on disk, as `Event`s. Never add
here: paths longer than a name, whether somebody may do what he asks for.
"""

from typing import ClassVar, NamedTuple, TypeAlias

from kvfs.inode import Inode
from sdk.abi.values import FileKind, Stat


class Directory:
    """Names and what they stand for."""

    kind: ClassVar = FileKind.DIRECTORY
    __slots__ = ("created_s", "entries", "group", "ino", "mode", "modified_s", "owner")

    def __init__(self, ino: int, owner: str, group: str, mode: int, now: float) -> None:
        self.ino = ino
        self.owner = owner
        self.group = group
        self.mode = mode
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
            mode=self.mode,
            worker=None,
            created_s=self.created_s,
            modified_s=self.modified_s,
            group=self.group,
            used_s=self.modified_s,
        )


Node: TypeAlias = Inode | Directory


class Event(NamedTuple):
    """A name came, or went; or, without a directory, the attributes of a node have changed."""

    directory: Directory | None
    name: str
    node: Node
    came: bool = True


Events: TypeAlias = list[Event]


class Slot:
    """A place in a directory, where a name is or could be."""

    __slots__ = ("directory", "events", "name", "path")

    def __init__(self, directory: Directory, name: str, path: str, events: Events | None = None) -> None:
        self.directory = directory
        self.events = events  # where to tell; None: nobody wants to know
        self.name = name
        self.path = path  # in full, from the root of its tenant: for limits, and for a file's story

    @property
    def node(self) -> Node | None:
        return self.directory.entries.get(self.name)

    def put(self, node: Node, now: float) -> None:
        self.directory.entries[self.name] = node
        self.directory.modified_s = now
        if self.events is not None:
            self.events.append(Event(self.directory, self.name, node))
        if isinstance(node, Inode):
            node.n_links += 1
            node.note(f"link {self.path}", now)

    def clear(self, now: float) -> Node:
        node = self.directory.entries.pop(self.name)
        self.directory.modified_s = now
        if self.events is not None:
            self.events.append(Event(self.directory, self.name, node, came=False))
        if isinstance(node, Inode):
            node.n_links -= 1
            node.note(f"unlink {self.path}", now)
        return node
