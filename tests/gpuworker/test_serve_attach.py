"""Who is let in, who comes back, and what becomes of what the one before had asked for."""

import threading
from array import array
from pathlib import Path

from gpuworker import wire
from gpuworker.backend import Facts
from gpuworker.null import NullBackend
from gpuworker.serve import SILENCE_LIMIT_S, Server
from gpuworker.wire import Ask, Batch, BatchDone, BatchFailed, BatchHead, Row
from sdk.abi.values import Sampling
from tests.gpuworker.serving import PATIENCE_S, GatedDevice, House, batch


def test_welcome_tells_the_facts(house: House) -> None:
    house.serve(GatedDevice())
    kernel = house.kernel()
    welcome = kernel.greet(wire.Welcome)
    facts = NullBackend().info()
    assert (welcome.schema, welcome.worker) == (wire.WIRE_HASH, "w1")
    for name in Facts.__dataclass_fields__:
        assert getattr(welcome, name) == getattr(facts, name)
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


def test_a_worker_of_a_kernel_outlives_its_silence(house: House) -> None:
    """A kernel that leaves takes its worker along; one that is restarted finds it again."""
    house.serve(GatedDevice(), end_on_detach=True)
    lost, restarted = house.kernel("k1").attach(), house.kernel("k2")
    lost.ping()
    house.clock.now += SILENCE_LIMIT_S + 1
    restarted.attach().tell(batch(1))
    assert restarted.hear(BatchDone).head.seq == 1
    assert "silent" in lost.hear(wire.Bye).reason


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
    assert first.is_quiet


def chained(seq: int) -> Batch:
    head = BatchHead(seq, [], [Row(1, 0, 1, 1, chained=True)])
    return Batch(head, *(array("I", a) for a in ([0], [0], [0], list[int]())))


def test_nothing_is_chained_to_what_the_last_attachment_drew(house: House) -> None:
    house.serve(GatedDevice())
    kernel = house.kernel().attach()
    row = Row(1, 0, 1, 1, [Ask(0, wire.Draw(Sampling(), 0, 1))])
    kernel.tell(Batch(BatchHead(1, [], [row]), *(array("I", a) for a in ([70], [0], [0], list[int]()))))
    kernel.hear(BatchDone)
    kernel.attach().tell(chained(1))
    assert "no batch was done before" in kernel.hear(BatchFailed).detail


def test_what_is_thrown_away_with_an_attachment_is_counted(house: House) -> None:
    device = GatedDevice(gate_open=False)
    house.serve(device)
    kernel = house.kernel("k1").attach()
    for seq in (1, 2, 3):
        kernel.tell(batch(seq))
    kernel.tell(wire.Fetch(1, [0]))
    assert device.has_started.acquire(timeout=PATIENCE_S)
    kernel.attach()
    detached = "detached from kernel k1: it said hello again"
    assert [line for line in house.log if "detached" in line] == [
        f"{detached}; 4 answers that it waited for are thrown away"
    ]
    device.gate.set()
    kernel.tell(batch(4))
    kernel.hear(BatchDone)
    kernel.attach()
    assert [line for line in house.log if "detached" in line][1:] == [detached]


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
