"""THE STREAM that messages of wire.py travel on: how addresses are spelled, and how frames lie in a socket.

    tcp://127.0.0.1:7001        ipc:///path/to/socket (of this machine)

    message:  u32 n   u32 length[n]   frame 0   …   frame n-1        little-endian; the header, and each frame, is
                                                                     padded with zeros to a multiple of 8 bytes

So every array in a message is aligned as it lies. Both ends use this and nothing else of each other. A stream that
does not keep to it has lost its place and can only be closed; what the frames say is wire.py's to judge. No I/O.
"""

import re
from collections.abc import Iterator, Sequence
from struct import Struct, pack

ALIGN = 8
MAX_FRAMES = 8
JOIN_BYTES = 1 << 16  # smaller messages are one piece, so that one system call takes them

TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]]+):(?P<port>\*|[0-9]{1,5})")
HINT = "write tcp://127.0.0.1:7001 or ipc:///path/to/socket"

_U32 = Struct("<I")

Frames = Sequence[bytes | memoryview]


class StreamError(Exception):
    """What came is no message of any version of ours; one line."""


def parse(address: str) -> tuple[str, int] | str:
    """(host, port) of a tcp address, the path of an ipc one. Host and port may be `*`: any, and any free one (0).

    Raises ValueError, with what to write instead."""
    if re.fullmatch(r"ipc://[^@*].*", address):  # a path; names in the abstract namespace have no permissions
        return address.removeprefix("ipc://")
    tcp = TCP.fullmatch(address)
    if tcp is None or (tcp["port"] != "*" and int(tcp["port"]) > 65535):
        raise ValueError(f"{address!r} is no address: {HINT}")
    host = tcp["host"].strip("[]")
    return ("" if host == "*" else host), (0 if tcp["port"] == "*" else int(tcp["port"]))


def pieces(frames: Frames) -> list[bytes | memoryview]:
    """A message as bytes to be sent one after another; a single piece unless it is large."""
    views = [memoryview(frame).cast("B") for frame in frames]
    head = pack(f"<{1 + len(views)}I", len(views), *map(len, views))
    out: list[bytes | memoryview] = [head + bytes(-len(head) % ALIGN)]
    for view in views:
        out.append(view)
        if len(view) % ALIGN:
            out.append(bytes(-len(view) % ALIGN))
    return [b"".join(out)] if sum(map(len, out)) <= JOIN_BYTES else out


class Assembler:
    """Puts the messages of one stream together again."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of one message."""
        self.max_bytes = max_bytes
        self._rest = bytearray()  # of a message that is not complete
        self._wanted = 0  # bytes that it needs at least

    def feed(self, data: bytes) -> Iterator[list[memoryview]]:
        """The messages that are complete with `data`, which stay valid. Raises StreamError: close the stream then."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data = bytes(self._rest)
            self._rest = bytearray()
        at = 0
        while at < len(data):
            self._wanted = self._size(data, at)
            if len(data) - at < self._wanted:
                self._rest += data[at:]
                return
            yield _frames(data, at)
            at += self._wanted

    def _size(self, data: bytes, at: int) -> int:
        """Bytes of the message that begins there, or at first of its header."""
        if len(data) - at < _U32.size:
            return _U32.size
        (n,) = _U32.unpack_from(data, at)
        if not 1 <= n <= MAX_FRAMES:
            raise StreamError(f"a message of {n} frames; there are 1 to {MAX_FRAMES}: is the other end a Symphony?")
        size = _padded(_U32.size * (1 + n))
        if len(data) - at >= size:
            size += sum(map(_padded, _lengths(data, at, n)))
        if size > self.max_bytes:
            raise StreamError(f"a message of {size} bytes; at most {self.max_bytes} are taken")
        return size


def _padded(n: int) -> int:
    return n + -n % ALIGN


def _lengths(data: bytes, at: int, n: int) -> list[int]:
    return [length for (length,) in _U32.iter_unpack(data[at + _U32.size : at + _U32.size * (1 + n)])]


def _frames(data: bytes, at: int) -> list[memoryview]:
    (n,) = _U32.unpack_from(data, at)
    view, begin, frames = memoryview(data), at + _padded(_U32.size * (1 + n)), []
    for length in _lengths(data, at, n):
        frames.append(view[begin : begin + length])
        begin += _padded(length)
    return frames
