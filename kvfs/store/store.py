"""The store: durable KV files in one directory of a disk. Synchronous; all but `Writer.sync` runs in one thread.

    journal        which nodes there are, under which names, and which version of a file counts (journal.py, tree.py)
    NUMBER.kv      a version of a file, never changed (format.py)
    NUMBER.tmp     one that is being written

To save a file is to write a new version (`begin`, `add`, `sync`, `finish`) and then to say that it counts (`commit`):

    write NUMBER.tmp · fsync · rename to NUMBER.kv · fsync the directory · journal record · fsync · remove the old one
    └─────────────── of each file ───────────────┘   └────── once for all that are committed together ──────┘

So at any moment the version that the journal names is whole and on disk. After a crash, what the journal does not name
is removed. But when the journal itself is damaged, torn, empty or gone, it does not say what counts: then nothing is
removed, and files that nobody names are kept as `lost-NUMBER.kv`.

An OSError leaves the store usable: a save that fails has no effect but for a version that nobody names, removed when
the journal is known not to name it; changes of names that fail are made all the same here, and are on disk with the
next record that is, because that begins a new journal (journal.py).

Called by `kernel/durable.py`. Never add here: K/V of running files, waiting, threads, other formats.
"""

from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from kvfs.store import format as layout
from kvfs.store.disk import Disk
from kvfs.store.format import Contents, Damaged, Geometry, Head
from kvfs.store.journal import NEW, Journal, Read
from kvfs.store.tree import Change, Tree
from sdk.abi.errors import NoSpace

KV, TMP, LOST = ".kv", ".tmp", "lost-"
CHUNK_BYTES = 16 << 20  # of pages at a time


class Recovered(NamedTuple):
    """What was out of order when the store was opened."""

    n_torn: int  # bytes at the end of the journal: never acknowledged
    n_damaged: int  # bytes or records in the midst of it
    n_removed: int  # files that nobody names
    n_lost: int  # such files that were kept, since the journal is not whole


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
        self._is_synced = False
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

    def sync(self) -> None:
        """All pages are there: return when they are on disk. In any thread, so that many can wait together. Raises
        OSError: then discard it."""
        assert self._fd is not None
        assert self._n_pages == self.head.n_pages
        self._store.disk.fsync(self._fd)
        self._is_synced = True

    def finish(self) -> None:
        """Give a version that is synced its name, which is on disk when it is committed. Raises OSError; then it is
        discarded."""
        assert self._is_synced
        disk = self._store.disk
        try:
            self._close()
            disk.rename(f"{self.version}{TMP}", f"{self.version}{KV}")
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


class Commit(NamedTuple):
    """Changes that are to be on disk, and the finished version that they make count, if they do."""

    changes: list[Change]
    writer: Writer | None = None


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
        self.recovered = self._clean(read)

    def _clean(self, read: Read) -> Recovered:
        is_whole = bool(read.records) and not read.n_torn and not read.n_damaged
        versions = {file.version for file in self.tree.files.values()}
        n_removed = n_lost = 0
        self._version = max(versions, default=0)
        for name in self.disk.listdir():
            stem, dot, kind = name.partition(".")
            number = stem.removeprefix(LOST)
            if name == NEW or (stem.isdecimal() and dot + kind == TMP):
                self._unlink(name)
            elif number.isdecimal() and dot + kind == KV:
                self._version = max(self._version, int(number))
                if number != stem or int(number) in versions:
                    continue
                if is_whole:
                    n_removed += 1
                    self._unlink(name)
                else:
                    n_lost += 1
                    with suppress(OSError):
                        self.disk.rename(name, LOST + name)
        return Recovered(read.n_torn, read.n_damaged, n_removed, n_lost)

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
                f"--kv-dir-size is {self._n_bytes_max} bytes, and the {n_bytes} of this file have no place beside what "
                "is there: unlink files and `sync` again, or ask the operator to raise it"
            )
        self._writing[version] = n_bytes

    def unreserve(self, version: int) -> None:
        """The version counts, or never will."""
        self._writing.pop(version, None)

    def commit(self, commits: Sequence[Commit]) -> None:
        """Return when these changes are on disk, by one record: all of them, in this order, or none. One commit or many
        cost the same syncs.

        Raises OSError. Then the versions do not count, and after a crash all of it may be there or nothing; changes
        without a version, those of names and attributes, are made here all the same, and on disk with the next
        commit that is."""
        writers = [commit.writer for commit in commits if commit.writer is not None]
        for writer in writers:
            self.unreserve(writer.version)
        try:
            if not self._journal.is_open:
                self._journal.begin(self.tree.changes())
            elif writers:
                self.disk.fsync_dir()
            self._journal.append([change for commit in commits for change in commit.changes])
        except BaseException:
            self._journal.close()  # the next one has to have all that is made here
            # Not removed before the journal is known not to name them:
            self._garbage |= dict.fromkeys(writer.version for writer in writers)
            for commit in commits:
                if commit.writer is None:
                    self._garbage |= dict.fromkeys(self.tree.apply(commit.changes))
            raise
        for commit in commits:
            self._garbage |= dict.fromkeys(self.tree.apply(commit.changes))
        self._tidy()

    def _tidy(self) -> None:
        """The journal on disk is the tree: remove what does not count by it."""
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
