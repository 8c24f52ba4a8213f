"""The tests of `programs/usertests.py` on files: names, handles, forks, rights."""

import asyncio

from programs._usertests import TEXT, Tally, sample_file, test
from sdk import Errno, kv, model, syscalls
from sdk.abi import calls
from sdk.abi.errors import NotSupported
from sdk.abi.values import FileKind, OpenMode


@test
async def names_outlive_handles(t: Tally) -> None:
    path = f"{t.home}/file"
    async with await sample_file(path) as file:
        tokens = await file.tokens()
    async with await kv.open(path, "r") as reader:
        assert await reader.tokens() == tokens
        assert (await reader.next()).top_tokens
        await t.refuses(
            Errno.EACCES,
            calls.Pred(fd=reader.fd, tokens=[1]),
            calls.Generate(fd=reader.fd),
            calls.Stream(fd=reader.fd),
            calls.Truncate(fd=reader.fd, n_tokens=0),
        )
        await kv.unlink(path)
        assert await reader.tokens() == tokens, "an open file outlives its name"
    await t.refuses(Errno.ENOENT, calls.Open(path=path))
    await t.refuses(
        Errno.EBADF,
        calls.Close(fd=reader.fd),
        calls.StatFd(fd=reader.fd),
        calls.Fork(fd=reader.fd),
        calls.Truncate(fd=reader.fd, n_tokens=0),
        calls.Tokens(fd=reader.fd),
        calls.Positions(fd=reader.fd),
    )


@test
async def stat_counts(t: Tally) -> None:
    path, page_size = f"{t.home}/file", (await model.info()).page_size
    async with await sample_file(path) as file, await kv.open(path, OpenMode.READ):
        stat = await file.stat()
        assert stat.n_tokens == len(await file.tokens())
        assert stat.n_pages == -(-stat.n_tokens // page_size)
        assert (stat.kind, stat.n_links, stat.n_open, stat.n_resident) == (FileKind.FILE, 1, 2, stat.n_tokens)
        assert (await kv.stat(path)).ino == stat.ino
        assert (await kv.stat(t.home)).kind is FileKind.DIRECTORY
    await kv.unlink(path)


@test
async def directories_hold_names(t: Tally) -> None:
    inner, file = f"{t.home}/inner", f"{t.home}/inner/file"
    await kv.mkdir(inner)
    await (await kv.create(file)).close()
    assert [(e.name, e.kind) for e in await kv.readdir(inner)] == [("file", FileKind.FILE)]
    await t.refuses(Errno.EEXIST, calls.MkDir(path=inner), calls.Create(path=file))
    await t.refuses(Errno.ENOTEMPTY, calls.Unlink(path=inner))
    await t.refuses(Errno.EISDIR, calls.Open(path=inner), calls.Rename(old=file, new=inner))
    await kv.rename(inner, f"{t.home}/moved")
    await kv.unlink(f"{t.home}/moved/file")
    await kv.unlink(f"{t.home}/moved")
    assert await kv.readdir(t.home) == []


@test
async def paths_are_checked(t: Tally) -> None:
    path = f"{t.home}/file"
    async with await kv.create(path) as file:
        for errno, bad in (
            (Errno.EINVAL, "relative"),
            (Errno.EINVAL, f"{t.home}/../file"),
            (Errno.ENOENT, f"{t.home}/nothing/here"),
            (Errno.ENOTDIR, f"{path}/below"),
        ):
            await t.refuses(
                errno,
                calls.Open(path=bad),
                calls.Create(path=bad),
                calls.Unlink(path=bad),
                calls.StatPath(path=bad),
                calls.ReadDir(path=bad),
                calls.MkDir(path=bad),
                calls.Rename(old=bad, new=f"{t.home}/other"),
                calls.Rename(old=path, new=bad),
                calls.Link(old=bad, new=f"{t.home}/other"),
                calls.Chmod(path=bad, mode=0o700),
                calls.Chown(path=bad),
                calls.Fork(fd=file.fd, path=bad),
            )
        await t.refuses(Errno.EEXIST, calls.Fork(fd=file.fd, path=path))
        async with await file.fork(f"{path}-2"):
            await kv.rename(path, f"{path}-2")
    await kv.unlink(f"{path}-2")


@test
async def forks_part_ways(t: Tally) -> None:
    async with await sample_file() as file, await file.fork() as fork:
        tokens = await file.tokens()
        await asyncio.gather(file.append(TEXT), fork.append(tokens[:3]))
        assert await file.tokens() == tokens + tokens
        assert await fork.tokens() == tokens + tokens[:3]


@test
async def truncate_keeps_a_prefix(t: Tally) -> None:
    async with await sample_file() as file, await file.fork() as fork:
        tokens = await file.tokens()
        await fork.truncate(3)
        assert await fork.tokens() == tokens[:3]
        assert await fork.positions() == [0, 1, 2]
        assert (await fork.next()).position == 2
        assert await fork.keep([*tokens[:2], *tokens]) == len(tokens)
        assert await fork.tokens() == [*tokens[:2], *tokens]
        assert await file.tokens() == tokens, "a fork's truncation is its own"
        await t.refuses(Errno.EINVAL, calls.Truncate(fd=file.fd, n_tokens=len(tokens) + 1))


@test
async def positions_may_leave_gaps(t: Tally) -> None:
    async with await kv.create() as file:
        await file.pred([1, 2, 3], positions=[0, 5, 9])
        await file.append([4])
        assert await file.positions() == [0, 5, 9, 10]
        assert await file.positions(1, -1) == [5, 9]
        assert await file.tokens(-2) == [3, 4]


@test
async def links_are_names_of_equal_right(t: Tally) -> None:
    one, two = f"{t.home}/one", f"{t.home}/two"
    async with await sample_file(one):
        await kv.link(one, two)
        assert (await kv.stat(two)).n_links == 2
        await t.refuses(Errno.EEXIST, calls.Link(old=one, new=two))
        await t.refuses(Errno.EISDIR, calls.Link(old=t.home, new=f"{t.home}/three"))
    await kv.unlink(one)
    assert (await kv.stat(two)).n_links == 1
    await kv.unlink(two)


@test
async def modes_begin_with_the_umask(t: Tally) -> None:
    path = f"{t.home}/file"
    before = await syscalls.umask(0o027)
    async with await sample_file(path) as file:
        assert (await file.stat()).mode == 0o750
        assert await syscalls.umask(before) == 0o027
        assert await syscalls.umask() == before
        async with await file.fork() as fork:
            assert (await fork.stat()).mode == 0o750, "a fork is no more open than its original"
        await kv.chmod(path, 0o600)
        assert (await kv.stat(path)).mode == 0o600
        stat = await file.stat()
        await kv.chown(path, owner=stat.owner, group=stat.group)
        await t.refuses(Errno.EINVAL, calls.Chmod(path=path, mode=0o1777))
    await kv.unlink(path)


@test
async def handles_only_narrow(t: Tally) -> None:
    async with await sample_file() as file, await file.dup("r") as reader:
        assert await reader.tokens() == await file.tokens()
        await t.refuses(
            Errno.EACCES, calls.Truncate(fd=reader.fd, n_tokens=0), calls.Dup(fd=reader.fd, mode=OpenMode.WRITE)
        )
        async with await reader.dup() as same:
            await t.refuses(Errno.EACCES, calls.Truncate(fd=same.fd, n_tokens=0))
    await t.refuses(Errno.EBADF, calls.Dup(fd=file.fd))


@test
async def home_and_tmp_are_ones_own(t: Tally) -> None:
    pid = await syscalls.getpid()
    for path in (f"~/usertests-{pid}", "/tmp/file"):  # noqa: S108  (in kvfs)
        async with await kv.create(path):
            await kv.stat(path)
        assert path.rpartition("/")[2] in [entry.name for entry in await kv.readdir(path.rpartition("/")[0])]
        await kv.unlink(path)
    assert (await kv.stat("/shared")).kind is FileKind.DIRECTORY


@test
async def what_is_used_is_told(t: Tally) -> None:
    path = f"{t.home}/file"
    before = await kv.quota()
    async with await sample_file(path) as file:
        after, n_pages = await kv.quota(), (await file.stat()).n_pages
        assert after.user == (await file.stat()).owner
        assert (after.n_files - before.n_files, after.n_pages - before.n_pages) == (1, n_pages)
        worker = (await file.stat()).worker
        (device,) = [device for device in await kv.df() if device.device == worker]
        assert device.n_pages - device.n_free >= n_pages
    await kv.unlink(path)
    assert (await kv.quota()).n_files == before.n_files


@test
async def what_is_synced_is_on_disk_or_there_is_none(t: Tally) -> None:
    async with await sample_file(f"{t.home}/file") as file:
        try:
            await file.sync()
            nameless = Errno.EINVAL
        except NotSupported:
            nameless = Errno.ENOSYS
        async with await sample_file() as other:
            await t.refuses(nameless, calls.Sync(fd=other.fd))
    await t.refuses(Errno.EBADF, calls.Sync(fd=file.fd))
    await kv.unlink(f"{t.home}/file")
