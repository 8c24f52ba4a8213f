"""`pin` and `advise` as programs see them."""

import pytest

from sdk import kv, process
from sdk.abi.errors import Errno, SyscallError
from sdk.abi.values import Outcome
from tests.kernel.test_durable import damage_page, durable_house, n_computed

PROMPT = "a prompt of forty characters, or as many"  # 10 pages of 4 tokens


def evict(house):
    """Take everything off the device that may leave it, as somebody who needs all of it would."""
    (name,) = house.kernel.fs.pools
    fs, now = house.kernel.fs, house.kernel.now()
    files = [f.ino for f in fs.placed(name) if not f.n_leases and not f.moving]
    return fs.drop(files, now, fs.pinned(name, now))


async def test_what_is_pinned_stays_and_stat_says_so(make_house):
    async with make_house(n_pages=64, page_size=4) as house:

        async def main():
            async with await kv.prompt(PROMPT) as file:
                done = await file.pin(60.0)
                assert (done.outcome, done.n_pages, done.detail) == (Outcome.ACCEPTED, 10, "")
                assert done.until_s == (await file.stat()).pinned_until_s
                assert await process.now() < done.until_s <= await process.now() + 60.0
                assert evict(house) == 0
                assert (await file.stat()).n_pinned_pages == 10
                await file.unpin()
                assert (await file.stat()).n_pinned_pages == 0
                assert evict(house) == 10

        await house.value(main)


async def test_a_pin_is_clipped_and_refused_by_quota(make_house):
    async with make_house(n_pages=64, page_size=4, max_pinned_share=0.25) as house:

        async def main():
            async with await kv.prompt(PROMPT) as file, await kv.prompt(PROMPT) as other:
                assert (await file.pin()).until_s is None
                clipped = await other.pin()
                assert (clipped.outcome, clipped.n_pages) == (Outcome.CLIPPED, 6)
                assert "6 are left of the quota" in clipped.detail
                async with await file.fork() as third:
                    refused = await third.pin(1.0)
                    assert (refused.outcome, refused.n_pages) == (Outcome.REFUSED, 0)
                    assert "--max-pinned-share" in refused.detail
                    await file.unpin()
                    assert (await third.pin(1.0)).outcome == Outcome.ACCEPTED

        await house.value(main)


async def test_each_tenant_has_its_share_of_what_may_be_pinned(make_house):
    async with make_house(n_pages=64, page_size=4, tenant_share={"modest": 1.0, "large": 3.0}) as house:

        async def main():
            file = await kv.prompt(PROMPT * 2)
            await process.sleep(0.02)  # until both are there
            return [(await file.pin()).n_pages]

        program = house.program(main)
        both = [house.kernel.spawn(program, {}, owner=name, client=None, tenant=name) for name in ("modest", "large")]
        found = [(await p.wait_exit()).result for p in both]
        assert found == [b"[8]", b"[20]"], "of 32 pages, and a file has 20"


async def test_an_empty_file_is_not_pinned(house):
    async def main():
        async with await kv.create() as file:
            assert (await file.pin()).outcome == Outcome.REFUSED
            assert (await file.willneed()).outcome == Outcome.REFUSED

    await house.value(main)


@pytest.mark.parametrize("how", ["pin", "willneed"])
@pytest.mark.parametrize("lost", ["dropped", "swapped", "with its worker"])
async def test_what_is_not_there_is_brought_back(make_house, how, lost):
    n_workers = 1 + (lost == "with its worker")
    async with make_house(n_workers=n_workers, n_pages=24, n_host_pages=64, page_size=4) as house:
        fs, kernel = house.kernel.fs, house.kernel

        async def main():
            async with await kv.prompt(PROMPT) as file:
                (inode,) = [f.inode for f in fs.open_files if f.inode.tokens]
                if lost == "dropped":
                    fs.drop([inode.ino], kernel.now())
                elif lost == "swapped":
                    async with await kv.prompt(PROMPT * 2):
                        assert inode.n_host
                else:
                    house.lose((await file.stat()).worker)
                n_calls = kernel.counters.n_preds
                assert (await getattr(file, how)()).outcome == Outcome.DEFERRED
                await house.until(lambda: inode.residency.value == "resident")
                assert kernel.counters.n_preds == n_calls, "nobody has asked"
                assert (await file.stat()).n_resident == len(inode.tokens)
                assert inode.tail_valid
                text = await file.text(max_tokens=4)
            async with await kv.prompt(PROMPT) as again:
                assert await again.text(max_tokens=4) == text

        await house.value(main)


async def test_a_pinned_file_is_brought_back_when_its_worker_is_lost(make_house):
    async with make_house(n_workers=2) as house:

        async def main():
            async with await kv.prompt(PROMPT) as file:
                before = (await file.stat()).worker
                assert (await file.pin()).outcome == Outcome.ACCEPTED
                (inode,) = [f.inode for f in house.kernel.fs.open_files if f.inode.tokens]
                house.lose(before)
                assert (await file.stat()).n_resident == 0
                await house.until(lambda: inode.pool is not None and inode.n_kv == len(inode.tokens))
                return before != (await file.stat()).worker

        assert await house.value(main)


async def test_dontneed_is_for_ones_own(house):
    async def main(path):
        file = await kv.open(path, "r")
        done = await file.dontneed()
        return [done.outcome, done.detail]

    async def owner():
        async with await kv.prompt(PROMPT, "/shared/a") as file:
            await process.sleep(0.05)
            assert (await file.dontneed()).outcome == Outcome.ACCEPTED
            await file.pin()
            assert "unpin it first" in (await file.dontneed()).detail
        await kv.unlink("/shared/a")

    kernel = house.kernel
    first = kernel.spawn(house.program(owner), {}, owner="local", client=None)
    await house.until(lambda: any(f.inode.n_links for f in kernel.fs.open_files))
    other = kernel.spawn(house.program(main), {"path": "/shared/a"}, owner="x", client=None, tenant="x")
    same = kernel.spawn(house.program(main), {"path": "/shared/a"}, owner="local", client=None)
    for process_, why in ((other, b"belongs to somebody else"), (same, b"another program has this file open")):
        result = (await process_.wait_exit()).result
        assert result.startswith(b'["refused",')
        assert why in result
    assert (await first.wait_exit()).error == ""


@pytest.mark.parametrize("how", ["pin", "willneed"])
async def test_what_is_on_disk_is_read_and_not_computed(tmp_path, how):
    async with durable_house(tmp_path) as house:

        async def write():
            async with await kv.prompt(PROMPT, "/doc") as file:
                return await file.text(max_tokens=4)

        text = await house.value(write)
    async with durable_house(tmp_path) as house:

        async def main():
            async with await kv.open("/doc", "r") as file:
                (inode,) = [f.inode for f in house.kernel.fs.open_files if f.inode.tokens]
                for _ in range(2):
                    assert (await getattr(file, how)()).outcome == Outcome.DEFERRED
                await house.until(lambda: inode.residency.value == "resident" and not inode.moving)
                await house.until(lambda: not house.kernel.fs.pins.awaited)
                assert (await file.stat()).n_open == 1
                return await file.read_text()

        assert await house.value(main) == PROMPT + text
        assert n_computed(house)[0] == 0
        assert n_computed(house)[1] > 0


@pytest.mark.parametrize("how", ["pin", "willneed"])
async def test_what_is_on_disk_waits_for_room_and_takes_no_open_file_s(tmp_path, how):
    """And when there is room it is read, not computed."""
    async with durable_house(tmp_path, page_size=4) as house:
        await house.value(write_document)
    async with durable_house(tmp_path, n_pages=24, page_size=4) as house:
        kernel = house.kernel

        async def main():
            async with await kv.open("/doc", "r") as file:
                async with await kv.prompt(PROMPT * 2) as other:
                    assert (await getattr(file, how)()).outcome == Outcome.DEFERRED
                    for _ in range(50):
                        kernel.advisor.look()
                        await process.sleep(0.0)
                    assert (await other.stat()).n_resident == len(PROMPT * 2)
                    assert (await file.stat()).n_resident == 0
                (inode,) = [f.inode for f in kernel.fs.open_files if f.inode.tokens]
                await house.until(lambda: inode.residency.value == "resident")

        await house.value(main)
        assert n_computed(house) == (0, 10)


async def write_document():
    async with await kv.prompt(PROMPT, "/doc"):
        pass


async def test_a_pin_that_is_refused_leaves_the_one_before(make_house):
    async with make_house(n_pages=64, page_size=4) as house:
        fs = house.kernel.fs

        async def main():
            async with await kv.prompt(PROMPT) as file:
                await file.pin(60.0)
                fs.pins.max_share = 0.0
                assert "has pinned 10 pages" in (await file.pin()).detail
                await file.truncate(0)
                assert (await file.pin()).outcome == Outcome.REFUSED
                return len(fs.pins.pins)

        assert await house.value(main) == 1


async def test_what_could_never_come_back_is_not_waited_for(tmp_path):
    async with durable_house(tmp_path, page_size=4) as house:
        await house.value(write_document)
    async with durable_house(tmp_path, n_pages=9, page_size=4) as house:

        async def main():
            async with await kv.open("/doc") as file:
                refused = await file.willneed()
                assert (refused.outcome, "has 9 in all" in refused.detail) == (Outcome.REFUSED, True)
                await file.truncate(8)
                assert (await file.willneed()).outcome == Outcome.DEFERRED

        await house.value(main)


async def test_what_is_damaged_and_not_to_be_computed_is_given_up(tmp_path, caplog):
    """With `--kv-repair fail`: the calls get the error, and advice is no way around it."""
    async with durable_house(tmp_path, page_size=4) as house:
        await house.value(write_document)
    damage_page(tmp_path, 5)
    async with durable_house(tmp_path, page_size=4, kv_repair="fail") as house:
        pins = house.kernel.fs.pins

        async def main():
            async with await kv.open("/doc") as file:
                for advise in (file.pin, file.willneed):
                    assert (await advise()).outcome == Outcome.DEFERRED
                    await house.until(lambda: not pins.pins and not pins.advice)
                with pytest.raises(SyscallError) as e:
                    await file.next()
                assert e.value.errno == Errno.EIO

        await house.value(main)
        assert n_computed(house)[0] == 0
    assert "is damaged" in caplog.text
