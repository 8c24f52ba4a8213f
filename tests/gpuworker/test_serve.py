"""The door, over real sockets: what is answered when, and what no bytes can do."""

import struct
from array import array
from collections.abc import Sequence

import pytest

from gpuworker import wire
from gpuworker.backend import MAX_CONTENTS_BYTES, StepError
from gpuworker.null import NullBackend
from gpuworker.serve import MAX_FAULTS, MAX_MESSAGE_BYTES, MAX_PEERS, MAX_QUEUED
from gpuworker.stream import pieces
from gpuworker.wire import Batch, BatchDone, BatchFailed, BatchHead, Row
from sdk.abi.errors import Errno
from tests.gpuworker.serving import PATIENCE_S, BrokenDevice, GatedDevice, House, batch


def test_batches_are_answered_in_order_each_once(house: House) -> None:
    house.serve(GatedDevice())
    kernel = house.kernel().attach()
    for seq in range(20):
        kernel.tell(batch(seq, n_new=1 + seq % 3))
    direct = NullBackend()
    for seq in range(20):
        want, got = direct.run(batch(seq, n_new=1 + seq % 3)), kernel.hear(BatchDone)
        assert got.head.seq == seq
        assert got.head.rows == want.head.rows
    pong = kernel.ping()
    assert (pong.n_batches, pong.n_tokens) == (20, sum(1 + seq % 3 for seq in range(20)))


def test_pings_are_answered_while_a_step_runs(house: House) -> None:
    device = GatedDevice(gate_open=False)
    house.serve(device)
    kernel = house.kernel().attach()
    kernel.tell(batch(1))
    assert device.has_started.acquire(timeout=PATIENCE_S)
    for nonce in range(5):
        assert kernel.ping(nonce).n_batches == 0
    device.gate.set()
    assert kernel.hear(BatchDone).head.seq == 1
    assert kernel.ping().n_batches == 1


def test_batches_built_on_one_that_failed_are_void(house: House) -> None:
    """Sent ahead while it ran. Once the kernel has heard of it, all is well again, and so it is for the next kernel."""
    device = GatedDevice(gate_open=False)
    house.serve(device)
    kernel = house.kernel().attach()
    kernel.tell(batch(1))
    assert device.has_started.acquire(timeout=PATIENCE_S)
    kernel.tell(batch(2, n_before=8192))
    for seq in (3, 4):
        kernel.tell(batch(seq))
    kernel.ping()
    device.gate.set()
    assert kernel.hear(BatchDone).head.seq == 1
    failed = [kernel.hear(BatchFailed) for _ in range(3)]
    assert [(f.seq, f.errno, f.void) for f in failed] == [
        (2, Errno.EINVAL, False),
        (3, Errno.EIO, True),
        (4, Errno.EIO, True),
    ]
    kernel.tell(batch(5, n_failed=1))
    assert kernel.hear(BatchDone).head.seq == 5
    assert device.started == [1, 2, 5]
    assert kernel.ping().n_batches == 5
    kernel.attach().tell(batch(6))
    assert kernel.hear(BatchDone).head.seq == 6


def test_pages_are_fetched_and_stored_in_turn(house: House) -> None:
    """Between the batches, as those before have left them; batches after a store find what was stored."""
    device = GatedDevice(gate_open=False)
    house.serve(device)
    kernel = house.kernel().attach()
    kernel.tell(batch(1, n_new=20))
    assert device.has_started.acquire(timeout=PATIENCE_S)
    kernel.tell(wire.Fetch(11, [0, 1]))
    kernel.tell(batch(2, n_new=30))
    kernel.ping()
    device.gate.set()
    assert kernel.hear(BatchDone).head.seq == 1
    fetched = kernel.hear(wire.Fetched)
    assert kernel.hear(BatchDone).head.seq == 2
    direct = NullBackend()
    direct.run(batch(1, n_new=20))
    assert (fetched.head.number, bytes(fetched.contents)) == (11, direct.fetch([0, 1]))
    kernel.tell(wire.Store(wire.StoreHead(12, [1, 0]), fetched.contents))
    kernel.tell(wire.Fetch(13, [1, 0]))
    assert kernel.hear(wire.Stored).number == 12
    assert bytes(kernel.hear(wire.Fetched).contents) == bytes(fetched.contents)
    kernel.tell(wire.Fetch(14, [2 * 4096]))
    refused = kernel.hear(wire.PagesFailed)
    assert (refused.number, refused.errno) == (14, Errno.EINVAL)
    kernel.tell(batch(3))
    assert kernel.hear(BatchDone).head.seq == 3


def test_as_much_as_the_limit_of_contents_passes_the_socket(house: House) -> None:
    device = GatedDevice(n_pages=512, n_host_pages=0, page_size=10922)
    house.serve(device)
    kernel = house.kernel().attach()
    pages = list(range(MAX_CONTENTS_BYTES // device.info().page_bytes))
    assert len(pages) * device.info().page_bytes == MAX_CONTENTS_BYTES
    contents = bytes(range(256)) * (MAX_CONTENTS_BYTES // 256)
    kernel.tell(wire.Store(wire.StoreHead(1, pages), contents))
    kernel.hear(wire.Stored)
    kernel.tell(wire.Fetch(2, pages))
    assert bytes(kernel.hear(wire.Fetched).contents) == contents


@pytest.mark.parametrize("bad", [batch(1, n_new=2049), batch(1, n_before=8192)], ids=["tokens", "context"])
def test_a_batch_beyond_the_limits_fails_alone(house: House, bad: Batch) -> None:
    house.serve(GatedDevice())
    kernel = house.kernel().attach()
    kernel.tell(bad)
    kernel.tell(batch(2, n_failed=1))
    failed = kernel.hear(BatchFailed)
    assert (failed.seq, failed.errno, failed.void) == (1, Errno.EINVAL, False)
    assert kernel.hear(BatchDone).head.seq == 2


def test_too_many_rows(house: House) -> None:
    house.serve(GatedDevice())
    kernel = house.kernel().attach()
    kernel.tell(Batch(BatchHead(1, [], [Row(0, 0, 0, 0)] * 257), *(array("I") for _ in range(4))))
    assert "257 rows" in kernel.hear(BatchFailed).detail


def test_too_many_batches_ahead_fail_in_their_turn(house: House) -> None:
    device = GatedDevice(gate_open=False)
    house.serve(device)
    kernel = house.kernel().attach()
    kernel.tell(batch(0))
    assert device.has_started.acquire(timeout=PATIENCE_S)
    for seq in range(1, MAX_QUEUED + 3):
        kernel.tell(batch(seq))
    kernel.tell(wire.Fetch(1, [0]))
    kernel.tell(wire.Store(wire.StoreHead(2, []), b""))
    kernel.ping()
    device.gate.set()
    for seq in range(MAX_QUEUED + 1):
        assert kernel.hear(BatchDone).head.seq == seq
    for seq in (MAX_QUEUED + 1, MAX_QUEUED + 2):
        failed = kernel.hear(BatchFailed)
        assert (failed.seq, failed.errno) == (seq, Errno.EBUSY)
    for number in (1, 2):
        refused = kernel.hear(wire.PagesFailed)
        assert (refused.number, refused.errno) == (number, Errno.EBUSY)


def test_a_step_error_fails_the_batch_and_the_worker_lives(house: House) -> None:
    house.serve(BrokenDevice(StepError(Errno.ENOSPC, "out of memory")))
    kernel = house.kernel().attach()
    kernel.tell(batch(1))
    assert kernel.hear(BatchFailed) == BatchFailed(1, Errno.ENOSPC, "out of memory")
    kernel.ping()


def test_a_bug_fails_the_batch_and_ends_the_worker(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.serve(BrokenDevice(ZeroDivisionError("oh")))
    kernel = house.kernel().attach()
    kernel.tell(batch(1))
    assert kernel.hear(BatchFailed).errno == Errno.EIO
    assert "ZeroDivisionError: oh" in kernel.hear(wire.Bye).reason
    assert "ZeroDivisionError" in str(house.ended())
    assert house.server.crash is not None
    assert "Traceback" in capsys.readouterr().err


GARBAGE: list[Sequence[bytes | memoryview]] = [
    [b""],
    [b"\0"],
    [b"{"],
    [b"\xff" * 100],
    [b"a", b"b"],
    wire.encode(batch(1))[:3],
    [*wire.encode(batch(1))[:4], b"123"],
    [b"\x83\xa4type\xa4ping\xa5nonce\x01\xa1x" + b"\x91" * 100_000 + b"\0"],
    wire.encode_greeting(wire.Refused("s", "r")),
    wire.encode(wire.Pong(1, 2, 3)),
]


def test_a_peer_that_speaks_garbage_is_cut(house: House) -> None:
    assert len(GARBAGE) == MAX_FAULTS
    house.serve(GatedDevice())
    stranger, kernel = house.kernel("k9"), house.kernel("k1")
    for frames in GARBAGE[:-1]:
        stranger.send(frames)
    stranger.greet(wire.Welcome)
    stranger.send(GARBAGE[-1])
    assert "did not decode" in stranger.hear(wire.Bye).reason
    with pytest.raises(EOFError):
        stranger.receive()
    kernel.attach().ping()
    assert sum("dropped a message" in line for line in house.log) == MAX_FAULTS


@pytest.mark.parametrize("frames", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_of_the_attached_kernel_is_dropped(house: House, frames: Sequence[bytes | memoryview]) -> None:
    house.serve(GatedDevice())
    kernel = house.kernel().attach()
    kernel.send(frames)
    kernel.ping()
    kernel.tell(batch(1))
    kernel.hear(BatchDone)


def test_a_message_beyond_the_size_limit_ends_the_connection_only(house: House) -> None:
    """As soon as its header says so, and before any of it is kept."""
    house.serve(GatedDevice())
    giant, kernel = house.kernel("k9"), house.kernel("k1")
    giant.socket.sendall(struct.pack("<II", 1, MAX_MESSAGE_BYTES + 1))
    with pytest.raises(EOFError):
        giant.receive()
    kernel.attach().ping()
    assert any("at most" in line for line in house.log)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", bytes(8), b"\xff" * 64], ids=["http", "zeros", "ones"])
def test_another_protocol_ends_the_connection_only(house: House, said: bytes) -> None:
    house.serve(GatedDevice())
    stranger, kernel = house.kernel("k9"), house.kernel("k1").attach()
    stranger.socket.sendall(said)
    with pytest.raises(EOFError):
        stranger.receive()
    kernel.ping()


def test_messages_in_pieces_and_in_one_piece(house: House) -> None:
    house.serve(GatedDevice())
    kernel = house.kernel().attach()
    whole = b"".join(bytes(piece) for n in range(3) for piece in pieces(wire.encode(wire.Ping(n))))
    for i in range(len(whole)):
        kernel.socket.sendall(whole[i : i + 1])
    assert [kernel.hear(wire.Pong).nonce for _ in range(3)] == [0, 1, 2]
    kernel.socket.sendall(whole)
    assert [kernel.hear(wire.Pong).nonce for _ in range(3)] == [0, 1, 2]


def test_those_who_only_connect_make_room_for_others(house: House) -> None:
    house.serve(GatedDevice())
    kernel = house.kernel().attach()
    idle = [house.kernel(f"k{i}") for i in range(2, 2 + MAX_PEERS)]
    with pytest.raises(EOFError):
        idle[0].receive()
    idle[-1].greet(wire.Refused)
    kernel.ping()
