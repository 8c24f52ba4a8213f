"""Files go from worker to worker with their K/V, wherever their pages are; what has no room is computed again."""

import asyncio
import threading
from contextlib import asynccontextmanager
from types import SimpleNamespace

import msgspec
import pytest

from gpuworker.null import NullBackend
from kernel.attachment import AttachError
from kvfs.table import is_host
from sdk import Channel, kv


class Slow(NullBackend):
    """A device that waits for leave before each step that moves pages, and before it sends any."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.may_move, self.may_send = threading.Event(), threading.Event()
        self.may_move.set()
        self.may_send.set()

    def fetch(self, pages):
        self.may_send.wait(10)
        return super().fetch(pages)

    def run(self, batch):
        if batch.head.moves_out or batch.head.moves_in:
            self.may_move.wait(10)
        return super().run(batch)


def tiers(inode) -> str:
    """`d` for each page on the device, `h` for each in main memory."""
    return "".join("h" if is_host(entry) else "d" for entry in inode.table)


@asynccontextmanager
async def crowded(make_house, *, device=None):
    """A house of one worker with eight pages, in which a program waits: the first of its files, which is edited, has
    left the device for two others."""
    ready = []

    async def main():
        async with await kv.create() as source:
            await source.append([65] * 60)
            edited = await source.extract((0, 4), (20, 60))
        others = [await kv.create() for _ in range(2)]
        for i, other in enumerate(others):
            await other.append([66 + i] * 60)
        ready.append(True)
        await Channel("go").recv()
        texts = [await f.text(max_tokens=4, ignore_eos=True) for f in (edited, *others)]
        return [*texts, (await edited.stat()).edited]

    async with make_house(backends=[device or NullBackend(n_pages=8, verify=True)]) as house:
        process = house.start(main)
        await house.until(lambda: ready)
        fleet = house.kernel.fleet
        (file,) = [inode for inode in house.kernel.fs.files.values() if inode.edited]
        first = next(iter(house.kernel.workers)).name

        async def contents():
            """Of the edited file's pages, with the context in which each slot was computed."""
            return bytes(await fleet.attached(file.pool.name).fetch(file.table))

        async def end():
            house.kernel.channels.send("go", None)
            status = await process.wait_exit()
            assert status.code == 0, status.error
            return msgspec.json.decode(status.result)

        yield SimpleNamespace(
            house=house,
            kernel=house.kernel,
            counters=house.kernel.counters,
            file=file,
            first=first,
            contents=contents,
            end=end,
        )


async def test_an_edited_file_in_main_memory_keeps_its_kv_when_its_worker_drains(make_house, null_at):
    async with crowded(make_house) as c:
        assert tiers(c.file) == "hhh"
        before = await c.contents()
        with null_at("second", NullBackend(n_pages=8, verify=True)) as second:
            await c.kernel.attach(second)
            await c.kernel.detach(c.first, drain=True)
            assert (c.file.pool.name, tiers(c.file)) == (second, "hhh")
            assert await c.contents() == before
            assert (c.counters.n_recomputed_tokens, c.counters.n_pages_dropped) == (0, 0)
            *_, is_edited = await c.end()
    assert is_edited
    assert c.counters.n_edits_recomputed == 0


@pytest.mark.parametrize(
    ("n_pages", "n_host_pages", "there"),
    [(4, 20, "hhh"), (12, 0, "ddd"), (4, 0, "ddd"), (3, 3, "hhh"), (2, 0, None)],
    ids=["main memory", "device for all", "device for the edited", "main memory for the edited", "no room"],
)
async def test_it_keeps_its_kv_wherever_there_is_room(make_house, null_at, n_pages, n_host_pages, there):
    async with crowded(make_house) as c:
        before = await c.contents()
        with null_at("second", NullBackend(n_pages=n_pages, n_host_pages=n_host_pages, verify=True)) as second:
            await c.kernel.attach(second)
            await c.kernel.detach(c.first, drain=True)
            if there is None:
                assert c.file.pool is None
                assert c.counters.n_pages_dropped > 0
            else:
                assert (c.file.pool.name, tiers(c.file), await c.contents()) == (second, there, before)
            with null_at("third", NullBackend(n_pages=12, verify=True)) as third:
                await c.kernel.attach(third)
                await c.kernel.detach(second, drain=True)
                *_, is_edited = await c.end()
    assert is_edited is (there is not None)
    assert c.counters.n_edits_recomputed == (there is None)


async def test_a_drain_waits_for_pages_on_their_way_to_main_memory(make_house, null_at):
    """And lets everybody else run meanwhile."""
    ready = []

    async def first():
        f = await kv.prompt("x" * 60)
        ready.append(True)
        await Channel("go").recv()
        return await f.text(max_tokens=4, ignore_eos=True)

    async def second():
        return await (await kv.prompt("y" * 110)).text(max_tokens=4, ignore_eos=True)

    device = Slow(n_pages=8, verify=True)
    async with make_house(backends=[device], preemption_mode="swap") as house:
        fs, counters, name = house.kernel.fs, house.kernel.counters, next(iter(house.kernel.workers)).name
        processes = [house.start(first)]
        await house.until(lambda: ready)
        device.may_move.clear()
        processes.append(house.start(second))
        await house.until(lambda: any(inode.moving for inode in fs.files.values()))
        with null_at("other", NullBackend(n_pages=16, verify=True)) as other:
            await house.kernel.attach(other)
            drain = asyncio.create_task(house.kernel.detach(name, drain=True))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not drain.done()
            device.may_move.set()
            await drain
            house.kernel.channels.send("go", None)
            assert [(await p.wait_exit()).code for p in processes] == [0, 0]
    assert (counters.n_pages_migrated, counters.n_recomputed_tokens, counters.n_pages_dropped) == (4, 0, 0)


async def test_when_the_other_worker_is_lost_what_was_on_its_way_there_goes_on_here(make_house, null_at):
    """At once, though this one has not sent the pages yet."""
    ready = []

    async def main():
        f = await kv.prompt("x" * 60)
        ready.append(True)
        await Channel("go").recv()
        return await f.text(max_tokens=4, ignore_eos=True)

    device = Slow(n_pages=8, verify=True)
    async with make_house(backends=[device]) as house:
        fleet, name = house.kernel.fleet, next(iter(house.kernel.workers)).name
        process = house.start(main)
        await house.until(lambda: ready)
        with null_at("other", NullBackend(n_pages=16, verify=True)) as other:
            await house.kernel.attach(other)
            fleet.recovery.seek = lambda name: None
            device.may_send.clear()
            drain = asyncio.create_task(house.kernel.detach(name, drain=True))
            await house.until(lambda: any(inode.moving for inode in house.kernel.fs.files.values()))
            house.kernel.channels.send("go", None)
            source = fleet.attached(name)
            await house.until(lambda: source.batcher.n_jobs and not source.pump_due)
            assert not source.batcher.busy
            house.lose(other)
            await house.until(lambda: not source.pump_due)
            assert source.batcher.busy
            device.may_send.set()
            with pytest.raises(AttachError, match="the other workers are gone"):
                await drain
            assert (await process.wait_exit()).code == 0
    assert house.kernel.counters.n_recomputed_tokens == 0
