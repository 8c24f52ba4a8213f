"""Names: absolute paths, directories, and the links from names to files.

A path is resolved here by walking dictionaries, never by the operating system's file system. It begins at the root
that its caller sees, or with '~' at the caller's home (`roots.py`). '/' separates names; empty names and '.' are
skipped, so '/a//b/' is '/a/b'; '..' is refused, since no path of ours needs it and every path trick does. All
characters must be printable, so that a path is safe in a log or on a terminal.

Directories form a tree with the root at its top. Each has one name and one parent. Files may have many names,
or none; a name is a link, counted in the file's `n_links`. A directory cannot be linked, replaced, or moved
below itself, and goes only when it is empty. No path in the tree is longer or deeper than the limits, so
whatever is in it can be reached.

Rights are checked on the way: `x` on every directory that is passed through, `r` on one that is listed, `w` on one
in which a name is to come or go. Errors spell paths as the caller does.

Called by fs.py. Never add here: open files, pages, quotas. Whether a file without names lives on is not decided
here; `remove` and `rename` return what lost a name.
"""

from collections.abc import Callable, Iterator

from kvfs.access import KERNEL, R, W, Who, X, need, rights
from kvfs.directory import Directory, Event, Events, Node, Slot
from kvfs.inode import Inode
from kvfs.quota import Bill
from kvfs.roots import STANDING, Roots, Start, below_tenant
from sdk.abi.errors import (
    AccessDenied,
    DirectoryNotEmpty,
    FileExists,
    FileNotFound,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
)
from sdk.abi.values import DirEntry, FileKind

ROOT_INO = 1


class Namespace:
    """The tree of directories."""

    def __init__(
        self, *, max_path: int, max_depth: int, new_ino: Callable[[], int], bill_of: Callable[[str], Bill], now: float
    ) -> None:
        self.max_path = max_path  # bytes of UTF-8
        self.max_depth = max_depth  # names in a path
        self.root = Directory(ROOT_INO, KERNEL.user, KERNEL.group, 0o755, now)
        self.n_directories = 1
        self.events: Events | None = None  # since somebody last looked, who keeps names on disk
        self._new_ino = new_ino  # raises QuotaExceeded
        self._bill_of = bill_of  # a user's, on which directories are like files
        self._roots = Roots(self.root, self._make)

    # --- finding; each raises InvalidArgument, NotADirectory, AccessDenied ---

    def parse(self, path: str) -> list[str]:
        """The names of a path; none for the root. Raises InvalidArgument."""
        if not path.startswith("/") and path.split("/", 1)[0] != "~":
            raise InvalidArgument(f"{path!r} is not absolute: start it with '/' or '~/'")
        if not path.isprintable():
            raise InvalidArgument(f"{path!r} has control characters: use printable ones")
        names = [name for name in path.split("/") if name not in ("", ".")]
        if ".." in names:
            raise InvalidArgument(f"{path!r} has '..': write the path without it")
        if path.startswith("/") and names and names[0] == "~":
            raise InvalidArgument(f"{path!r} names a file '~', which means your home: choose another name")
        return names

    def find(self, path: str, who: Who, now: float) -> Node:
        """Raises FileNotFound besides."""
        start = self._start(path, who, now)
        if not start.names:
            return start.directory
        node = self._slot(start, path, who).node
        if node is None:
            raise FileNotFound(f"no file {path!r}: create it, or look with readdir")
        return node

    def find_file(self, path: str, who: Who, now: float) -> Inode:
        """Raises IsADirectory besides."""
        node = self.find(path, who, now)
        if isinstance(node, Directory):
            raise IsADirectory(f"{path!r} is a directory: name a file in it")
        return node

    def vacant(self, path: str, who: Who, now: float) -> Slot:
        """Where a new name can be put. Raises FileExists, FileNotFound."""
        slot = self._changeable(path, who, now)
        if slot.node is not None:
            raise FileExists(f"{path!r} exists: open it, unlink it, or choose another name")
        self._need_write(slot, path, who)
        return slot

    def readdir(self, path: str, who: Who, now: float) -> list[DirEntry]:
        """Sorted by name. Raises NotADirectory on a file."""
        node = self.find(path, who, now)
        if isinstance(node, Inode):
            raise NotADirectory(f"{path!r} is a file: list the directory it is in")
        need(who, node, R, path, "ask for 'r' on it")
        kinds = {name: below.kind for name, below in node.entries.items()}
        if node is not self.root and node is self._roots.top(who, now):
            kinds["shared"] = FileKind.DIRECTORY
        return [DirEntry(name, kind) for name, kind in sorted(kinds.items())]

    def _start(self, path: str, who: Who, now: float) -> Start:
        start = self._roots.start(self.parse(path), who, now)
        full = below_tenant("".join([start.path, *(f"/{name}" for name in start.names)]))
        n_bytes, n_names = len(full.encode()), full.count("/")
        if n_bytes > self.max_path:
            raise InvalidArgument(f"a path has at most {self.max_path} bytes, this one {n_bytes}: shorten it")
        if n_names > self.max_depth:
            raise InvalidArgument(f"a path has at most {self.max_depth} names, this one {n_names}: make it flatter")
        return start

    def _slot(self, start: Start, path: str, who: Who) -> Slot:
        """Where a name is or could be; the directory that it is in must exist."""
        directory, names = start.directory, start.names
        need(who, directory, X, start.spelled or "/", "ask for 'x' on it")
        for depth, name in enumerate(names[:-1], start=1):
            node = directory.entries.get(name)
            above = f"{start.spelled}/" + "/".join(names[:depth])
            if node is None:
                raise FileNotFound(f"no directory {above!r}: mkdir it first")
            if not isinstance(node, Directory):
                raise NotADirectory(f"{above!r} is a file, so nothing can be below it: correct the path")
            need(who, node, X, above, "ask for 'x' on it")
            directory = node
        return Slot(directory, names[-1], f"{start.path}/" + "/".join(names), self.events)

    def _changeable(self, path: str, who: Who, now: float) -> Slot:
        """Where a name may come or go, as far as the name itself is concerned."""
        start = self._start(path, who, now)
        is_top = not start.spelled and start.directory is not self.root
        if not start.names or (is_top and len(start.names) == 1 and start.names[0] in STANDING):
            raise InvalidArgument(f"{path!r} is a root or standing directory and stays: name something in it")
        return self._slot(start, path, who)

    def _need_write(self, slot: Slot, path: str, who: Who) -> None:
        if rights(who, slot.directory) & W == 0:
            raise AccessDenied(
                f"{who.user!r} may not add or remove names in the directory of {path!r}, which belongs to "
                f"{slot.directory.owner!r}: use '~/' or '/tmp/', or ask for 'w' on it"
            )

    # --- changing ---

    def mkdir(self, path: str, who: Who, now: float) -> None:
        slot = self.vacant(path, who, now)
        self._make(slot.directory, slot.name, who, 0o777 & ~who.umask, now)

    def _make(self, parent: Directory, name: str, who: Who, mode: int, now: float) -> Directory:
        bill = self._bill_of(who.user)
        bill.need_directory()
        made = Directory(self._new_ino(), who.user, who.group, mode, now)
        parent.entries[name] = made
        parent.modified_s = now
        self.n_directories += 1
        bill.n_files += 1
        if self.events is not None:
            self.events.append(Event(parent, name, made))
        return made

    def _lost(self, directory: Directory) -> None:
        """A directory has lost its name, and with it everything."""
        self.n_directories -= 1
        self._bill_of(directory.owner).n_files -= 1

    def link(self, old: str, new: str, who: Who, now: float) -> None:
        """One more name for a file. Raises IsADirectory, FileExists, FileNotFound. Only for somebody who may read and
        write it: a name keeps a file alive, at its owner's expense."""
        inode = self.find_file(old, who, now)
        need(who, inode, R | W, old, "fork it instead")
        self.vacant(new, who, now).put(inode, now)

    def remove(self, path: str, who: Who, now: float) -> Inode | None:
        """Unlink a file, and return it, or an empty directory. Raises DirectoryNotEmpty, FileNotFound."""
        slot = self._changeable(path, who, now)
        node = slot.node
        if node is None:
            raise FileNotFound(f"no file {path!r}: look with readdir")
        self._need_write(slot, path, who)
        if isinstance(node, Directory):
            if node.entries:
                raise DirectoryNotEmpty(f"{path!r} has {len(node.entries)} entries: unlink them first")
            self._lost(node)
        slot.clear(now)
        return node if isinstance(node, Inode) else None

    def rename(self, old: str, new: str, who: Who, now: float) -> Inode | None:
        """Move a name; returns the file that was replaced by it. Two names of one file stay as they are (POSIX).

        Raises FileNotFound; IsADirectory and NotADirectory when what is there cannot be replaced; InvalidArgument
        when a directory would come to lie below itself, or what is in it too deep."""
        source, target = self._changeable(old, who, now), self._changeable(new, who, now)
        node, replaced = source.node, target.node
        if node is None:
            raise FileNotFound(f"no file {old!r}: look with readdir")
        self._need_write(source, old, who)
        self._need_write(target, new, who)
        if node is replaced:
            return None
        if isinstance(replaced, Directory):
            raise IsADirectory(f"{new!r} is a directory and cannot be replaced: name something in it")
        if isinstance(node, Directory):
            if replaced is not None:
                raise NotADirectory(f"{new!r} is a file and cannot be replaced by a directory: unlink it first")
            self._check_move(node, target, old, new)
        if replaced is not None:
            target.clear(now)
        target.put(source.clear(now), now)
        return replaced

    def _check_move(self, directory: Directory, target: Slot, old: str, new: str) -> None:
        below = list(self.walk(directory, target.path))
        if target.directory is directory or any(node is target.directory for _, node in below):
            raise InvalidArgument(f"{new!r} is below {old!r}: move the directory somewhere else")
        for path, _ in below:
            if not self.is_within_limits(path):
                raise InvalidArgument(f"{path!r} would be too long or too deep: move it nearer to the root")

    def end_process(self, who: Who, now: float) -> list[Inode]:
        """Remove the private /tmp of a process with all that is in it, and what was made for its tenant and is empty,
        or every tenant that ever was would leave directories. Returns the files that lost a name by it."""
        found = self._roots.private(who, now)
        files = [] if found is None else self._remove_all(*found, now)
        for parent, name, directory in self._roots.standing(who):
            if not directory.entries:
                Slot(parent, name, f"/{name}", self.events).clear(now)
                self._lost(directory)
        return files

    def _remove_all(self, parent: Directory, name: str, now: float) -> list[Inode]:
        """A directory of a /tmp, which is on no disk, with all that is in it; returns the files."""
        private = parent.entries.pop(name)
        assert isinstance(private, Directory)
        parent.modified_s = now
        self._lost(private)
        files = []
        for path, node in self.walk(private, f"/tmp/{name}"):  # noqa: S108  (in our own tree)
            if isinstance(node, Directory):
                self._lost(node)
            else:
                node.n_links -= 1
                node.note(f"unlink {path}", now)
                files.append(node)
        return files

    def changed(self, node: Node) -> None:
        """It has another owner, group or mode."""
        if self.events is not None:
            self.events.append(Event(None, "", node))

    # --- all of it ---

    def is_within_limits(self, path: str) -> bool:
        """Whether a path of the tree is short and flat enough for its tenant to reach it."""
        path = below_tenant(path)
        return path.count("/") <= self.max_depth and len(path.encode()) <= self.max_path

    def walk(self, directory: Directory, path: str = "") -> Iterator[tuple[str, Node]]:
        """Everything below a directory, with the path it has if the directory has that one."""
        for name, node in directory.entries.items():
            below = f"{path}/{name}"
            yield below, node
            if isinstance(node, Directory):
                yield from self.walk(node, below)
