"""The checks can fail: each finds what was broken on purpose, in a world that is otherwise well."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from kernel.fleet import Fleet
from kernel.flight import InFlight
from kvfs.access import KERNEL
from kvfs.fs import Kvfs
from tests.sim import checks
from tests.sim.loop import SimLoop, deterministic
from tests.sim.plan import Options, Start
from tests.sim.reference import ALONE, Reference
from tests.sim.run import simulate
from tests.sim.world import World

ALONE_IT_TELLS = {0: Reference(0, b"", "", {"0": "abc"}, 0)}


def in_a_world(main: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    with deterministic():
        loop = SimLoop()

        async def story() -> None:
            world = World(loop, ALONE, n_tokens=1000)
            await world.attach_all()
            await main(world)
            await world.kernel.stop(1.0)

        try:
            loop.run_until_complete(story())
        finally:
            loop.close()


def test_a_world_at_rest_is_well():
    async def main(world):
        run = world.start(0, Start(0.0, "streamer", 1))
        await run.process.wait_exit()
        await asyncio.sleep(1.0)
        assert list(checks.always(world, {0: Reference(0, b"", "", run.client.streams, 0)})) == []
        assert list(checks.waiters(world)) == []
        assert list(checks.at_rest(world)) == []

    in_a_world(main)


def test_a_page_that_nobody_holds_is_found():
    async def main(world):
        pool = world.kernel.fs.pools["sim://0"]
        pool.refs[3] += 1
        assert any("page 3" in line for line in checks.always(world, {}))
        pool.refs[3] -= 1

    in_a_world(main)


def test_what_is_left_behind_is_found():
    async def main(world):
        file = world.kernel.fs.create(None, who=KERNEL, now=0.0)
        task = asyncio.create_task(asyncio.sleep(5.0))
        found = list(checks.at_rest(world))
        assert any("open_files=1" in line for line in found)
        assert any("task" in line for line in found)
        world.kernel.fs.close(file, 0.0)
        await task

    in_a_world(main)


def test_a_program_that_nobody_will_wake_is_found():
    async def main(world):
        run = world.start(0, Start(0.0, "agent", 1))
        await asyncio.sleep(0.02)
        process = run.process
        future = process.park("recv", lambda: None)
        lines = [line for about, line in checks.waiters(world) if about is future]
        assert lines == [f"process {process.pid} waits in recv and nobody will wake it"]
        future.cancel()
        world.end(run, "the test is over", leaves=True)
        await process.wait_exit()

    in_a_world(main)


def test_text_that_is_no_beginning_is_found():
    async def main(world):
        run = world.start(0, Start(0.0, "agent", 1))
        run.client.streams["0"] = "ab"
        assert list(checks.beginnings(world, ALONE_IT_TELLS)) == []
        run.client.streams["0"] = "ax"
        assert len(list(checks.beginnings(world, ALONE_IT_TELLS))) == 1
        world.end(run, "the test is over", leaves=True)
        await run.process.wait_exit()

    in_a_world(main)


def test_a_panic_is_found():
    async def main(world):
        world.kernel.panic(RuntimeError("on purpose"))
        assert next(checks.always(world, {})) == "the kernel panicked: RuntimeError: on purpose"

    in_a_world(main)


# --- planted bugs -----------------------------------------------------------------------------------------------


def leak_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was leased for a batch that nobody waits for is never given back."""
    monkeypatch.setattr(Kvfs, "abandon", lambda self, lease: None)


def forget_to_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared page is written without a copy."""
    encode = InFlight.encode

    def without_copies(self: InFlight, n_failed: int) -> Any:
        batch = encode(self, n_failed)
        batch.head = msgspec.structs.replace(batch.head, copies=[])
        return batch

    monkeypatch.setattr(InFlight, "encode", without_copies)


def forget_to_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of programs that have ended go on."""
    monkeypatch.setattr(Fleet, "cancel", lambda self, job: None)


@pytest.mark.parametrize("bug", [leak_a_lease, forget_to_copy, forget_to_cancel])
def test_a_planted_bug_is_found(bug, monkeypatch):
    options = Options(faults=("kill",), pages="ample")
    assert all(not simulate(seed, options).broken for seed in range(3))
    bug(monkeypatch)
    assert any(simulate(seed, options).broken for seed in range(40))
