"""The ledger: from what happens to names and files in kvfs to the records of the journal, and back at the start.

It knows which directories are kept, what names files have in them, and which version of each file is on disk. Kept is
everything but the private /tmp of processes (`kvfs/roots.py`), which goes with them anyway. A file that was never saved
has names here and no record: it is on disk from its first save on, and with it all directories above it.

When a name that is on disk is taken over by a file that is not, as in `rename(new, old)`, the old file stays there
until the new one is saved: a crash in between finds one of the two.

Pure: it runs in the kernel's loop, and returns records in the order in which the store must have them. Called by
`kernel/durable.py`. Never add here: the disk, waiting.
"""

from typing import NamedTuple
from urllib.parse import unquote

from kvfs.access import KERNEL, OPERATOR_NAME
from kvfs.directory import Directory, Event, Node
from kvfs.fs import Kvfs
from kvfs.inode import Edited, Inode
from kvfs.roots import TENANTS
from kvfs.store.format import Head
from kvfs.store.tree import (
    ROOT,
    Attributes,
    Change,
    ClearName,
    Key,
    SetAttributes,
    SetDirectory,
    SetFile,
    SetName,
    Tree,
)

PRIVATE = "tmp"  # in every root: what is in it goes with its process


class Copy(NamedTuple):
    """The version of a file that is on disk."""

    version: int
    n_bytes: int
    n_kv: int | None  # of its tokens, how many have their K/V there; None: nobody has looked since the start
    edited: Edited | None = None  # what that K/V is; see kvfs/inode.py


class Taken(NamedTuple):
    """What has happened since the last look."""

    changes: list[Change]
    unsaved: list[Inode]  # files that got a name that is kept, are not open, and were never saved


class _Record:
    """One look, as it grows: what it comes to is known when all events are seen."""

    def __init__(self) -> None:
        self.nodes: list[Change] = []
        self.cleared: dict[Key, None] = {}  # names on disk that stand for nothing any more
        self.names: dict[Key, int] = {}  # that stand for something else
        self.gone: dict[int, Directory] = {}  # directories without a name, unless they are moved
        self.unsaved: dict[int, Inode] = {}

    def set(self, key: Key, ino: int) -> None:
        self.cleared.pop(key, None)
        self.names[key] = ino

    def clear(self, key: Key) -> None:
        self.names.pop(key, None)
        self.cleared[key] = None

    @property
    def changes(self) -> list[Change]:
        """Nodes first, so that names have something to stand for."""
        cleared = [ClearName(*key) for key in self.cleared]
        return [*self.nodes, *cleared, *(SetName(*key, ino) for key, ino in self.names.items())]


class Ledger:
    """Of one file system."""

    def __init__(self, fs: Kvfs, tree: Tree, wall_s: float) -> None:
        """Put all that is in the tree into an empty file system. `wall_s` is what to add to the kernel's clock to have
        the time of day."""
        self.fs = fs
        self.copies: dict[int, Copy] = {}
        self._wall_s = wall_s
        self._names: dict[int, dict[Key, None]] = {}  # of files, those that are kept
        self._kept = {ROOT}  # directories
        self._stale: dict[Key, None] = {}  # names that stand for another file on disk than here
        self._restore(tree)
        fs.names.events = []

    # --- at the start ---

    def _restore(self, tree: Tree) -> None:
        nodes: dict[int, Node] = {ROOT: self.fs.names.root}
        root = tree.directories[ROOT]
        if root is not None:
            self._dress(self.fs.names.root, root)
        tenants: dict[int, str] = {}  # directory → whose it is
        for parent, name, ino in tree.walk():
            directory = nodes[parent]
            assert isinstance(directory, Directory)
            if parent in tenants:
                tenants[ino] = tenants[parent] or unquote(name)
            if ino in nodes:
                self.fs.restore(directory, name, nodes[ino])
            elif ino in tree.directories:
                attributes = tree.directories[ino]
                assert attributes is not None
                nodes[ino] = made = Directory(ino, "", "", 0, 0.0)
                self._dress(made, attributes)
                self.fs.restore(directory, name, made)
                self._kept.add(ino)
                if parent == ROOT and name == TENANTS:
                    tenants[ino] = ""
            else:
                file = tree.files[ino]
                nodes[ino] = inode = Inode(ino, KERNEL, 0.0)
                inode.n_unread = file.n_tokens
                inode.tenant = tenants.get(ino) or OPERATOR_NAME
                self._dress(inode, file.attributes)
                self.fs.restore(directory, name, inode)
                self.copies[ino] = Copy(file.version, file.n_bytes, None)
            if ino in tree.files:
                self._names.setdefault(ino, {})[parent, name] = None

    def _dress(self, node: Node, attributes: Attributes) -> None:
        node.owner, node.group, node.mode = attributes.owner, attributes.group, attributes.mode
        node.created_s = attributes.created_s - self._wall_s
        node.modified_s = attributes.modified_s - self._wall_s

    # --- names ---

    def is_kept(self, inode: Inode) -> bool:
        """Whether a file has a name that a save would keep."""
        return bool(self._names.get(inode.ino))

    def take(self) -> Taken:
        """What has happened to names since the last look, as one record."""
        events, self.fs.names.events = self.fs.names.events, []
        if not events:
            return Taken([], [])
        record = _Record()
        for event in events:
            if isinstance(event.node, Directory):
                self._directory(event, event.node, record)
            else:
                self._file(event, event.node, record)
        for directory in record.gone.values():
            self._forget(directory)
        for event in events:
            self._drop_unnamed(event.node)
        return Taken(record.changes, [i for i in record.unsaved.values() if self.is_kept(i) and not i.pids])

    def _directory(self, event: Event, node: Directory, record: _Record) -> None:
        parent = event.directory
        is_kept = node.ino in self._kept
        if parent is None:
            if is_kept:
                record.nodes.append(SetAttributes(node.ino, self._attributes(node)))
        elif not event.came:
            if is_kept:
                record.gone[node.ino] = node
                record.clear((parent.ino, event.name))
        elif parent.ino not in self._kept or self._is_private(parent, event.name):
            return
        elif is_kept:  # it was moved, with all that is in it
            record.gone.pop(node.ino, None)
            record.set((parent.ino, event.name), node.ino)
        else:
            self._appear(parent, event.name, node, record)

    def _appear(self, parent: Directory, name: str, node: Directory, record: _Record) -> None:
        """A directory is kept from now on, and what is in it."""
        self._kept.add(node.ino)
        record.nodes.append(SetDirectory(node.ino, self._attributes(node)))
        record.set((parent.ino, name), node.ino)
        for below, child in node.entries.items():
            if isinstance(child, Directory):
                if not self._is_private(node, below):
                    self._appear(node, below, child, record)
            else:
                self._file(Event(node, below, child), child, record)

    def _file(self, event: Event, inode: Inode, record: _Record) -> None:
        is_saved = inode.ino in self.copies
        if event.directory is None:
            if is_saved:
                record.nodes.append(SetAttributes(inode.ino, self._attributes(inode)))
            return
        key = event.directory.ino, event.name
        if event.directory.ino not in self._kept:
            return
        if not event.came:
            self._names.get(inode.ino, {}).pop(key, None)
            if is_saved or key in self._stale:
                self._stale.pop(key, None)
                record.clear(key)
            return
        self._names.setdefault(inode.ino, {})[key] = None
        if is_saved:
            record.set(key, inode.ino)
            return
        record.unsaved[inode.ino] = inode
        if key in record.cleared:  # what has the name on disk keeps it until this file is saved
            del record.cleared[key]
            self._stale[key] = None

    def _drop_unnamed(self, node: Node) -> None:
        """A file that has no name any more is not on disk, either."""
        if not self._names.get(node.ino):
            self._names.pop(node.ino, None)
            self.copies.pop(node.ino, None)

    def _forget(self, directory: Directory) -> None:
        """A directory is not kept any more, nor what is in it."""
        self._kept.discard(directory.ino)
        for name, child in directory.entries.items():
            if isinstance(child, Directory):
                self._forget(child)
            else:
                self._names.get(child.ino, {}).pop((directory.ino, name), None)
                self._drop_unnamed(child)

    def _is_private(self, directory: Directory, name: str) -> bool:
        """Whether that name in a directory is where the private /tmp of processes are."""
        if name != PRIVATE or directory.ino == ROOT:
            return name == PRIVATE
        tenants = self.fs.names.root.entries.get(TENANTS)
        return isinstance(tenants, Directory) and directory in tenants.entries.values()

    def _attributes(self, node: Node) -> Attributes:
        created_s, modified_s = node.created_s + self._wall_s, node.modified_s + self._wall_s
        return Attributes(node.owner, node.group, node.mode, created_s, modified_s)

    # --- files ---

    def n_bytes(self, user: str) -> int:
        """On disk, of the files that belong to a user."""
        files = self.fs.files
        return sum(copy.n_bytes for ino, copy in self.copies.items() if ino in files and files[ino].owner == user)

    def saved(self, inode: Inode, n_tokens: int, copy: Copy) -> list[Change]:
        """A version of a file is whole on disk: what makes it count, under all names that the file has by now. Nothing
        if it has none any more. Take what happened to names first."""
        keys = self._names.get(inode.ino)
        if not keys:
            return []
        self.copies[inode.ino] = copy
        for key in keys:
            self._stale.pop(key, None)
        file = SetFile(inode.ino, self._attributes(inode), copy.version, copy.n_bytes, n_tokens)
        return [file, *(SetName(*key, inode.ino) for key in keys)]

    def unsaved(self, inode: Inode, before: Copy | None) -> None:
        """It does not count after all."""
        if before is None:
            self.copies.pop(inode.ino, None)
        elif inode.ino in self.copies:
            self.copies[inode.ino] = before

    def read(self, inode: Inode, head: Head) -> Edited | None:
        """Somebody has looked at the version of a file that is on disk; what its K/V is."""
        edited = None if head.edited_at is None else Edited(head.edited_at)
        self.copies[inode.ino] = self.copies[inode.ino]._replace(n_kv=head.n_kv, edited=edited)
        return edited
