"""Frames in a stream: whatever is put in comes out, however it is cut; what is none is refused."""

import struct
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworker.stream import ALIGN, JOIN_BYTES, MAX_FRAMES, Assembler, StreamError, parse, pieces

messages = st.lists(st.lists(st.binary(max_size=50), min_size=1, max_size=MAX_FRAMES), max_size=6)


@given(sent=messages, cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_what_is_sent_arrives_however_it_is_cut(sent: list[list[bytes]], cuts: list[int]) -> None:
    data = b"".join(bytes(piece) for frames in sent for piece in pieces(frames))
    assembler, received = Assembler(10_000), []
    places = sorted({0, *(c for c in cuts if c < len(data)), len(data)})
    for begin, end in pairwise(places):
        received += [[bytes(f) for f in frames] for frames in assembler.feed(data[begin:end])]
    assert received == sent


@given(data=st.binary(max_size=200))
def test_any_bytes_are_messages_or_refused(data: bytes) -> None:
    assembler = Assembler(1000)
    with suppress(StreamError):
        for frames in assembler.feed(data):
            assert 1 <= len(frames) <= MAX_FRAMES
            assert sum(map(len, frames)) <= 1000


def test_a_large_message_is_not_copied_and_a_small_one_is_one_piece() -> None:
    large = bytes(JOIN_BYTES)
    assert any(piece is not None and memoryview(piece).obj is large for piece in pieces([b"head", large]))
    assert len(pieces([b"head", b"array"])) == 1


def test_frames_are_aligned() -> None:
    (piece,) = pieces([b"abc", struct.pack("<2I", 1, 2)])
    assert len(piece) % ALIGN == 0
    assert piece.find(struct.pack("<2I", 1, 2)) % ALIGN == 0


@pytest.mark.parametrize(
    "data",
    [struct.pack("<I", 0), struct.pack("<I", MAX_FRAMES + 1), struct.pack("<II", 1, 2000)],
    ids=["no frames", "too many", "too large"],
)
def test_a_header_is_judged_before_the_rest_comes(data: bytes) -> None:
    with pytest.raises(StreamError):
        list(Assembler(1000).feed(data))


def test_addresses() -> None:
    assert parse("tcp://127.0.0.1:7001") == ("127.0.0.1", 7001)
    assert parse("tcp://[::1]:*") == ("::1", 0)
    assert parse("tcp://*:1") == ("", 1)
    assert parse("ipc:///run/w") == "/run/w"
    with pytest.raises(ValueError, match="write tcp://"):
        parse("http://127.0.0.1:1")
