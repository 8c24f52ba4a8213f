from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs.store.format import (
    PREFIX_BYTES,
    Damaged,
    Geometry,
    Head,
    decode_head,
    decode_start,
    encode_pages,
    encode_start,
    head_length,
    start_bytes,
    verified,
)

GEOMETRY = Geometry("m", "f", "float32", 4, 10)
TOKENS = array("I", [1, 2, 3, 4, 5])
HEAD = Head(7, GEOMETRY, 5, 5, True)


def decode(data):
    length = head_length(data[:PREFIX_BYTES])
    head = decode_head(data[PREFIX_BYTES : PREFIX_BYTES + length])
    return decode_start(head, length, data[: start_bytes(head, length)])


def test_there_and_back():
    start, seal = encode_start(HEAD, TOKENS, TOKENS)
    contents = decode(start + b"pages")
    assert contents.head == HEAD
    assert contents.head.n_pages == 2
    assert (contents.tokens, contents.positions) == (TOKENS, TOKENS)
    assert (contents.seal, contents.pages_at) == (seal, len(start))
    raw = encode_pages(seal, 0, 10, bytes(20))
    assert [bytes(page) for page in verified(contents, 0, raw)] == [bytes(10), bytes(10)]


@given(st.data())
def test_any_changed_byte_is_noticed(data):
    start, _ = encode_start(HEAD, TOKENS, TOKENS)
    changed = bytearray(start)
    changed[data.draw(st.integers(0, len(start) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Damaged):
        decode(bytes(changed))


@given(st.binary(max_size=200))
def test_rubbish_is_damaged(data):
    with pytest.raises(Damaged):
        decode(data)


def test_pages_verify_in_their_place_alone():
    start, seal = encode_start(HEAD, TOKENS, TOKENS)
    contents = decode(start)
    raw = encode_pages(seal, 0, 10, b"a" * 10 + b"b" * 10)
    first, second = raw[:42], raw[42:]
    assert len(list(verified(contents, 0, raw))) == 2
    assert len(list(verified(contents, 1, second))) == 1
    assert list(verified(contents, 0, second + first)) == []
    other, _ = encode_start(Head(8, GEOMETRY, 5, 5, True), TOKENS, TOKENS)
    assert list(verified(decode(other), 0, raw)) == []
    assert len(list(verified(contents, 0, raw[:-1]))) == 1


def test_the_version_of_the_format_is_named():
    start, _ = encode_start(HEAD, TOKENS, TOKENS)
    with pytest.raises(Damaged, match="version 9, and this kernel reads version 1"):
        head_length(start[:7] + b"\x09" + start[8:])


def test_what_fits():
    assert GEOMETRY.fits(Geometry("renamed", "f", "float32", 4, 10))
    for other in (Geometry("m", "g", "float32", 4, 10), Geometry("m", "f", "bfloat16", 4, 10)):
        assert not GEOMETRY.fits(other)
    assert "float32" in str(GEOMETRY)
