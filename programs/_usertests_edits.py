"""Tests of `programs/usertests.py` on editing: extract, merge, splice."""

from programs._usertests import TEXT, Tally, sample_file, test
from sdk import Errno, KVFile, kv, model, syscalls
from sdk.abi import calls
from sdk.abi.values import Fd, OpenMode, PositionMode

NO_FD = Fd(2**31)
KEEP, PACK = PositionMode


async def contents(file: KVFile) -> tuple[list[int], list[int]]:
    return await file.tokens(), await file.positions()


@test
async def an_extract_has_what_was_asked_for(t: Tally) -> None:
    async with await sample_file() as file:
        tokens, n = await file.tokens(), len(await file.tokens())
        async with (
            await file.extract((0, 2), (n - 3, n)) as kept,
            await file.extract((2, n), positions="pack") as packed,
        ):
            assert await contents(kept) == (tokens[:2] + tokens[-3:], [0, 1, n - 3, n - 2, n - 1])
            assert await contents(packed) == (tokens[2:], list(range(n - 2)))
            assert [(await f.stat()).edited for f in (kept, packed, file)] == [True, True, False]
            for cut in (kept, packed):
                before = len(await cut.tokens())
                await cut.next()
                said = await cut.generate(max_tokens=4, ignore_eos=True)
                assert await cut.tokens(before) == said.tokens
        assert await contents(file) == (tokens, list(range(n)))


@test
async def a_beginning_is_as_good_as_new(t: Tally) -> None:
    async with await sample_file() as file:
        tokens = await file.tokens()
        async with await file.extract((0, len(tokens))) as whole, await file.extract((0, 3)) as part:
            assert not (await whole.stat()).edited
            assert (await whole.next()).top_tokens == (await file.next()).top_tokens
            assert await part.tokens() == tokens[:3]


@test
async def merge_joins_files(t: Tally) -> None:
    async with await sample_file() as a, await sample_file() as b, await kv.create() as empty:
        tokens = await a.tokens()
        path = f"{t.home}/merged"
        async with await kv.merge(a, empty, b, path=path) as merged:
            assert await contents(merged) == (tokens * 2, list(range(2 * len(tokens))))
            await merged.generate(max_tokens=2, ignore_eos=True)
        async with await kv.open(path, "r") as again:
            assert len(await again.tokens()) == 2 * len(tokens) + 2
            await t.refuses(Errno.EACCES, calls.Splice(fd=again.fd, start=0, stop=1))
        for taken in (calls.Extract(fd=a.fd, ranges=[(0, 1)], path=path), calls.Merge(fds=[a.fd], path=path)):
            await t.refuses(Errno.EEXIST, taken)
        await t.refuses(
            Errno.ENOTDIR,
            calls.Extract(fd=a.fd, ranges=[(0, 1)], path=f"{path}/below"),
            calls.Merge(fds=[a.fd], path=f"{path}/below"),
        )
        await kv.unlink(path)
        await t.refuses(
            Errno.ENOENT,
            calls.Extract(fd=a.fd, ranges=[(0, 1)], path=f"{t.home}/none/x"),
            calls.Merge(fds=[a.fd], path=f"{t.home}/none/x"),
        )


@test
async def splice_replaces_a_part(t: Tally) -> None:
    async with await sample_file() as file, await sample_file() as source:
        tokens, n = await file.tokens(), len(await file.tokens())
        async with await file.fork() as fork:
            await file.splice(1, 3)
            assert await contents(file) == (tokens[:1] + tokens[3:], [0, *range(3, n)])
            await file.splice(1, 1, source)
            assert await contents(file) == (tokens[:1] + tokens + tokens[3:], list(range(2 * n - 2)))
            assert await fork.tokens() == tokens, "a fork keeps what it has"
        stream = await syscalls.stream(file.fd)
        await t.refuses(Errno.EBUSY, calls.Splice(fd=file.fd, start=0, stop=1))
        await syscalls.close(stream)
        await file.splice(0, len(await file.tokens()))
        assert await file.tokens() == []
        assert await file.append(TEXT) == n


@test
async def edits_check_their_arguments(t: Tally) -> None:
    async with await sample_file() as file:
        n, fd = len(await file.tokens()), file.fd
        await t.refuses(
            Errno.EBADF,
            calls.Extract(fd=NO_FD, ranges=[(0, 1)]),
            calls.Merge(fds=[fd, NO_FD]),
            calls.Splice(fd=fd, start=0, stop=0, source=NO_FD),
        )
        await t.refuses(
            Errno.EINVAL,
            calls.Extract(fd=fd, ranges=[]),
            calls.Extract(fd=fd, ranges=[(1, 1)]),
            calls.Extract(fd=fd, ranges=[(0, n + 1)]),
            calls.Extract(fd=fd, ranges=[(2, 3), (0, 1)], positions=KEEP),
            calls.Merge(fds=[]),
            calls.Merge(fds=[fd, fd], positions=KEEP),
            calls.Splice(fd=fd, start=2, stop=1),
            calls.Splice(fd=fd, start=0, stop=n + 1),
            calls.Splice(fd=fd, start=0, stop=0, source=fd, positions=KEEP),
        )
        n_copies = (await model.info()).max_model_len // n + 1
        await t.refuses(
            Errno.E2BIG,
            calls.Merge(fds=[fd] * n_copies),
            calls.Extract(fd=fd, ranges=[(0, n)] * n_copies, positions=PACK),
        )
        async with await kv.merge(*[file] * (n_copies // 2 + 1)) as half:
            await t.refuses(Errno.E2BIG, calls.Splice(fd=half.fd, start=0, stop=0, source=half.fd))
        async with await kv.create(f"{t.home}/r") as named:
            await named.append(TEXT)
            reader = await syscalls.open(f"{t.home}/r", mode=OpenMode.READ)
            await t.refuses(Errno.EACCES, calls.Splice(fd=reader, start=0, stop=1))
            await syscalls.close(reader)
        await kv.unlink(f"{t.home}/r")
