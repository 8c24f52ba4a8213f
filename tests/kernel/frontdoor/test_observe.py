"""Recording, and looking: what the endpoints say, and that a recording ends in each of its ways."""

import asyncio
import json
from collections import defaultdict

import pytest

from kernel.frontdoor.server import serve_socket
from sdk.client import Client, KernelError

AGENT = """
import asyncio
from sdk import kv

async def main(n: int = 2):
    async with await kv.create() as f:
        for _ in range(n):
            await f.generate([1, 2, 3], max_tokens=4, ignore_eos=True)
            await asyncio.sleep(0.001)
        await f.pred([4])
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0.001))
"""
WAITER = "from sdk.channel import Channel\nasync def main(): await Channel('go').recv()\n"


@pytest.fixture
async def client(kernel):
    """The sdk's own client, over the real socket."""
    server = await serve_socket(kernel, kernel.config.socket)
    async with Client(kernel.config.socket) as client:
        yield client
    await server.stop()


class Recorded:
    """A recording, by group and lane as the viewers show them."""

    def __init__(self, data: bytes) -> None:
        self.events = json.loads(data)["traceEvents"]
        self.groups = {e["pid"]: e["args"]["name"] for e in self.events if e["name"] == "process_name"}
        names = {(e["pid"], e["tid"]): e["args"]["name"] for e in self.events if e["name"] == "thread_name"}
        self.lanes = defaultdict(list)
        for e in self.events:
            if e["ph"] == "X":
                self.lanes[e["pid"], names[e["pid"], e["tid"]]].append(e)

    def names(self, pid: int, lane: str) -> list[str]:
        return [e["name"] for e in self.lanes[pid, lane]]


async def start(client: Client, kernel, pid: int | None = None, seconds: float = 60.0):
    """Begin to record: the rest of the recording, as a task, which is one `Recorded`."""
    pieces = client.trace(pid, seconds)
    assert await anext(pieces) == b""
    assert kernel.fleet.trace is not None

    async def rest() -> Recorded:
        return Recorded(b"".join([piece async for piece in pieces]))

    return asyncio.ensure_future(rest())


def is_off(kernel) -> bool:
    """Whether nobody records, and nothing is left of whoever did."""
    return kernel.fleet.trace is None and all(p.trace is None for p in kernel.processes.values())


# --- recordings -------------------------------------------------------------------------------------------------


async def test_a_recording_of_all(client, kernel, house) -> None:
    recording = await start(client, kernel)
    process = house.start(AGENT)
    await process.wait_exit()
    await client.stop_trace()
    found = await recording
    assert is_off(kernel)
    (worker,) = (pid for pid, name in found.groups.items() if name.startswith("worker "))
    assert found.groups[process.pid] == process.name
    main = found.names(process.pid, "main")
    assert [name for name in main if name not in ("running", "ready")] == [
        *("generate", "await program_1.py:9") * 2,
        "pred",
        "await program_1.py:11",
    ]
    assert main[0] == main[-1] == "running"
    assert "running" in found.names(process.pid, "thread 2")
    calls = [name.split()[0] for name in found.names(process.pid, "model") if not name.startswith("queued")]
    assert calls.count("prompt") == 2
    assert calls.count("pred") == 1
    assert calls.count("decode") >= 2 * 4
    batches = found.lanes[worker, "batches"]
    assert len(batches) == len(found.lanes[worker, "step"]) == len(calls)
    assert {tuple(e["args"]["pids"]) for e in batches} == {(process.pid,)}
    assert {"plan", "answer"} == set(found.names(worker, "kernel"))
    counters = {e["name"] for e in found.events if e["ph"] == "C"}
    assert counters == {"rows", "free", "in main memory", "model"}
    assert sum(e["ph"] == "s" for e in found.events) == sum(e["ph"] == "f" for e in found.events) == 3


async def test_who_was_there_before_is_seen_waiting(client, kernel, house) -> None:
    process = house.start(WAITER)
    await house.until(lambda: process.waiting)
    recording = await start(client, kernel)
    await client.stop_trace()
    (name,) = (await recording).names(process.pid, "main")
    assert name.startswith("recv")


async def test_one_program_and_not_the_others(client, kernel, house) -> None:
    waiter = house.start(WAITER)
    await house.until(lambda: waiter.waiting)
    recording = await start(client, kernel, waiter.pid)
    other = house.start(AGENT)
    await other.wait_exit()
    await client.stop_trace()
    found = await recording
    assert waiter.pid in found.groups
    assert other.pid not in found.groups
    assert [e for e in found.events if e["name"].startswith("batch")]  # whom it shares the worker with, it says


async def test_children_are_traced_with_their_parent(client, kernel, house, install) -> None:
    child = install("child", "async def main(): pass")
    parent = house.start(f"""
        from sdk.channel import Channel
        from sdk.process import spawn
        async def main():
            await Channel('go').recv()
            await (await spawn({child!r})).wait()
    """)
    await house.until(lambda: parent.waiting)
    recording = await start(client, kernel, parent.pid)
    await house.run("from sdk.channel import Channel\nasync def main(): await Channel('go').send(1)")
    found = await recording  # over with the parent
    assert set(found.groups.values()) == {parent.name, child}
    assert is_off(kernel)


async def test_a_recording_is_over_in_time(client, kernel) -> None:
    recording = await start(client, kernel, seconds=0.001)
    assert (await recording).events == []
    assert is_off(kernel)


async def test_a_client_that_leaves_ends_it(client, kernel, house) -> None:
    process = house.start(WAITER)
    pieces = client.trace(None, 60.0)
    await anext(pieces)
    assert process.trace is not None
    await pieces.aclose()
    await house.until(lambda: is_off(kernel))


# --- refusals ---------------------------------------------------------------------------------------------------


async def refusal(client: Client, pid: int | None, seconds: float) -> KernelError:
    with pytest.raises(KernelError) as caught:
        await anext(client.trace(pid, seconds))
    return caught.value


@pytest.mark.parametrize("seconds", [0.0, -1.0, 3601.0])
async def test_a_time_that_is_none(client, kernel, seconds) -> None:
    error = await refusal(client, None, seconds)
    assert str(error) == "a recording takes more than 0 seconds and no more than 3600"
    assert error.status == 400
    assert is_off(kernel)


async def test_a_program_that_is_not_there(client, kernel) -> None:
    error = await refusal(client, 99, 1.0)
    assert (str(error), error.status) == ("no process 99 is running", 400)
    assert is_off(kernel)


async def test_one_recording_at_a_time(client, kernel) -> None:
    recording = await start(client, kernel)
    error = await refusal(client, None, 1.0)
    assert (str(error), error.status) == ("somebody is recording already: one trace at a time", 400)
    assert not recording.done()
    await client.stop_trace()
    await recording
    with pytest.raises(KernelError, match="nobody is recording"):
        await client.stop_trace()


# --- top --------------------------------------------------------------------------------------------------------


async def test_how_things_stand(client, kernel, house) -> None:
    await house.run(AGENT)
    process = house.start(WAITER)
    await house.until(lambda: process.waiting)
    found = await client.top()
    (shown,) = found["processes"]
    assert (shown["pid"], shown["state"]) == (process.pid, "blocked")
    (worker,) = found["workers"]
    assert (worker["state"], worker["n_pages"], worker["n_free"], worker["n_calls"]) == ("ready", 4096, 4096, 0)
    assert worker["n_rows"] >= worker["n_batches"] > 0
    assert worker["kernel_s"] == pytest.approx(found["totals"]["kernel_s"])
    assert found["totals"]["n_spawned"] == 2
    assert found["calls"] == {"running": 0, "waiting": 0, "swapped": 0}
    assert found["model"] == "null"
    assert found["uptime_s"] >= 0
    kernel.kill(process.pid, "enough")
