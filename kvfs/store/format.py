"""The format of one KV file on disk, and of one that is copied between machines: how it is laid out and verified.

    magic        8 bytes: SYMPHKV and the version of the format
    length       u32, of the head
    head         msgpack of `Head`: whose it is, its model and geometry, how much follows
    tokens       u32 [n_tokens]
    positions    u32 [n_tokens]
    seal         BLAKE3 of all of the above, 32 bytes
    pages        [ceil(n_kv / page_size)] times: digest, 32 bytes, and contents, `page_bytes`

All numbers are little-endian. A page's digest is BLAKE3 keyed with the seal, over the page's index and contents: a page
of another file, of an older version, or at another place does not verify. The contents are a worker's own (`Fetched` in
gpuworker/wire.py): K/V of all layers, and the tails.

Reading trusts nothing: a file may have been cut, changed or exchanged for another. Whatever does not verify is
`Damaged`. Called by store.py. Never add here: names, disks, what is done about damage.
"""

import struct
from array import array
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import msgspec
from blake3 import blake3
from msgspec import Meta, Struct

MAGIC = b"SYMPHKV\x01"
DIGEST_BYTES = 32
HEAD_BYTES_MAX = 1 << 16
_LENGTH = struct.Struct("<I")
_INDEX = struct.Struct("<Q")
PREFIX_BYTES = len(MAGIC) + _LENGTH.size

Count = Annotated[int, Meta(ge=0, lt=1 << 40)]


class Damaged(Exception):
    """What was read is not what was written; the text is one line."""


class Geometry(Struct, frozen=True):
    """What must agree for pages to be of use: the model and the layout of a page."""

    model: str  # its name, for messages
    fingerprint: str
    dtype: str
    page_size: Count
    page_bytes: Count

    def fits(self, other: "Geometry") -> bool:
        """Whether pages of the other can be used here."""
        return msgspec.structs.replace(self, model="") == msgspec.structs.replace(other, model="")

    def __str__(self) -> str:
        return (
            f"{self.model} (fingerprint {self.fingerprint[:12]}, {self.dtype}, "
            f"pages of {self.page_size} tokens and {self.page_bytes} bytes)"
        )


class Head(Struct, frozen=True):
    """What a stored file says of itself."""

    version: Count  # number of this file among all that were ever written in its directory; 0 in an exported one
    geometry: Geometry
    n_tokens: Count
    n_kv: Count  # of those, how many have their K/V in the pages that follow
    tail_valid: bool  # the hidden state after the last token is in the last page
    edited_at: Count | None = None  # from that token on the K/V is of another context (kvfs/inode.py, `Edited`)

    @property
    def n_pages(self) -> int:
        return -(-self.n_kv // self.geometry.page_size) if self.n_kv else 0


class Contents(NamedTuple):
    """All of a stored file but its pages. `tokens` and `positions` are u32 [n_tokens]."""

    head: Head
    tokens: "array[int]"
    positions: "array[int]"
    seal: bytes
    pages_at: int  # offset of the first page in the file


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Head)


def encode_start(head: Head, tokens: "array[int]", positions: "array[int]") -> tuple[bytes, bytes]:
    """What comes before the pages, and the seal at its end."""
    packed = _encoder.encode(head)
    start = b"".join((MAGIC, _LENGTH.pack(len(packed)), packed, tokens.tobytes(), positions.tobytes()))
    seal = blake3(start).digest()
    return start + seal, seal


def encode_pages(seal: bytes, index: int, page_bytes: int, contents: "bytes | memoryview") -> bytes:
    """These pages, the first of which has that index in its file, with their digests."""
    view = memoryview(contents)
    parts: list[bytes | memoryview] = []
    for i, at in enumerate(range(0, len(view), page_bytes), index):
        page = view[at : at + page_bytes]
        parts += (_digest(seal, i, page), page)
    return b"".join(parts)


def stride(geometry: Geometry) -> int:
    """Bytes from one page in the file to the next."""
    return DIGEST_BYTES + geometry.page_bytes


def head_length(prefix: bytes) -> int:
    """Length of the head, from the first `PREFIX_BYTES` of a file. Raises Damaged."""
    if len(prefix) < PREFIX_BYTES or prefix[:7] != MAGIC[:7]:
        raise Damaged("it is no KV file: its first bytes are others")
    if prefix[7:8] != MAGIC[7:8]:
        raise Damaged(f"its format is version {prefix[7]}, and this kernel reads version {MAGIC[7]}")
    (length,) = _LENGTH.unpack_from(prefix, len(MAGIC))
    if not 0 < length <= HEAD_BYTES_MAX:
        raise Damaged("the length of its head makes no sense")
    return int(length)


def decode_head(packed: bytes) -> Head:
    """Not verified yet, but of the right types. Raises Damaged."""
    try:
        head = _decoder.decode(packed)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise Damaged(f"its head cannot be read: {e}") from None
    if head.n_kv > head.n_tokens or not head.geometry.page_size or not head.geometry.page_bytes:
        raise Damaged("its head makes no sense")
    return head


def decode_start(head: Head, length: int, start: bytes) -> Contents:
    """Verify all before the pages. Raises Damaged."""
    pages_at = start_bytes(head, length)
    seal = start[pages_at - DIGEST_BYTES : pages_at]
    body = memoryview(start)[: pages_at - DIGEST_BYTES]
    if len(start) < pages_at or blake3(body).digest() != seal:
        raise Damaged("its head, tokens or positions have been changed or cut off")
    at = PREFIX_BYTES + length
    tokens, positions = array("I"), array("I")
    tokens.frombytes(body[at : at + 4 * head.n_tokens])
    positions.frombytes(body[at + 4 * head.n_tokens :])
    return Contents(head, tokens, positions, seal, pages_at)


def start_bytes(head: Head, length: int) -> int:
    """Bytes before the pages, when the head is packed to `length`."""
    return PREFIX_BYTES + length + 8 * head.n_tokens + DIGEST_BYTES


def verified(contents: Contents, index: int, raw: bytes) -> Iterator[memoryview]:
    """The contents of pages, the first of which has that index, as long as they verify. `raw` is as in the file."""
    step, view = stride(contents.head.geometry), memoryview(raw)
    for i, at in enumerate(range(0, len(view) - step + 1, step), index):
        page = view[at + DIGEST_BYTES : at + step]
        if _digest(contents.seal, i, page) != view[at : at + DIGEST_BYTES]:
            return
        yield page


def _digest(seal: bytes, index: int, page: "bytes | memoryview") -> bytes:
    digest = blake3(_INDEX.pack(index), key=seal)
    digest.update(page)
    return digest.digest()
