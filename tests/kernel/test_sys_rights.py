"""Rights, roots and quotas as programs meet them: processes of several users in one kernel."""

import json

from kernel.config import UserQuota
from kvfs.access import OPERATOR


async def run(house, source, owner, tenant=None, **args):
    """What a program of somebody's returns."""
    program = house.program(source)
    process = house.kernel.spawn(program, args, owner=owner, client=None, tenant=tenant)
    status = await process.wait_exit()
    assert status.code == 0, status.error
    return json.loads(status.result)


async def test_tenants_see_their_own_files_and_what_is_shared(house):
    async def writes(path: str):
        from sdk import kv

        async with await kv.create(path) as f:
            await f.append([1, 2, 3])
            return (await f.stat()).owner

    async def lists(path: str):
        from sdk import kv

        return [entry.name for entry in await kv.readdir(path)]

    async def reads(path: str):
        from sdk import AccessDenied, kv

        async with await kv.open(path, "r") as f:
            try:
                await kv.open(path, "w")
            except AccessDenied:
                async with await f.fork("~/mine") as fork:
                    return await fork.append([4]) + len(await fork.tokens())

    assert await run(house, writes, "ann", "acme", path="/a") == "ann"
    assert await run(house, writes, "local", path="/shared/prompt") == "local"
    assert await run(house, lists, "eve", "rival", path="/") == ["shared"]
    assert await run(house, lists, "bob", "acme", path="/") == ["a", "shared"]
    assert await run(house, lists, "local", path="/") == ["shared", "tenants"]
    assert await run(house, reads, "eve", "rival", path="/shared/prompt") == 5
    for path in ("/tenants/acme/a", "/tenants/rival/home/eve/mine", "/shared/prompt"):
        house.kernel.fs.unlink(path, who=OPERATOR, now=0.0)


async def test_no_system_call_forgets_who_asks(house):
    """The table of who may do what is tests/kvfs/test_access.py's; this is that every call says who it is."""

    async def makes():
        from sdk import kv

        await kv.mkdir("/d")
        async with await kv.create("/d/f") as f:
            await f.append([1, 2, 3])
        await kv.chmod("/d/f", 0o744)
        await kv.chmod("/d", 0o711)

    async def tries():
        from sdk import SyscallError, kv

        await (await kv.create("/mine")).close()
        f, own = await kv.open("/d/f", "r"), await kv.create()
        calls = {
            "append": f.append([1]),
            "chmod": kv.chmod("/d/f", 0o777),
            "chown": kv.chown("/d/f", group="acme"),
            "create": kv.create("/d/n"),
            "dup": f.dup("w"),
            "extract": f.extract((0, 1)),
            "fork": f.fork(),
            "fork to": own.fork("/d/n"),
            "generate": f.generate([1], max_tokens=1),
            "link": kv.link("/d/f", "/n"),
            "link to": kv.link("/mine", "/d/n"),
            "lock": f.lock().__aenter__(),
            "merge": kv.merge(f, f),
            "mkdir": kv.mkdir("/d/n"),
            "open": kv.open("/d/f", "w"),
            "quota": kv.quota("ann"),
            "readdir": kv.readdir("/d"),
            "rename": kv.rename("/d/f", "/n"),
            "rename to": kv.rename("/mine", "/d/n"),
            "splice": f.splice(0, 1),
            "splice from": own.splice(0, 0, f),
            "truncate": f.truncate(1),
            "unlink": kv.unlink("/d/f"),
        }
        done = []
        for name, call in calls.items():
            try:
                await call
                done.append(name)
            except SyscallError as e:
                if e.errno != "EACCES":
                    done.append(f"{name}: {e}")
        return done

    await run(house, makes, "ann", "acme")
    assert await run(house, tries, "eve", "acme") == []
    for path in ("/d/f", "/d", "/mine"):
        house.kernel.fs.unlink(f"/tenants/acme{path}", who=OPERATOR, now=0.0)


async def test_tenants_of_the_port_have_bills_of_their_own(house):
    async def uses():
        from sdk import kv

        async with await kv.create("~/f") as f:
            await f.append([1] * 40)
            quota = await kv.quota()
            return [quota.user, quota.n_files, quota.n_pages, (await f.stat()).owner]

    for tenant in ("ann", "bob"):
        assert await run(house, uses, "http", tenant) == [tenant, 2, 3, tenant]
    assert await run(house, uses, "http", "local") == ["http", 2, 3, "http"]
    for tenant in ("ann", "bob", "http"):
        house.kernel.fs.unlink(f"/tenants/{tenant}/home/{tenant}/f", who=OPERATOR, now=0.0)


async def test_channels_are_a_tenants_own(house):
    async def sends(message: str):
        from sdk.channel import Channel

        await Channel("c").send(message)

    async def takes(channel: str = "c"):
        from sdk import TimedOut
        from sdk.channel import Channel

        try:
            return await Channel(channel).recv(0)
        except TimedOut as e:
            return str(e)

    await run(house, sends, "http", "ann", message="mine")
    await run(house, sends, "http", "a/c", message="theirs")
    for owner, tenant in (("http", "bob"), ("http", "a"), ("local", "local")):
        assert await run(house, takes, owner, tenant) == "ETIMEDOUT: channel 'c' is empty"
    assert await run(house, takes, "http", "ann") == "mine"
    assert await run(house, takes, "local", channel="a%2Fc/c") == "theirs"


async def test_tmp_goes_with_the_process(house):
    async def writes():
        from sdk import kv

        await kv.mkdir("/tmp/d")
        await (await kv.create("/tmp/d/f")).close()
        return [entry.name for entry in await kv.readdir("/tmp")]

    assert await run(house, writes, "ann") == ["d"]
    assert house.kernel.fs.readdir("/tenants", who=OPERATOR, now=0.0) == [], "and its tenant, which has nothing else"
    assert await run(house, writes, "local") == ["d"]
    assert house.n_pages_used() == 0


async def test_children_begin_with_the_umask_of_their_parent(house):
    async def parent(deep: bool = True):
        import sdk
        from sdk import kv

        if deep:
            before = await kv.umask(mode=0o077)
            child = await sdk.spawn(".", deep=False)
            status = await child.wait()
            return [before, int(status.result)]
        async with await kv.create() as f:
            return (await f.stat()).mode

    assert await run(house, parent, "ann") == [0o022, 0o700]


async def test_an_umask_of_nothing(house):
    async def main():
        from sdk import kv

        before = [await kv.umask(), await kv.umask(mode=0), await kv.umask()]
        async with await kv.create() as f:
            return [*before, (await f.stat()).mode]

    assert await run(house, main, "ann") == [0o022, 0o022, 0, 0o777]


async def test_a_handle_that_was_duped_is_closed_on_its_own(house):
    async def main():
        from sdk import AccessDenied, kv

        f = await kv.create()
        await f.append([1, 2])
        reader = await f.dup("r")
        await f.close()
        assert await reader.tokens() == [1, 2]
        try:
            await reader.append([3])
        except AccessDenied as e:
            return str(e)

    assert "open for reading" in await run(house, main, "ann")


async def test_only_the_operator_sees_what_others_have(house):
    async def main(user: str | None = None):
        from sdk import AccessDenied, kv

        try:
            quota = await kv.quota(user=user)
        except AccessDenied:
            return "EACCES"
        return [quota.user, quota.n_files]

    house.kernel.fs.create("/f", who=OPERATOR, now=0.0)
    assert await run(house, main, "ann") == ["ann", 0]
    assert await run(house, main, "ann", user="ann") == ["ann", 0]
    assert await run(house, main, "ann", user="local") == "EACCES"
    assert await run(house, main, "local", user="ann") == ["ann", 0]
    assert (await run(house, main, "local"))[1] >= 1


async def test_df_shows_a_tenant_what_is_his(house):
    async def main():
        from sdk import kv

        async with await kv.create() as f:
            await f.append([1] * 20)
            (space,) = await kv.df()
            return [space.n_pages - space.n_free, space.n_files, space.page_size]

    f = house.kernel.fs.create(None, who=OPERATOR, now=0.0, device=next(iter(house.kernel.fs.devices())))
    assert (await run(house, main, "ann"))[:2] == [2, 1]
    assert (await run(house, main, "local"))[1] == 2
    house.kernel.fs.close(f, 0.0)


async def test_a_process_limits_itself_and_its_children(house):
    async def main(deep: bool = True):
        import sdk
        from sdk import QuotaExceeded, kv, process

        if deep:
            limits = await process.limits(files=1, kv_byte_s=1e12)
            async with await kv.create():
                try:
                    await kv.create()
                except QuotaExceeded as e:
                    refused = str(e)
            child = await sdk.spawn(".", deep=False)
            return [limits.files, refused, (await child.wait()).error, (await process.rusage()).kv_byte_s >= 0]
        async with await kv.create():
            await kv.create()

    files, refused, error, _ = await run(house, main, "ann")
    assert files == 1
    assert "has 1 files and may have 1" in refused
    assert "has 1 files and may have 1" in error


async def test_a_quota_ends_a_generation_and_not_the_kernel(make_house):
    async def main():
        from sdk import QuotaExceeded, kv

        async with await kv.create() as f:
            try:
                await f.generate([1, 2], max_tokens=1000, ignore_eos=True)
            except QuotaExceeded as e:
                return [str(e), len(await f.tokens()), (await kv.quota()).n_pages]

    async with make_house(quota={"ann": UserQuota(pages=2)}) as house:
        error, n_tokens, n_pages = await run(house, main, "ann")
        assert "'ann' has 2 pages of KV, may have 2 and needs 1 more" in error
        assert n_pages == 2
        assert n_tokens <= 2 * house.kernel.model_info().page_size


async def test_a_group_of_the_configuration_may_do_what_its_bits_say(make_house):
    async def gives():
        from sdk import kv

        async with await kv.create("/f"):
            await kv.chown("/f", group="team")
            await kv.chmod("/f", 0o770)
            return (await kv.stat("/f")).group

    async def writes():
        from sdk import AccessDenied, kv

        try:
            async with await kv.open("/f") as f:
                return await f.append([1])
        except AccessDenied:
            return "EACCES"

    async with make_house(groups={"team": ["ann", "bob"]}) as house:
        assert await run(house, gives, "ann", "acme") == "team"
        assert await run(house, writes, "bob", "acme") == 1
        assert await run(house, writes, "eve", "acme") == "EACCES"
        house.kernel.fs.unlink("/tenants/acme/f", who=OPERATOR, now=0.0)
