"""Durable files through a whole kernel: saved, found again by the next one, damaged, refused."""

import errno
import logging
from contextlib import asynccontextmanager

import pytest

from gpuworker.null import NullBackend
from kernel.attachment import Attached
from kernel.boot import BootError, keep_files
from kernel.config import UserQuota
from kernel.disk import RealDisk
from kvfs.access import OPERATOR
from kvfs.store.format import stride
from kvfs.store.store import Store
from sdk import kv
from sdk.abi.errors import Errno, SyscallError
from tests.kernel.conftest import running_house


@asynccontextmanager
async def durable_house(tmp_path, **options):
    """A kernel that keeps files in tmp_path/kv; each call is the next kernel."""
    directory = tmp_path / f"house{len(list(tmp_path.glob('house*')))}"
    directory.mkdir()
    async with running_house(directory, kv_dir=tmp_path / "kv", **options) as house:
        keep_files(house.kernel)
        yield house
        fs = house.kernel.fs
        await house.until(lambda: not house.kernel.durable._tasks)
        fs.drop(list(fs.files), house.kernel.now())  # named files stay, with their pages


def n_computed(house):
    counters = house.kernel.counters
    return counters.n_recomputed_tokens, counters.n_pages_loaded


async def write(path: str = "/doc", n: int = 100):
    async with await kv.create(path) as f:
        await f.append(list(range(n)))
        return await next_of(f)


async def next_of(f):
    d = await f.next(top_k=5)
    return [list(d.top_tokens), list(d.top_logprobs)]


async def read(path: str = "/doc"):
    async with await kv.open(path) as f:
        return [await f.tokens(), await f.positions(), await next_of(f)]


async def test_a_closed_file_is_there_for_the_next_kernel(tmp_path):
    async with durable_house(tmp_path) as house:
        expected = await house.value(write)
        before = await house.value(stat_of)
    async with durable_house(tmp_path) as house:
        after = await house.value(stat_of)
        assert (after["n_tokens"], after["n_resident"]) == (100, 0)
        assert {k: after[k] for k in ("owner", "group", "mode", "ino")} == {
            k: before[k] for k in ("owner", "group", "mode", "ino")
        }
        assert abs(after["modified_s"] - before["modified_s"]) < 1.0
        tokens, positions, found = await house.value(read)
        assert tokens == positions == list(range(100))
        assert found == expected
        assert n_computed(house) == (0, 7)


async def stat_of(path: str = "/doc"):
    return await kv.stat(path)


async def test_forks_share_what_is_loaded(tmp_path):
    async def forks():
        import asyncio

        async with await kv.open("/doc", mode="r") as f:
            files = [await f.fork() for _ in range(5)]
            found = await asyncio.gather(*(next_of(file) for file in files))
            for file in files:
                await file.append([3])
            for file in files:
                await file.close()
            return found

    async with durable_house(tmp_path) as house:
        expected = await house.value(write)
    async with durable_house(tmp_path) as house:
        assert await house.value(forks) == [expected] * 5
        assert n_computed(house) == (0, 7)


async def test_changes_after_a_restart_are_saved_without_loading_what_is_there(tmp_path):
    async def cut():
        async with await kv.open("/doc") as f:
            await f.truncate(60)

    async def cut_and_read():
        async with await kv.open("/doc") as f:
            await f.truncate(60)
            await f.append([])
            return len(await f.tokens())

    async with durable_house(tmp_path) as house:
        await house.value(write)
    async with durable_house(tmp_path) as house:
        await house.value(cut)
        assert n_computed(house) == (0, 0)
    async with durable_house(tmp_path) as house:
        tokens, _, found = await house.value(read)
        assert tokens == list(range(60))
        assert n_computed(house)[1] == 4
        await house.value(write, path="/short", n=60)
        assert (await house.value(read, path="/short"))[2] == found


async def test_saves_that_come_together_share_syncs_and_errors(tmp_path, monkeypatch):
    n_syncs, is_broken = 0, False
    sync = RealDisk.fsync_dir

    def counted(disk):
        nonlocal n_syncs
        n_syncs += 1
        if is_broken:
            raise OSError(errno.EIO, "no")
        sync(disk)

    async def save():
        import asyncio

        nonlocal n_syncs, is_broken
        files = [await kv.create(f"/{i}") for i in range(40)]
        for i, file in enumerate(files):
            await file.append([i] * 5)
        is_broken = True
        failed = await asyncio.gather(*(file.sync() for file in files), return_exceptions=True)
        is_broken, n_syncs = False, 0
        await asyncio.gather(*(file.close() for file in files))
        await asyncio.gather(*(kv.rename(f"/{i}", f"/file{i}") for i in range(40)))
        return {str(e) for e in failed}, n_syncs

    async def look():
        return [await (await kv.open(f"/file{i}", mode="r")).tokens() for i in range(40)]

    monkeypatch.setattr(RealDisk, "fsync_dir", counted)
    async with durable_house(tmp_path) as house:
        await house.value(write)  # begins the journal
        (error,), n_syncs = await house.value(save)
        assert error.startswith("EIO")
        assert 0 < n_syncs < 20
    async with durable_house(tmp_path) as house:
        assert await house.value(look) == [[i] * 5 for i in range(40)]


async def test_names_are_kept(tmp_path):
    async def make():
        await kv.mkdir("/a")
        await kv.mkdir("/a/b")
        for path in ("/a/one", "/a/b/two", "/three"):
            async with await kv.create(path) as f:
                await f.append([1, 2, 3])
        await kv.rename("/a/b", "/b")
        await kv.unlink("/a/one")
        await kv.rename("/three", "/b/three")
        await kv.chmod("/b/two", 0o600)
        async with await kv.create("/tmp/mine") as f:
            await f.append([1])

    async def look():
        names = [[e.name for e in await kv.readdir(path)] for path in ("/", "/a", "/b")]
        return [*names, (await kv.stat("/b/two")).mode]

    async with durable_house(tmp_path) as house:
        await house.value(make)
    async with durable_house(tmp_path) as house:
        root, a, b, mode = await house.value(look)
        assert [name for name in root if name not in ("home", "shared", "tmp")] == ["a", "b"]
        assert (a, b, mode) == ([], ["three", "two"], 0o600)
        assert len(list((tmp_path / "kv").glob("*.kv"))) == 2


async def test_a_file_that_takes_over_a_name(tmp_path):
    """The pattern that replaces a file: write another, close it, rename it onto the first."""

    async def replace(path: str):
        async with await kv.create(path) as f:
            await f.append([9, 9])
        await kv.rename(path, "/doc")

    async with durable_house(tmp_path) as house:
        await house.value(write)
        await house.value(replace, path="/tmp/new")
        await house.value(replace, path="/other")
    async with durable_house(tmp_path) as house:
        assert (await house.value(read))[0] == [9, 9]
        assert len(list((tmp_path / "kv").glob("*.kv"))) == 1


async def test_sync_and_what_it_refuses(tmp_path):
    async def synced():
        f = await kv.create("/doc")
        await f.append([1, 2, 3])
        await f.sync()
        await f.append([4])
        errors = []
        for path in (None, "/tmp/x"):
            async with await kv.create(path) as g:
                try:
                    await g.sync()
                except SyscallError as e:
                    errors.append(e.errno)
        return errors

    async with durable_house(tmp_path) as house:
        assert await house.value(synced) == [Errno.EINVAL, Errno.EINVAL]
    async with durable_house(tmp_path) as house:  # the process was ended with the file open, and so closed it
        assert (await house.value(read))[0] == [1, 2, 3, 4]


async def test_without_a_directory_nothing_is_kept(house):
    async def synced():
        async with await kv.create("/doc") as f:
            try:
                await f.sync()
            except SyscallError as e:
                return e.errno

    assert await house.value(synced) == Errno.ENOSYS
    await house.value(unlinked)


async def unlinked(path: str = "/doc"):
    await kv.unlink(path)


async def test_two_kernels_on_one_directory(tmp_path):
    async with durable_house(tmp_path):
        with pytest.raises(BootError, match="in use by another kernel"):
            async with durable_house(tmp_path):
                pass


async def test_another_model_is_refused(tmp_path):
    async with durable_house(tmp_path) as house:
        await house.value(write)
    async with durable_house(tmp_path, backends=[NullBackend(name="bigger", vocab_size=600, verify=True)]) as house:
        status = await house.run(read)
        assert "ESTALE" in status.error
        assert "bigger" in status.error
        await house.value(unlinked)
    assert list((tmp_path / "kv").glob("*.kv")) == []


def damage(tmp_path, at):
    (path,) = (tmp_path / "kv").glob("*.kv")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def damage_page(tmp_path, index):
    disk = RealDisk(tmp_path / "kv")
    store = Store(disk)
    (file,) = store.tree.files.values()
    contents = store.read_start(file.version)
    disk.end()
    damage(tmp_path, contents.pages_at + index * stride(contents.head.geometry) + 40)


async def test_a_damaged_page_is_computed_again(tmp_path, caplog):
    async with durable_house(tmp_path) as house:
        expected = await house.value(write)
    damage_page(tmp_path, 5)
    with caplog.at_level(logging.WARNING):
        async with durable_house(tmp_path) as house:
            assert (await house.value(read))[2] == expected
            assert house.kernel.counters.n_pages_damaged == 1
            assert n_computed(house) == (100 - 80, 5)
    assert "computed again" in caplog.text
    async with durable_house(tmp_path) as house:
        assert n_computed(house) == (0, 0)
        assert (await house.value(read))[2] == expected
        assert n_computed(house) == (0, 7), "it was saved again when it was closed"
        assert (await house.value(read))[2] == expected
        assert house.kernel.counters.n_saves == 0


async def test_a_large_file_is_loaded_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("kernel.loading.CHUNK_BYTES", 700)
    monkeypatch.setattr("kernel.durable.CHUNK_BYTES", 700)
    async with durable_house(tmp_path) as house:
        expected = await house.value(write, n=500)
    async with durable_house(tmp_path) as house:
        assert (await house.value(read))[2] == expected
        assert n_computed(house) == (0, 32)


async def test_a_worker_that_is_lost_in_the_middle_of_a_load(tmp_path, monkeypatch):
    """The job goes to another worker, and its K/V is loaded there."""
    monkeypatch.setattr("kernel.loading.CHUNK_BYTES", 700)
    async with durable_house(tmp_path) as house:
        expected = await house.value(write, n=500)
    async with durable_house(tmp_path, n_workers=2) as house:
        stores = 0
        original = Attached.store

        async def store(attached, pages, contents):
            nonlocal stores
            stores += 1
            if stores == 5:
                house.lose(attached.worker.name)
            await original(attached, pages, contents)

        monkeypatch.setattr(Attached, "store", store)
        assert (await house.value(read))[2] == expected
        assert n_computed(house) == (0, 32)
        assert stores > 16


async def test_a_lost_worker_costs_what_is_not_on_disk(tmp_path):
    """What was saved is loaded by another worker, also where nobody asks because the file is pinned."""

    async def lose(pin: bool):
        async with await kv.open("/doc") as f:
            if pin:
                await f.pin()
            house.lose((await f.stat()).worker)
            if pin:
                await house.until(lambda: inode.n_kv == 100)
            await f.append([7, 8, 9])
            await f.truncate(100)

    async with durable_house(tmp_path, n_workers=3) as house:
        await house.value(write)
        inode = house.kernel.fs.names.find("/doc", OPERATOR, 0.0)
        await house.value(lose, pin=False)
        assert n_computed(house) == (0, 7)
        await house.value(lose, pin=True)
        assert n_computed(house) == (1, 14), "the last token, after which no hidden state was saved: it had been cut"


@pytest.mark.parametrize("is_removed", [False, True])
async def test_a_file_that_is_saved_or_removed_while_it_is_loaded(tmp_path, monkeypatch, is_removed):
    """By a fork, which goes on with what is there then; and nobody speaks of damage."""
    monkeypatch.setattr("kernel.loading.CHUNK_BYTES", 700)

    async def look():
        async with await kv.open("/doc", mode="r") as f, await f.fork() as g:
            return await next_of(g)

    async def cut():
        async with await kv.open("/doc") as f:
            await f.truncate(160)

    async with durable_house(tmp_path) as house:
        expected = await house.value(write, n=500)
    async with durable_house(tmp_path, kv_repair="fail") as house:
        original, stores = Attached.store, 0

        async def store(attached, pages, contents):
            nonlocal stores
            stores += 1
            if stores == 3:
                await house.value(unlinked if is_removed else cut)
            await original(attached, pages, contents)

        monkeypatch.setattr(Attached, "store", store)
        assert await house.value(look) == expected
        assert house.kernel.counters.n_pages_damaged == 0
        assert len(list((tmp_path / "kv").glob("*.kv"))) == (not is_removed)


async def test_closed_files_make_room_for_what_is_loaded(tmp_path):
    """Three documents, and pages for two: each is read from disk when its turn comes, and none is computed again."""

    async def documents():
        for name in "abc":
            async with await kv.create(f"/{name}") as f:
                await f.append([ord(name)] * 150)

    async def ask(name: str):
        async with await kv.open(f"/{name}", mode="r") as f, await f.fork() as g:
            await g.append([1, 2, 3])

    async with durable_house(tmp_path, n_pages=24, n_host_pages=0) as house:
        await house.value(documents)
        before = n_computed(house)[0]
        for name in "abcabc":
            await house.value(ask, name=name)
        recomputed, loaded = n_computed(house)
        assert recomputed - before == 0
        assert loaded >= 40


async def test_a_load_whose_job_goes_away_serves_the_others(tmp_path, monkeypatch):
    """The first of three calls is cancelled in the middle; the others wait for another load of the same."""
    monkeypatch.setattr("kernel.loading.CHUNK_BYTES", 700)

    async def forks():
        import asyncio

        async with await kv.open("/doc", mode="r") as f:
            first, *others = [await f.fork() for _ in range(3)]
            calls = [asyncio.ensure_future(next_of(file)) for file in (first, *others)]
            while not stores:  # noqa: ASYNC110  (nobody would set an event)
                await asyncio.sleep(0)
            calls[0].cancel()
            await first.close()
            found = await asyncio.gather(*calls[1:])
            for file in others:
                await file.close()
            return found

    async with durable_house(tmp_path) as house:
        expected = await house.value(write, n=300)
    stores = []
    original = Attached.store

    async def store(attached, pages, contents):
        stores.append(len(pages))
        await original(attached, pages, contents)

    monkeypatch.setattr(Attached, "store", store)
    async with durable_house(tmp_path) as house:
        assert await house.value(forks) == [expected, expected]
        assert n_computed(house)[0] == 0


async def test_a_damaged_page_is_an_error_if_that_is_wanted(tmp_path):
    async with durable_house(tmp_path) as house:
        await house.value(write)
    damage_page(tmp_path, 5)
    async with durable_house(tmp_path, kv_repair="fail") as house:
        assert "EIO" in (await house.run(read)).error
        assert "EIO" in (await house.run(read)).error


async def test_a_damaged_head_is_an_error_and_the_name_stays(tmp_path):
    async with durable_house(tmp_path) as house:
        await house.value(write)
    damage(tmp_path, 100)
    async with durable_house(tmp_path) as house:
        assert "EIO" in (await house.run(read)).error
        assert (await house.value(stat_of))["n_tokens"] == 100
        await house.value(unlinked)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
async def test_a_disk_that_fails_at_the_nth_call(tmp_path, monkeypatch, number):
    """The caller is told, the handle is closed, what was saved before stays, and the kernel goes on."""
    calls = 0
    fail_at = 0

    def failing(act):
        def call(*args):
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise OSError(number, "no")
            return act(*args)

        return call

    for name in ("append", "fsync", "rename", "fsync_dir", "create"):
        monkeypatch.setattr(RealDisk, name, failing(getattr(RealDisk, name)))

    async def change(n: int):
        f = await kv.open("/doc")
        await f.append([n])
        try:
            await f.close()
        except SyscallError as e:
            return e.errno
        return "saved"

    async with durable_house(tmp_path) as house:
        await house.value(write)
        length, outcomes = 100, []
        for n in range(1, 20):
            calls, fail_at = 0, n
            outcomes.append(await house.value(change, n=n))
            length += 1
            fail_at = 0
        assert set(outcomes) == {"saved", Errno.ENOSPC if number == errno.ENOSPC else Errno.EIO}
        assert outcomes[-1] == "saved"
        assert (await house.value(read))[0][100:] == list(range(1, 20))
    async with durable_house(tmp_path) as house:
        assert len((await house.value(read))[0]) == length


async def test_the_size_is_limited(tmp_path):
    async with durable_house(tmp_path, kv_dir_size=2e-6) as house:
        status = await house.run(write)
        assert "ENOSPC" in status.error
        assert "--kv-dir-size" in status.error


async def test_a_user_has_so_much_of_the_disk(tmp_path):
    async def used():
        quota = await kv.quota()
        return [quota.n_disk_bytes, quota.n_disk_bytes_max]

    async def rewrite(n_kept):
        async with await kv.open("/doc", "w") as f:
            await f.truncate(n_kept)
            await f.append(list(range(n_kept, 120)))

    async with durable_house(tmp_path) as house:
        await house.value(write)
        n_bytes, limit = await house.value(used)
        assert (n_bytes > 0, limit) == (True, None)
    async with durable_house(tmp_path, quota={"local": UserQuota(disk_bytes=2 * n_bytes - 1)}) as house:
        assert await house.value(used) == [n_bytes, 2 * n_bytes - 1]
        status = await house.run(write, path="/other")
        assert f"EDQUOT: 'local' has {n_bytes} bytes on disk, may have {2 * n_bytes - 1}" in status.error
        await house.run(rewrite, n_kept=50)  # a version counts in place of the one before
        n_rewritten, _ = await house.value(used)
        assert n_bytes < n_rewritten < 2 * n_bytes
        await house.run(remove)
        assert (await house.value(used))[0] == 0
    assert [path.name for path in (tmp_path / "kv").glob("*.[kt][vm]*")] == []


async def remove(path: str = "/doc"):
    await kv.unlink(path)


async def test_a_worker_that_is_lost_in_the_middle_of_a_save(tmp_path):
    """Its K/V is gone, and the tokens are saved."""

    async def lose(path: str = "/doc"):
        async with await kv.create(path) as f:
            await f.append(list(range(100)))
            house.lose(house_name)

    async with durable_house(tmp_path) as house:
        house_name = next(iter(house.kernel.fs.pools))
        await house.value(lose)
    async with durable_house(tmp_path) as house:
        assert (await house.value(read))[0] == list(range(100))
        assert n_computed(house) == (100, 0)


@pytest.mark.parametrize("chunk_bytes", [500, 16 << 20])
async def test_what_is_in_main_memory_is_saved_with_its_kv(tmp_path, monkeypatch, chunk_bytes):
    """Also of an edited file, which could not be computed again as it is."""
    monkeypatch.setattr("kernel.durable.CHUNK_BYTES", chunk_bytes)
    small = {"n_pages": 24, "page_size": 4, "preemption_mode": "swap"}

    async def save():
        async with await kv.create() as a, await kv.create() as b:
            await a.append(list(range(20)))
            await b.append(list(range(30)))
            async with await kv.merge(a, b, path="/both") as both:
                expected = await next_of(both)
                async with await kv.create() as other:
                    await other.append(list(range(80)))
                    n_host_pages = (await both.stat()).n_host_pages
                    await both.sync()
        return expected, n_host_pages

    async def look():
        async with await kv.open("/both") as both:
            return await next_of(both), (await both.stat()).edited

    async with durable_house(tmp_path, **small) as house:
        expected, n_host_pages = await house.value(save)
        assert n_host_pages > 0
    async with durable_house(tmp_path, **small) as house:
        assert await house.value(look) == [expected, True]
        assert n_computed(house) == (0, 13)


async def test_a_file_that_is_not_open_costs_no_tokens(tmp_path):
    async with durable_house(tmp_path) as house:
        await house.value(write)
    async with durable_house(tmp_path) as house:
        node = house.kernel.fs.names.find("/doc", OPERATOR, 0.0)
        assert len(node.tokens) == 0
        assert node.n_unread == 100


async def test_an_edit_loads_all_its_sources(tmp_path):
    """And what it made, which is edited, comes back as it was."""

    async def write_two():
        await write("/a", 50)
        await write("/b", 70)

    async def merge():
        async with await kv.open("/a") as a, await kv.open("/b") as b, await kv.merge(a, b, path="/both") as both:
            return [await both.tokens(), await both.positions(), (await both.stat()).edited]

    async def look():
        async with await kv.open("/both") as both:
            edited = (await both.stat()).edited  # also before it is loaded
            return [len(await both.tokens()), await next_of(both), edited and (await both.stat()).edited]

    async with durable_house(tmp_path) as house:
        await house.value(write_two)
    async with durable_house(tmp_path) as house:
        tokens, positions, edited = await house.value(merge)
        assert (tokens, positions, edited) == ([*range(50), *range(70)], list(range(120)), True)
        assert n_computed(house) == (0, 4 + 5)
    async with durable_house(tmp_path) as house:
        n_tokens, _, edited = await house.value(look)
        assert (n_tokens, edited) == (120, True)
        assert n_computed(house) == (1, 8)  # the last token, since an edited file has no tail
