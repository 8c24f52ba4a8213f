"""The wire: every message survives the trip, and no bytes at all get past the decoders as anything but WireError."""

import contextlib
from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuworker import wire
from gpuworker.wire import Answer, Ask, Batch, BatchDone, BatchDoneHead, BatchHead, Draw, Edit, Row, RowDone, WireError
from sdk.abi.errors import Errno
from sdk.abi.values import ModelInfo, Sampling

MODEL = ModelInfo("m", "f", "llama", 1, "float32", 300, 256, 16, 1, [2], has_chat_template=True)
DRAW = Draw(Sampling(temperature=0.7, logit_bias={5: -1.5}), 2**64 - 1, 9, n_history=3, n_generated=1)


def batch() -> Batch:
    rows = [
        Row(7, 16, 2, 2, [Ask(-1, DRAW), Ask(1, top_k=3, logits=True, logprobs_of=[1, 2], target=4, entropy=True)]),
        Row(8, 5, 0, 1, chained=True),
    ]
    arrays = ([11, 2**32 - 1], [16, 17], [3, 4, 5], [1, 2, 3])
    head = BatchHead(1, [(3, 4)], rows, n_failed=2, moves_out=[(6, 7)], moves_in=[(8, 9), (10, 11)])
    head = msgspec.structs.replace(head, edits=[Edit(12, 3, 13, 0, 5, -7), Edit(12, 0, 14, 0, 1)])
    return Batch(head, *(array("I", a) for a in arrays))


def test_batch_survives() -> None:
    sent = batch()
    got = wire.decode_to_worker(wire.encode(sent))
    assert isinstance(got, Batch)
    assert got.head == sent.head
    for name in ("tokens", "positions", "pages", "history"):
        assert list(getattr(got, name)) == list(getattr(sent, name))


def test_a_decoded_batch_can_be_sent_on() -> None:
    frames = wire.encode(batch())
    again = wire.decode_to_worker(frames)
    assert isinstance(again, Batch)
    assert wire.encode(again) == frames


def test_batch_done_survives() -> None:
    answers = [Answer(3, -0.5, [3, 4], [-0.5, -1.0], [-9.0], -2.0, 1.5, has_logits=True), Answer()]
    sent = BatchDone(BatchDoneHead(4, [RowDone(7, answers)], 2, 0.25, 0.5), array("f", [1.0, 2.0]).tobytes())
    got = wire.decode_to_kernel(wire.encode(sent))
    assert isinstance(got, BatchDone)
    assert got.head == sent.head
    assert bytes(got.logits) == sent.logits


def test_contents_of_pages_survive() -> None:
    for contents in (b"", b"12345", memoryview(b"67890")):
        stored = wire.decode_to_worker(wire.encode(wire.Store(wire.StoreHead(7, [3, 4]), contents)))
        fetched = wire.decode_to_kernel(wire.encode(wire.Fetched(wire.FetchedHead(7), contents)))
        assert isinstance(stored, wire.Store)
        assert isinstance(fetched, wire.Fetched)
        assert (stored.head, bytes(stored.contents)) == (wire.StoreHead(7, [3, 4]), bytes(contents))
        assert (fetched.head, bytes(fetched.contents)) == (wire.FetchedHead(7), bytes(contents))


@pytest.mark.parametrize("message", [wire.Fetch(5, [1, 2]), wire.GetAssets(), wire.Ping(3), wire.Detach("bye")])
def test_messages_to_the_worker_survive(message: wire.FromKernel) -> None:
    assert wire.decode_to_worker(wire.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        wire.BatchFailed(1, Errno.ENOSPC, "no memory"),
        wire.BatchFailed(1, Errno.EIO, "void", void=True),
        wire.Stored(1),
        wire.PagesFailed(1, Errno.EINVAL, "no such page"),
        wire.Assets("{}", None, {"eos_token": "e"}, add_bos=True),
        wire.Pong(1, 2, 3),
        wire.Bye("end"),
    ],
)
def test_messages_to_the_kernel_survive(message: wire.FromWorker) -> None:
    assert wire.decode_to_kernel(wire.encode(message)) == message


@pytest.mark.parametrize(
    "greeting",
    [
        wire.Hello(wire.WIRE_HASH, "k1"),
        wire.Welcome(wire.WIRE_HASH, "w1", 12, "cpu", "cpu", MODEL, 10, 20, 4096, 4, 64),
        wire.Refused(wire.WIRE_HASH, "no"),
    ],
)
def test_greetings_survive(greeting: wire.Greeting) -> None:
    frames = wire.encode_greeting(greeting)
    assert frames[0][:1] == b"{"  # how a worker tells a greeting from a message
    assert wire.decode_greeting(frames) == greeting


def test_no_message_looks_like_a_greeting() -> None:
    for message in (batch(), wire.GetAssets(), wire.Ping(1), wire.Detach("x")):
        assert wire.encode(message)[0][:1] != b"{"


@pytest.mark.parametrize("frame", [1, 2, 3, 4])
@pytest.mark.parametrize("change", [lambda f: f + b"\0\0\0\0", lambda f: f + b"\0", lambda f: f[4:]])
def test_arrays_must_fit_the_rows(frame: int, change: object) -> None:
    frames = wire.encode(batch())
    frames[frame] = change(frames[frame])  # type: ignore[operator]
    with pytest.raises(WireError):
        wire.decode_to_worker(frames)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        wire.encode(batch())[:4],
        [*wire.encode(batch()), b""],
        [b"\x83\xa4type\xa4ping\xa5nonce\x01\xa1x" + b"\x91" * 200_000 + b"\0"],  # nested without an end
        [b"\x82\xa4type\xa6detach\xa6reason\xa1\xff"],  # text that is no UTF-8
        wire.encode(wire.Pong(1, 2, 3)),  # the other direction
        wire.encode(wire.Store(wire.StoreHead(7, [3]), b"x"))[:1],
        [*wire.encode(wire.Store(wire.StoreHead(7, [3]), b"x")), b"y"],
    ],
)
def test_malformed_to_worker(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        wire.decode_to_worker(frames)


@pytest.mark.parametrize("done", [wire.Fetched(wire.FetchedHead(7), b"x"), BatchDone(BatchDoneHead(4, [], 0, 0.0))])
def test_malformed_to_kernel(done: wire.Fetched | BatchDone) -> None:
    frames = wire.encode(done)
    for bad in (frames[:1], [*frames, b""], []):
        with pytest.raises(WireError):
            wire.decode_to_kernel(bad)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"{}",
        b'{"type":"hello"}',
        b'{"type":"hello","schema":"\xff","kernel":"k"}',
        b'{"type":"hello","schema":"s","kernel":"k","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_malformed_greeting(frame: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode_greeting([frame])


@given(st.lists(st.binary(max_size=64), max_size=6))
def test_random_frames_raise_nothing_but_wire_error(frames: list[bytes]) -> None:
    for decode in (wire.decode_to_worker, wire.decode_to_kernel, wire.decode_greeting):
        with pytest.raises(WireError):
            decode(frames)


@given(st.integers(0, 4), st.integers(0, 400), st.integers(1, 255))
def test_a_changed_byte_decodes_or_raises_wire_error(frame: int, at: int, flip: int) -> None:
    frames = wire.encode(batch())
    changed = bytearray(frames[frame])
    changed[at % len(changed)] ^= flip
    frames[frame] = bytes(changed)
    with contextlib.suppress(WireError):
        assert isinstance(wire.decode_to_worker(frames), Batch | wire.GetAssets | wire.Ping | wire.Detach)
