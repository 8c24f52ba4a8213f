"""What is recorded together, in which order, and who is told of an error."""

import asyncio

import pytest

from kernel.recorder import Recorder
from kvfs.store.store import Commit
from kvfs.store.tree import ClearName


class SlowStore:
    """A disk that is busy until it is let go."""

    def __init__(self):
        self.groups = []
        self.waiting = []
        self.error = None
        self.tasks = set()
        self.recorder = Recorder(self, self.run, self.spawn)

    def commit(self, commits):
        self.groups.append([commit.changes[0].name for commit in commits])
        if self.error is not None:
            raise self.error

    def run(self, act, *args):
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((future, act, args))
        return future

    def spawn(self, coroutine):
        self.tasks.add(asyncio.ensure_future(coroutine))

    def ask(self, names):
        return [self.recorder.record(Commit([ClearName(1, name)])) for name in names]

    async def step(self):
        """The disk does the next thing that it was asked to, and all who wait for that go on."""
        await asyncio.sleep(0)
        future, act, args = self.waiting.pop(0)
        try:
            future.set_result(act(*args))
        except OSError as e:
            future.set_exception(e)
        for _ in range(3):
            await asyncio.sleep(0)


async def test_those_who_come_while_the_disk_is_busy_are_recorded_together():
    store = SlowStore()
    first = store.ask("a")
    await asyncio.sleep(0)
    first += store.ask("bc")  # the disk does something else
    await store.step()
    late = store.ask("de")  # it records the first
    await store.step()
    assert store.groups == [["a", "b", "c"]]
    assert [f.done() for f in first + late] == [True] * 3 + [False] * 2
    await store.step()
    await store.step()
    assert store.groups == [["a", "b", "c"], ["d", "e"]]
    assert all(f.done() for f in late)
    assert all(task.done() for task in store.tasks)


async def test_an_error_is_told_to_all_of_a_group_and_to_nobody_else():
    store = SlowStore()
    store.error = OSError("no")
    failed = store.ask("ab")
    await store.step()
    await store.step()
    store.error = None
    done = store.ask("c")
    await store.step()
    await store.step()
    for future in failed:
        with pytest.raises(OSError, match="no"):
            future.result()
    assert done[0].result() is None
