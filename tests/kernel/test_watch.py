"""What a recording holds of workers, from a kernel that has some: moves between them, memory pressure, loss."""

import json
from collections import defaultdict

from kernel.core import Kernel

LONG = """
from sdk import kv
from sdk.channel import Channel
async def main(n: int = 60, go: str = ""):
    async with await kv.create() as f:
        await f.append([1] * 100)
        if go:
            await Channel(go).recv()
        await f.generate([2], max_tokens=n, ignore_eos=True)
"""


class Recording:
    """What a kernel does from here on; `lanes` has it by group and lane."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._trace = kernel.record(None)

    def end(self) -> None:
        self._kernel.stop_recording()
        events = json.loads(b"".join(self._trace.close(self._kernel.clock())))["traceEvents"]
        groups = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
        names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
        self.lanes = defaultdict(list)
        for e in events:
            if e["ph"] == "X":
                self.lanes[groups[e["pid"]], names[e["pid"], e["tid"]]].append(e)

    def names(self, group: str, lane: str) -> list[str]:
        return [e["name"] for e in self.lanes.get((group, lane), [])]


async def test_files_that_move_to_another_worker(make_house) -> None:
    async with make_house(n_workers=2) as house:
        first, second = [worker.name for worker in house.kernel.workers]
        process = house.start(LONG, go="go")
        await house.until(lambda: process.waiting and house.n_pages_used() == 7)
        (source,) = [name for name, d in house.kernel.fs.devices().items() if d.n_free < d.n_pages]
        target = second if source == first else first
        recording = Recording(house.kernel)
        await house.kernel.detach(source, drain=True)
        await house.run("from sdk.channel import Channel\nasync def main(): await Channel('go').send(1)")
        await process.wait_exit()
        recording.end()
    assert recording.names(f"worker {source}", "migrations") == [f"7 pages to {target}"]
    (move,) = recording.lanes[f"worker {target}", "migrations"]
    assert move["name"] == f"7 pages from {source}"
    assert move["args"]["pages"] == 7
    assert move["args"]["bytes"] > 0


async def test_programs_that_do_not_fit_together(make_house) -> None:
    async with make_house(n_pages=16) as house:
        recording = Recording(house.kernel)
        processes = [house.start(LONG) for _ in range(3)]
        for process in processes:
            await process.wait_exit()
        recording.end()
        (worker,) = house.kernel.workers
    states = {e["name"] for (_, lane), slices in recording.lanes.items() if lane.startswith("model") for e in slices}
    assert any(state.startswith("memory: ") for state in states), states
    if house.kernel.counters.n_pages_out:
        assert recording.lanes[f"worker {worker.name}", "page moves"]


async def test_a_worker_that_is_lost(make_house) -> None:
    async with make_house(n_workers=2) as house:
        process = house.start(LONG, n=2000)
        await house.until(lambda: house.kernel.counters.n_generated_tokens > 10)
        (name,) = [name for name, d in house.kernel.fs.devices().items() if d.n_free < d.n_pages]
        recording = Recording(house.kernel)
        seen, batcher = house.kernel.counters.n_batches + 2, house.kernel.fleet.attached(name).batcher
        await house.until(lambda: house.kernel.counters.n_batches > seen and batcher.busy)
        house.lose(name)
        await house.until(lambda: house.kernel.counters.n_recomputed_tokens)
        house.kernel.kill(process.pid, "seen enough")
        await process.wait_exit()
        recording.end()
        (other,) = [worker.name for worker in house.kernel.workers]
    assert recording.names(f"worker {name}", "batches")[-1].startswith("lost batch")
    assert recording.names(f"worker {other}", "batches")[0].startswith("batch")


async def test_nothing_is_left_when_it_is_over(house) -> None:
    recording = Recording(house.kernel)
    process = house.start(LONG, go="go")
    await house.until(lambda: process.waiting)
    assert process.trace is house.kernel.fleet.trace is not None
    recording.end()
    assert process.trace is house.kernel.fleet.trace is None
    house.kernel.kill(process.pid, "enough")
    await process.wait_exit()
