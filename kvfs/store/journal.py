"""The journal: a file of records, each of which is on disk when `append` returns.

    record   magic, 4 bytes · length of the payload, u32 · number, u64 · digest, 16 bytes · payload

The digest is of the number and the payload; numbers rise by one. A crash tears the end of the file at most: what does
not verify there was never acknowledged, and is dropped. Anything else that does not verify is damage; the records after
it are still found by their magic, and used.

A journal is never opened for appending: the first record of a kernel, and the first after anything went wrong, begins
a new one, which has all that counts and takes the old one's name. So no record ever stands behind a torn one, no fsync
is tried twice, and starting a kernel writes nothing. It is also how a journal that has grown is made short.

Called by store.py. Never add here what a record means.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from blake3 import blake3

from kvfs.store.disk import Disk
from kvfs.store.tree import Change

NAME, NEW = "journal", "journal.new"
MAGIC = b"KVJ\x01"
_HEAD = struct.Struct("<4sIQ16s")
_NUMBER = struct.Struct("<Q")
GROWTH, SMALL_BYTES = 4, 1 << 20  # so many times as long as when it was begun, and not small: make it short


class Read(NamedTuple):
    """What was found in a journal."""

    records: list[list[Change]]
    n_torn: int  # bytes at the end that are no whole record
    n_damaged: int  # bytes before the last good record that are none, or numbers that are missing


class Journal:
    """Of one directory."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._fd: int | None = None  # None: the next record begins a new journal
        self._number = 0
        self._n_bytes = 0
        self._n_bytes_begun = 0

    @property
    def is_open(self) -> bool:
        """Whether the journal can be appended to; `begin` it otherwise."""
        return self._fd is not None

    @property
    def has_grown(self) -> bool:
        """Whether a new one would be much shorter."""
        return self._n_bytes > SMALL_BYTES and self._n_bytes > GROWTH * self._n_bytes_begun

    def read(self) -> Read:
        """All records on disk; none if there is no journal. Raises OSError."""
        try:
            fd = self._disk.open(NAME)
        except FileNotFoundError:
            return Read([], 0, 0)
        try:
            return decode(self._disk.read(fd, 0, self._disk.size(fd)))
        finally:
            self._disk.close(fd)

    def append(self, changes: list[Change]) -> None:
        """Return when the record is on disk. Raises OSError: then nobody knows whether it is; begin a new journal."""
        assert self._fd is not None
        fd, self._fd = self._fd, None
        try:
            data = encode(self._number, changes)
            self._disk.append(fd, data)
            self._disk.fsync(fd)
        except BaseException:
            self._disk.close(fd)
            raise
        self._fd = fd
        self._number += 1
        self._n_bytes += len(data)

    def begin(self, records: Iterable[list[Change]]) -> None:
        """Replace the journal by a new one with these records. Raises OSError: then it is the old one or the new."""
        self.close()
        encoded = [encode(number, changes) for number, changes in enumerate(records)]
        data = b"".join(encoded)
        fd = self._disk.create(NEW)
        try:
            self._disk.append(fd, data)
            self._disk.fsync(fd)
            self._disk.rename(NEW, NAME)
            self._disk.fsync_dir()
        except BaseException:
            self._disk.close(fd)
            raise
        self._fd = fd
        self._number = len(encoded)
        self._n_bytes = self._n_bytes_begun = len(data)

    def close(self) -> None:
        """Give the file back; it can be begun again."""
        if self._fd is not None:
            self._disk.close(self._fd)
            self._fd = None


def encode(number: int, changes: list[Change]) -> bytes:
    """One record."""
    payload = msgspec.msgpack.encode(changes)
    return _HEAD.pack(MAGIC, len(payload), number, _digest(number, payload)) + payload


_decoder = msgspec.msgpack.Decoder(list[Change])


def decode(data: bytes) -> Read:
    """All good records of a journal, in their order."""
    records: list[list[Change]] = []
    at = n_damaged = 0
    expected = 0
    while at < len(data):
        found = _record(data, at)
        if found is None:
            after = _next_good(data, at + 1)
            if after is None:
                return Read(records, len(data) - at, n_damaged)
            n_damaged += after - at
            at = after
            continue
        number, changes, end = found
        n_damaged += number != expected
        expected = number + 1
        records.append(changes)
        at = end
    return Read(records, 0, n_damaged)


def _record(data: bytes, at: int) -> tuple[int, list[Change], int] | None:
    """(number, changes, offset of the next record), if there is a good record at that offset."""
    if at + _HEAD.size > len(data):
        return None
    magic, length, number, digest = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + length
    if magic != MAGIC or end > len(data):
        return None
    payload = data[at + _HEAD.size : end]
    if _digest(number, payload) != digest:
        return None
    try:
        return number, _decoder.decode(payload), end
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _next_good(data: bytes, at: int) -> int | None:
    """Where the next good record begins."""
    while (at := data.find(MAGIC, at)) >= 0:
        if _record(data, at) is not None:
            return at
        at += 1
    return None


def _digest(number: int, payload: bytes) -> bytes:
    digest = blake3(_NUMBER.pack(number))
    digest.update(payload)
    return digest.digest(length=16)
