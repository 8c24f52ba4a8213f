"""The door, over real sockets: who is let in, what is answered when, and what no bytes can do."""

import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from gpuworker import wire
from gpuworker.backend import Backend, Facts, StepError
from gpuworker.null import NullBackend
from gpuworker.serve import MAX_FAULTS, MAX_QUEUED, SILENCE_LIMIT_S, Server
from gpuworker.wire import Ask, Batch, BatchDone, BatchFailed, BatchHead, Row
from sdk.abi.errors import Errno

PATIENCE_S = 20.0  # how long a test waits before it fails; nothing waits that long


class GatedDevice:
    """A device that starts a step and then stands still until the test opens its gate."""

    def __init__(self, gate_open: bool = True) -> None:
        self.inner = NullBackend()
        self.started: list[int] = []
        self.has_started = threading.Semaphore(0)
        self.gate = threading.Event()
        if gate_open:
            self.gate.set()

    def info(self) -> Facts:
        return self.inner.info()

    def assets(self) -> wire.Assets:
        return self.inner.assets()

    def run(self, batch: Batch) -> BatchDone:
        self.started.append(batch.head.seq)
        self.has_started.release()
        assert self.gate.wait(PATIENCE_S)
        return self.inner.run(batch)


class BrokenDevice(GatedDevice):
    """A device whose steps fail."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def run(self, batch: Batch) -> BatchDone:
        raise self.error


class Clock:
    """Stands still until the test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Kernel:
    """The other end: a DEALER."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str, name: str = "k1") -> None:
        self.name = name
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
        self.socket.connect(address)

    def send(self, frames: Sequence[bytes]) -> None:
        self.socket.send_multipart(frames)

    def tell(self, message: wire.ToWorker | Batch) -> None:
        self.send(wire.encode(message))

    def hear(self, kind: Any) -> Any:
        message = wire.decode_to_kernel(self.socket.recv_multipart())
        assert isinstance(message, kind), message
        return message

    def greet(self, kind: Any, schema: str = wire.WIRE_HASH) -> Any:
        self.send(wire.encode_greeting(wire.Hello(schema, self.name)))
        answer = wire.decode_greeting(self.socket.recv_multipart())
        assert isinstance(answer, kind), answer
        return answer

    def attach(self) -> "Kernel":
        self.greet(wire.Welcome)
        return self

    def ping(self, nonce: int = 1) -> wire.Pong:
        """Also: all that was sent before has been read."""
        self.tell(wire.Ping(nonce))
        pong: wire.Pong = self.hear(wire.Pong)
        assert pong.nonce == nonce
        return pong


class House:
    """A server in a thread, and its kernels."""

    def __init__(self, path: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.address = f"ipc://{path}"
        self.clock = Clock()
        self.log: list[str] = []
        self.reason: str | None = None
        self.kernels: list[Kernel] = []

    def serve(self, backend: Backend, **options: Any) -> None:
        self.server = Server(self.address, name="w1", log=self.log.append, clock=self.clock, **options)
        self.thread = threading.Thread(target=self._run, args=(backend,))
        self.thread.start()

    def _run(self, backend: Backend) -> None:
        with closing(self.server):
            self.reason = self.server.run(backend)

    def kernel(self, name: str = "k1") -> Kernel:
        self.kernels.append(Kernel(self.context, self.address, name))
        return self.kernels[-1]

    def ended(self) -> str | None:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.reason

    def close(self) -> None:
        self.server.stop("the test is over")
        self.ended()
        for kernel in self.kernels:
            kernel.socket.close()
        self.context.term()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with closing(House(tmp_path / "w")) as house:
        yield house


def batch(seq: int, n_new: int = 1, n_before: int = 0) -> Batch:
    n_pages = -(-(n_before + n_new) // 16)
    head = BatchHead(seq, [], [Row(seq, n_before, n_new, n_pages, [Ask(n_new - 1, top_k=3)])])
    tokens = [65 + seq % 26] * n_new
    return Batch(head, *(array("I", a) for a in (tokens, range(n_before, n_before + n_new), range(n_pages), ())))


def test_welcome_tells_the_facts(house: House) -> None:
    house.serve(GatedDevice())
    kernel = house.kernel()
    welcome = kernel.greet(wire.Welcome)
    facts = NullBackend().info()
    assert (welcome.schema, welcome.worker, welcome.model) == (wire.WIRE_HASH, "w1", facts.model)
    assert (welcome.n_pages, welcome.max_rows) == (facts.n_pages, facts.max_rows)
    assert welcome.max_batch_tokens == facts.max_batch_tokens
    kernel.tell(wire.GetAssets())
    assert kernel.hear(wire.Assets) == NullBackend().assets()


def test_another_schema_is_refused_by_name(house: House) -> None:
    house.serve(GatedDevice())
    kernel = house.kernel()
    refused = kernel.greet(wire.Refused, schema="0123abcd")
    assert "0123abcd" in refused.reason
    assert wire.WIRE_HASH in refused.reason
    assert refused.schema == wire.WIRE_HASH
    kernel.greet(wire.Welcome)


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


def test_a_second_kernel_is_refused_until_the_first_leaves(house: House) -> None:
    house.serve(GatedDevice())
    first, second = house.kernel("k1").attach(), house.kernel("k2")
    assert "serves kernel k1 already" in second.greet(wire.Refused).reason
    first.ping()
    first.tell(wire.Detach("shutdown"))
    assert "shutdown" in first.hear(wire.Bye).reason
    second.attach()


def test_a_silent_kernel_is_given_up_for_the_next(house: House) -> None:
    house.serve(GatedDevice())
    first, second = house.kernel("k1").attach(), house.kernel("k2")
    house.clock.now += SILENCE_LIMIT_S - 1
    second.greet(wire.Refused)
    first.ping()
    house.clock.now += SILENCE_LIMIT_S - 1
    second.greet(wire.Refused)
    house.clock.now += 2
    second.attach()
    assert "silent" in first.hear(wire.Bye).reason
    first.tell(wire.Ping(1))
    assert "say hello" in first.hear(wire.Bye).reason
    first.greet(wire.Refused)


def test_the_same_kernel_may_come_back_on_a_new_connection(house: House) -> None:
    device = GatedDevice(gate_open=False)
    house.serve(device)
    before = house.kernel("k1").attach()
    before.tell(batch(1))
    assert device.has_started.acquire(timeout=PATIENCE_S)
    after = house.kernel("k1").attach()
    device.gate.set()
    after.tell(batch(2))
    assert after.hear(BatchDone).head.seq == 2


def test_nothing_of_the_last_kernel_reaches_the_next(house: House) -> None:
    device = GatedDevice(gate_open=False)
    house.serve(device)
    first, second = house.kernel("k1").attach(), house.kernel("k2")
    for seq in (1, 2, 3):
        first.tell(batch(seq))
    assert device.has_started.acquire(timeout=PATIENCE_S)
    first.tell(wire.Detach("x"))
    first.hear(wire.Bye)
    second.attach().tell(batch(4))
    device.gate.set()
    assert second.hear(BatchDone).head.seq == 4
    assert device.started == [1, 4]
    second.ping()
    assert first.socket.poll(0) == 0


def test_hello_again_starts_afresh(house: House) -> None:
    device = GatedDevice(gate_open=False)
    house.serve(device)
    kernel = house.kernel().attach()
    kernel.tell(batch(1))
    kernel.tell(batch(2))
    assert device.has_started.acquire(timeout=PATIENCE_S)
    kernel.attach().tell(batch(3))
    device.gate.set()
    assert kernel.hear(BatchDone).head.seq == 3
    assert device.started == [1, 3]


@pytest.mark.parametrize("bad", [batch(1, n_new=2049), batch(1, n_before=8192)], ids=["tokens", "context"])
def test_a_batch_beyond_the_limits_fails_alone(house: House, bad: Batch) -> None:
    house.serve(GatedDevice())
    kernel = house.kernel().attach()
    kernel.tell(bad)
    kernel.tell(batch(2))
    failed = kernel.hear(BatchFailed)
    assert (failed.seq, failed.errno) == (1, Errno.EINVAL)
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
    kernel.ping()
    device.gate.set()
    for seq in range(MAX_QUEUED + 1):
        assert kernel.hear(BatchDone).head.seq == seq
    for seq in (MAX_QUEUED + 1, MAX_QUEUED + 2):
        failed = kernel.hear(BatchFailed)
        assert (failed.seq, failed.errno) == (seq, Errno.EBUSY)


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


GARBAGE: list[list[bytes]] = [
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
    stranger.send(wire.encode_greeting(wire.Hello(wire.WIRE_HASH, "k9")))
    kernel.attach().ping()
    assert stranger.socket.poll(0) == 0
    assert sum("dropped a message" in line for line in house.log) == MAX_FAULTS


@pytest.mark.parametrize("frames", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_of_the_attached_kernel_is_dropped(house: House, frames: list[bytes]) -> None:
    house.serve(GatedDevice())
    kernel = house.kernel().attach()
    kernel.send(frames)
    kernel.ping()
    kernel.tell(batch(1))
    kernel.hear(BatchDone)


def test_a_frame_beyond_the_size_limit_ends_the_connection_only(house: House) -> None:
    house.serve(GatedDevice())
    giant, kernel = house.kernel("k9"), house.kernel("k1")
    with giant.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
        giant.send([bytes((64 << 20) + 1)])
        assert monitor.poll(int(PATIENCE_S * 1000))
        giant.socket.disable_monitor()
    kernel.attach().ping()
    assert not any("dropped" in line for line in house.log)


def test_messages_before_hello_are_not_obeyed(house: House) -> None:
    device = GatedDevice()
    house.serve(device)
    kernel = house.kernel()
    for message in (wire.Ping(1), wire.GetAssets(), batch(1), wire.Detach("x")):
        kernel.tell(message)
        assert "say hello" in kernel.hear(wire.Bye).reason
    assert device.started == []
    kernel.attach()


def test_stop_says_goodbye_while_a_step_runs(house: House) -> None:
    device = GatedDevice(gate_open=False)
    house.serve(device)
    kernel = house.kernel().attach()
    kernel.tell(batch(1))
    assert device.has_started.acquire(timeout=PATIENCE_S)
    house.server.stop("SIGTERM")
    assert kernel.hear(wire.Bye).reason == "SIGTERM"
    device.gate.set()
    assert house.ended() == "SIGTERM"
    assert not house.server.is_computing


def test_a_worker_of_the_kernel_ends_with_it(house: House) -> None:
    house.serve(GatedDevice(), end_on_detach=True)
    kernel = house.kernel().attach()
    kernel.tell(wire.Detach("done"))
    kernel.hear(wire.Bye)
    assert house.ended() == "the kernel left"


def test_close_leaves_no_socket_behind(tmp_path: Path) -> None:
    """Though it was never run: so it goes when the model cannot be loaded."""
    server = Server(f"ipc://{tmp_path}/w", name="w1")
    assert (tmp_path / "w").is_socket()
    server.close()
    assert list(tmp_path.iterdir()) == []


def test_watch_ends_the_worker(house: House) -> None:
    orphaned = threading.Event()
    server = Server(house.address, name="w1")
    reasons: list[str] = []

    def watch() -> str | None:
        return "orphan" if orphaned.is_set() else None

    thread = threading.Thread(target=lambda: reasons.append(server.run(GatedDevice(), watch)))
    house.server, house.thread = server, thread
    thread.start()
    kernel = house.kernel().attach()
    orphaned.set()
    kernel.tell(wire.Ping(1))  # any message will do; without one it takes a tick
    heard = [kernel.hear(wire.Pong | wire.Bye)]  # the pong comes first, unless the tick did
    if isinstance(heard[-1], wire.Pong):
        heard.append(kernel.hear(wire.Bye))
    assert heard[-1] == wire.Bye("orphan")
    house.ended()
    assert reasons == ["orphan"]
    server.close()


def test_welcome_carries_every_fact() -> None:
    """A field of Facts that Welcome lacks would never reach the kernel."""
    assert {f.name for f in msgspec.structs.fields(wire.Welcome)} >= set(Facts.__dataclass_fields__)
