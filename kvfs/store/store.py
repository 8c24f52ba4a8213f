"""The store: durable KV files in one directory of a disk. Synchronous; all of it runs in one thread.

    journal        which nodes there are, under which names, and which version of a file counts (journal.py, tree.py)
    NUMBER.kv      a version of a file, never changed (format.py)
    NUMBER.tmp     one that is being written

To save a file is to write a new version (`begin`, `add`, `finish`) and then to say that it counts (`commit`):

    write NUMBER.tmp · fsync · rename to NUMBER.kv · fsync the directory · journal record · fsync · remove the old one

So at any moment the version that the journal names is whole and on disk. After a crash, what the journal does not name
is removed, unless the journal itself is damaged: then it is kept as `lost-NUMBER.kv`.

An OSError leaves the store usable: a save that fails has no effect but for a version that nobody names, removed when
the journal is known not to name it; changes of names that fail are made all the same here, and are on disk with the
next record that is, because that begins a new journal (journal.py).

Called by `kernel/durable.py`. Never add here: K/V of running files, waiting, threads, other formats.
"""

from array import array
from contextlib import suppress
from typing import NamedTuple

from kvfs.store import format as layout
from kvfs.store.disk import Disk
from kvfs.store.format import Contents, Damaged, Geometry, Head
from kvfs.store.journal import NEW, Journal
from kvfs.store.tree import Change, Tree
from sdk.abi.errors import NoSpace

KV, TMP, LOST = ".kv", ".tmp", "lost-"
CHUNK_BYTES = 16 << 20  # of pages at a time


class Recovered(NamedTuple):
    """What was out of order when the store was opened."""

    n_torn: int  # bytes at the end of the journal: never acknowledged
    n_damaged: int  # bytes or records in the midst of it
    n_removed: int  # files that nobody names
    n_lost: int  # such files that were kept, since the journal is damaged


class Writer:
    """A version that is being written."""

    def __init__(self, store: "Store", ino: int, head: Head, tokens: "array[int]", positions: "array[int]") -> None:
        """Raises OSError; NoSpace when the store may not grow so large."""
        start, self._seal = layout.encode_start(head, tokens, positions)
        self.head = head
        self.version = head.version
        self.n_bytes = len(start) + head.n_pages * layout.stride(head.geometry)
        self._store = store
        self._n_pages = 0
        self._fd: int | None = None
        store.reserve(ino, self.version, self.n_bytes)
        try:
            self._fd = store.disk.create(f"{self.version}{TMP}")
        except BaseException:
            self.discard()
            raise
        self._guarded(start)

    def add(self, contents: "bytes | memoryview") -> None:
        """The next pages. Raises OSError; then the version is discarded."""
        page_bytes = self.head.geometry.page_bytes
        data = layout.encode_pages(self._seal, self._n_pages, page_bytes, contents)
        self._n_pages += len(contents) // page_bytes
        self._guarded(data)

    def finish(self) -> None:
        """All pages are there: return when the version is on disk. Raises OSError; then it is discarded."""
        assert self._fd is not None
        assert self._n_pages == self.head.n_pages
        disk = self._store.disk
        try:
            disk.fsync(self._fd)
            self._close()
            disk.rename(f"{self.version}{TMP}", f"{self.version}{KV}")
            disk.fsync_dir()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Nobody wants it any more. Safe at any time before it is committed."""
        self._store.unreserve(self.version)
        with suppress(OSError):
            self._close()
        for name in (f"{self.version}{TMP}", f"{self.version}{KV}"):
            with suppress(OSError):
                self._store.disk.unlink(name)

    def _guarded(self, data: bytes) -> None:
        assert self._fd is not None
        try:
            self._store.disk.append(self._fd, data)
        except BaseException:
            self.discard()
            raise

    def _close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            self._store.disk.close(fd)


class Store:
    """All durable files of a kernel."""

    def __init__(self, disk: Disk, n_bytes_max: int | None = None) -> None:
        """Read the journal, and remove what a crash has left behind. Raises OSError."""
        self.disk = disk
        self._n_bytes_max = n_bytes_max
        self._writing: dict[int, int] = {}  # versions that are being written, and their bytes
        self.tree = Tree()
        self._journal = Journal(disk)
        self._garbage: dict[int, None] = {}  # versions that do not count, and are still on disk
        read = self._journal.read()
        for changes in read.records:
            self.tree.apply(changes)
        self.recovered = self._clean(read.n_torn, read.n_damaged)

    def _clean(self, n_torn: int, n_damaged: int) -> Recovered:
        named = {f"{file.version}{KV}" for file in self.tree.files.values()}
        n_removed = n_lost = 0
        self._version = max((file.version for file in self.tree.files.values()), default=0)
        for name in self.disk.listdir():
            stem, dot, kind = name.partition(".")
            if name == NEW or (stem.isdecimal() and dot + kind == TMP):
                self._unlink(name)
            elif stem.isdecimal() and dot + kind == KV:
                self._version = max(self._version, int(stem))
                if name in named:
                    continue
                if n_damaged:
                    n_lost += 1
                    with suppress(OSError):
                        self.disk.rename(name, LOST + name)
                else:
                    n_removed += 1
                    self._unlink(name)
        return Recovered(n_torn, n_damaged, n_removed, n_lost)

    def _unlink(self, name: str) -> None:
        with suppress(OSError):  # it will be tried again by the next kernel
            self.disk.unlink(name)

    # --- writing ---

    @property
    def n_bytes(self) -> int:
        """Of all versions that count, and of those that are being written."""
        return self.tree.n_bytes + sum(self._writing.values())

    def begin(
        self,
        ino: int,
        geometry: Geometry,
        tokens: "array[int]",
        positions: "array[int]",
        n_kv: int,
        tail_valid: bool,
        edited_at: int | None = None,
    ) -> Writer:
        """Write a new version of a file, whose first `n_kv` tokens have their K/V in pages that are to follow.

        Raises OSError; NoSpace when the store may not grow so large."""
        self._version += 1
        head = Head(self._version, geometry, len(tokens), n_kv, tail_valid, edited_at)
        return Writer(self, ino, head, tokens, positions)

    def rewrite(self, ino: int, version: int, tokens: "array[int]", positions: "array[int]", n_kv: int) -> Writer:
        """A new version with the K/V that an older one has of its first `n_kv` tokens, all of it written already.

        Raises Damaged, OSError, NoSpace."""
        old = self.read_start(version)
        head = old.head
        is_whole = n_kv == len(tokens) == head.n_tokens and head.tail_valid
        edited_at = head.edited_at if head.edited_at is not None and head.edited_at < n_kv else None
        writer = self.begin(ino, head.geometry, tokens, positions, n_kv, is_whole, edited_at)
        try:
            n_chunk = max(1, CHUNK_BYTES // head.geometry.page_bytes)
            for first in range(0, writer.head.n_pages, n_chunk):
                n = min(n_chunk, writer.head.n_pages - first)
                pages = self.read_pages(old, first, n)
                if len(pages) < n * head.geometry.page_bytes:
                    raise Damaged("its pages do not verify")
                writer.add(pages)
        except BaseException:
            writer.discard()
            raise
        return writer

    def reserve(self, ino: int, version: int, n_bytes: int) -> None:
        """Room for a version, which takes the place of the one that counts. Raises NoSpace."""
        before = self.tree.files.get(ino)
        n_after = self.n_bytes + n_bytes - (before.n_bytes if before is not None else 0)
        if self._n_bytes_max is not None and n_after > self._n_bytes_max:
            raise NoSpace(
                f"--kv-dir-size is {self._n_bytes_max} bytes, durable files have {self.n_bytes} and this one needs "
                f"{n_bytes}: remove some with `lip rm`, or raise it"
            )
        self._writing[version] = n_bytes

    def unreserve(self, version: int) -> None:
        """The version counts, or never will."""
        self._writing.pop(version, None)

    def publish(self, writer: Writer, changes: list[Change]) -> None:
        """A finished version counts, by these changes: return when they are on disk. Raises OSError: then nothing has
        changed, though after a crash it may have."""
        self.unreserve(writer.version)
        try:
            if not self._journal.is_open:
                self._journal.begin(self.tree.changes())
            self._journal.append(changes)
        except BaseException:
            self._garbage[writer.version] = None  # not removed before the journal is known not to name it
            raise
        self._applied(changes)

    def commit(self, changes: list[Change]) -> None:
        """Return when these changes of names and attributes are on disk. Raises OSError: they are made here all the
        same, and on disk with the next one that is."""
        if self._journal.is_open:
            try:
                self._journal.append(changes)
            except BaseException:
                self._garbage |= dict.fromkeys(self.tree.apply(changes))
                raise
            self._applied(changes)
        else:
            self._garbage |= dict.fromkeys(self.tree.apply(changes))
            self._journal.begin(self.tree.changes())
            self._applied([])

    def _applied(self, changes: list[Change]) -> None:
        """The journal on disk has these changes, too: it is the tree. Remove what does not count by it."""
        self._garbage |= dict.fromkeys(self.tree.apply(changes))
        for version in self._garbage:
            self._unlink(f"{version}{KV}")
        self._garbage.clear()
        if self._journal.has_grown:
            with suppress(OSError):  # the old one will do
                self._journal.begin(self.tree.changes())

    # --- reading ---

    def read_start(self, version: int) -> Contents:
        """All of a version but its pages. Raises Damaged (also when it is not there), OSError."""
        with _Open(self.disk, f"{version}{KV}") as fd:
            contents = read_start(self.disk, fd)
        if contents.head.version != version:
            raise Damaged(f"it is version {contents.head.version}, and version {version} should be there")
        return contents

    def read_pages(self, contents: Contents, first: int, n: int) -> bytes:
        """The contents of `n` pages from that index on, or fewer: as many as verify. Raises Damaged, OSError."""
        step = layout.stride(contents.head.geometry)
        with _Open(self.disk, f"{contents.head.version}{KV}") as fd:
            raw = self.disk.read(fd, contents.pages_at + first * step, n * step)
        return b"".join(layout.verified(contents, first, raw))

    def close(self) -> None:
        """Give the journal back."""
        self._journal.close()


class _Open:
    """A file of the disk, for a while."""

    def __init__(self, disk: Disk, name: str) -> None:
        self._disk, self._name = disk, name

    def __enter__(self) -> int:
        try:
            self._fd = self._disk.open(self._name)
        except FileNotFoundError:
            raise Damaged("it is not there any more") from None
        return self._fd

    def __exit__(self, *_: object) -> None:
        self._disk.close(self._fd)


def read_start(disk: Disk, fd: int) -> Contents:
    """All of a file but its pages, verified. Raises Damaged, OSError."""
    length = layout.head_length(disk.read(fd, 0, layout.PREFIX_BYTES))
    head = layout.decode_head(disk.read(fd, layout.PREFIX_BYTES, length))
    n_bytes = layout.start_bytes(head, length)
    if n_bytes > disk.size(fd):
        raise Damaged("it is shorter than its head says")
    return layout.decode_start(head, length, disk.read(fd, 0, n_bytes))
