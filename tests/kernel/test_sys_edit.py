"""extract, merge and splice through a whole kernel. What the null worker says depends on every token and position that
a file shows it, so an edited file must answer as one does that was computed so; its pages tell which slots it has."""

import asyncio

import pytest

from kvfs.access import OPERATOR
from sdk import kv, process, syscalls
from sdk.abi.errors import AccessDenied, Busy, CrossDevice, FileExists, InvalidArgument, NoSpace, TooLong
from sdk.abi.values import OpenMode

LONG = list(range(40, 120))  # five pages of 16
SHORT = list(range(200, 223))
WANT = {"top_k": 5, "entropy": True}


async def made(tokens, positions=None):
    """A file that was computed: what an edited one is compared with."""
    file = await kv.create()
    await file.pred(tokens, positions=positions)
    return file


async def same(file, other):
    """Whether two files are alike, to a reader and to the model, now and further on."""
    alike = await file.tokens() == await other.tokens() and await file.positions() == await other.positions()
    for next_ in ([], [65], list(range(66, 90))):
        a, b = [await f.pred(next_, **WANT) if next_ else await f.next(**WANT) for f in (file, other)]
        alike = alike and a == b
    return alike


CASES = [
    ("keep", [(0, 80)], True),
    ("keep", [(0, 37)], True),
    ("keep", [(16, 48), (64, 80)], False),  # whole pages
    ("keep", [(0, 10), (50, 80)], False),
    ("keep", [(3, 4), (5, 6), (20, 61)], False),
    ("pack", [(0, 10), (10, 33)], True),
    ("pack", [(0, 16), (32, 48)], False),
    ("pack", [(5, 80)], False),
    ("pack", [(70, 80), (0, 40), (0, 40)], False),
]


@pytest.mark.parametrize(("mode", "ranges", "is_beginning"), CASES)
async def test_extract(house, mode, ranges, is_beginning):
    async def main():
        async with await made(LONG) as file, await file.extract(*ranges, positions=mode) as cut:
            kept = [i for start, stop in ranges for i in range(start, stop)]
            positions = kept if mode == "keep" else list(range(len(kept)))
            stat = await cut.stat()
            async with await made([LONG[i] for i in kept], positions) as computed:
                n_prompt = (await syscalls.rusage()).n_prompt_tokens
                alike = await same(cut, computed)
                n_again = (await syscalls.rusage()).n_prompt_tokens - n_prompt - 50
            async with await made(LONG) as untouched:
                return [alike, await same(file, untouched), stat.edited, n_again]

    is_whole = ranges == [(0, 80)]
    assert await house.value(main) == [True, True, not is_beginning, 0 if is_whole else 1]


async def test_whole_pages_at_their_positions_are_shared_and_nothing_is_sent(house):
    async def main():
        async with await made(LONG) as file, await file.extract((16, 48), (64, 80)) as cut:
            return [(await cut.stat()).n_shared_pages, (await file.stat()).n_shared_pages]

    batches = house.kernel.counters
    assert await house.value(main) == [3, 3]
    assert batches.n_edits == 0


@pytest.mark.parametrize("mode", ["pack", "keep"])
async def test_merge(house, mode):
    async def main(mode):
        first = 80 if mode == "keep" else 0
        a, b = await made(LONG), await made(SHORT, list(range(first, first + 23)))
        async with a, b, await kv.create() as empty:
            async with await kv.merge(a, b, empty, *([a] if mode == "pack" else []), positions=mode) as whole:
                tokens = LONG + SHORT + (LONG if mode == "pack" else [])
                async with await made(tokens) as computed:
                    return await same(whole, computed), (await whole.stat()).edited

    assert await house.value(main, mode=mode) == [True, True]


SPLICES = [
    (10, 30, False, None),
    (16, 32, True, None),
    (80, 80, True, "pack"),
    (0, 80, False, None),
    (0, 0, True, None),
    (0, 5, False, "pack"),
]


@pytest.mark.parametrize(("start", "stop", "put", "mode"), SPLICES)
async def test_splice(house, start, stop, put, mode):
    async def main():
        async with await made(LONG) as file, await made(SHORT) as source:
            fork = await file.fork()
            await file.splice(start, stop, source if put else None, positions=mode)
            tokens = LONG[:start] + (SHORT if put else []) + LONG[stop:]
            if not tokens:
                return await file.tokens() == [], True
            packed = put or mode == "pack"
            positions = list(range(len(tokens))) if packed else [*range(start), *range(stop, 80)]
            async with await made(tokens, positions) as computed, await made(LONG) as untouched:
                return [await same(file, computed), await same(fork, untouched)]

    assert await house.value(main) == [True, True]


async def test_sources_may_change_and_go_while_an_edit_waits(house):
    """It is held up by a long prompt before it, in the batch that takes all the tokens."""

    async def main():
        file, other = await made(LONG), await made(SHORT)
        edit = asyncio.create_task(kv.merge(file, other))
        await asyncio.sleep(0)
        await file.truncate(5)
        await file.append(SHORT)
        await other.close()
        async with await edit as whole, await made(LONG + SHORT) as computed:
            return await same(whole, computed)

    assert await house.value(main) is True


async def test_a_name_comes_with_the_whole_file(house):
    async def main():
        async with await made(LONG) as file:
            async with await file.extract((0, 10), (20, 30), path="/cut"):
                pass
            async with await kv.open("/cut", "r") as again:
                n_tokens = len(await again.tokens())
            try:
                await file.extract((0, 10), path="/cut")
            except FileExists:
                n_tokens += 1000
        await kv.unlink("/cut")
        return n_tokens

    assert await house.value(main) == 1020


async def test_a_name_that_is_taken_meanwhile_is_an_error_and_leaves_nothing(house):
    async def main():
        async with await made(LONG) as file:
            edit = asyncio.create_task(file.extract((0, 10), (20, 30), path="/cut"))
            await asyncio.sleep(0)
            await (await kv.create("/cut")).close()
            try:
                await edit
            except FileExists:
                await kv.unlink("/cut")
                return True

    assert await house.value(main) is True


async def test_what_is_refused(house):
    async def refused(call, error):
        with pytest.raises(error) as e:
            await call
        return len(str(e.value)) > 20

    async def main():
        long, late, short = await made(LONG), await made(SHORT, list(range(90, 113))), await made(SHORT)
        found = [
            await refused(long.extract(), InvalidArgument),
            await refused(long.extract((0, 81)), InvalidArgument),
            await refused(long.extract((5, 5)), InvalidArgument),
            await refused(long.extract((20, 30), (0, 10)), InvalidArgument),
            await refused(long.extract((0, 10), (8, 12)), InvalidArgument),
            await refused(kv.merge(late, long, positions="keep"), InvalidArgument),
            await refused(kv.merge(*([long] * 110)), TooLong),
            await refused(long.splice(5, 81), InvalidArgument),
            await refused(long.splice(7, 5), InvalidArgument),
            await refused(long.splice(10, 10, short, positions="keep"), InvalidArgument),
        ]
        stream = await syscalls.stream(long.fd)
        found.append(await refused(long.splice(0, 5), Busy))
        await syscalls.close(stream)
        reader = await kv.create("/r")
        await reader.append(SHORT)
        async with await kv.open("/r", OpenMode.READ) as r:
            found.append(await refused(r.splice(0, 1), AccessDenied))
        await kv.unlink("/r")
        return all(found)

    assert await house.value(main) is True


async def test_an_edit_that_is_cancelled_leaves_nothing(house):
    async def main():
        async with await made(LONG) as file:
            edit = asyncio.create_task(file.extract((5, 30)))
            await asyncio.sleep(0)
            edit.cancel()
            await asyncio.wait([edit])
            await file.splice(3, 9)
            return len(await file.tokens())

    assert await house.value(main) == 74


@pytest.mark.parametrize("n_turns", range(6))
async def test_a_program_that_is_killed_at_any_moment_of_an_edit_leaves_nothing(house, n_turns):
    """The house looks for leaks."""

    async def main():
        async with await made(LONG) as file, await made(SHORT) as other:
            await syscalls.send("begun", 1)
            await asyncio.gather(file.extract((1, 30)), kv.merge(file, other, path="/both"), other.splice(3, 5, file))
            await process.sleep(60.0)

    running = house.start(main)
    await house.until(lambda: house.kernel.channels._channels.get("begun"))
    for _ in range(n_turns):
        await asyncio.sleep(0)
    house.kernel.kill(running.pid, "the test wants it")
    await running.wait_exit()
    await house.run('from sdk import syscalls\nasync def main():\n    await syscalls.recv("begun")\n')
    for path, _ in list(house.kernel.fs.names.walk(house.kernel.fs.names.root)):
        if path == "/both":
            house.kernel.fs.unlink(path, who=OPERATOR, now=house.kernel.now())


async def test_files_that_lost_their_kv_are_computed_again_first(house, make_house):
    async def main():
        a, b = await made(LONG), await made(SHORT)
        await process.sleep(0.0)
        await syscalls.send("lose", 1)
        await syscalls.recv("lost")
        async with await kv.merge(a, b) as whole, await made(LONG + SHORT) as computed:
            return await same(whole, computed)

    async with make_house(n_workers=2) as two:
        running = two.start(main)
        await two.until(lambda: two.kernel.channels._channels.get("lose"))
        for device, usage in list(two.kernel.fs.devices().items()):
            if usage.n_files:
                two.lose(device)
                break
        await two.run('from sdk import syscalls\nasync def main():\n    await syscalls.send("lost", 1)\n')
        status = await running.wait_exit()
        assert status.code == 0, status.traceback
        assert status.result == b"true"


async def test_pages_on_different_workers_are_refused(make_house):
    async def main():
        files = [await made(LONG) for _ in range(4)]
        try:
            await kv.merge(*files)
        except CrossDevice:
            return True

    async with make_house(n_workers=2) as two:
        assert await two.value(main) is True


async def test_an_edit_waits_for_room_and_fails_where_there_can_be_none(make_house):
    async def main():
        async with await made(LONG) as file:
            idle = [await made(LONG) for _ in range(3)]
            async with await file.extract((1, 80)) as cut:
                n_tokens = len(await cut.tokens())
                many = [await cut.fork() for _ in range(4)]
                try:
                    await kv.merge(file, *many)
                except NoSpace:
                    return n_tokens, len(idle)

    async with make_house(n_pages=24) as small:
        assert await small.value(main) == [79, 3]


async def test_an_edited_file_that_was_lost_is_counted_and_forgets_that_it_was_edited(house, make_house):
    async def main():
        async with await made(LONG) as file, await file.extract((5, 80)) as cut:
            before = (await cut.stat()).edited
            await syscalls.send("lose", 1)
            await syscalls.recv("lost")
            await cut.append([65])
            return [before, (await cut.stat()).edited]

    async with make_house(n_workers=2) as two:
        running = two.start(main)
        await two.until(lambda: two.kernel.channels._channels.get("lose"))
        for device, usage in list(two.kernel.fs.devices().items()):
            if usage.n_files:
                two.lose(device)
        await two.run('from sdk import syscalls\nasync def main():\n    await syscalls.send("lost", 1)\n')
        assert (await running.wait_exit()).result == b"[true,false]"
        assert two.kernel.counters.n_edits_recomputed == 1
