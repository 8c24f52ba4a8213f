"""Priorities, limits, usage and what `ps` says."""

import asyncio
import json

import pytest

import sdk
from kernel.process import KILLED
from sdk import Channel, kv, process, syscalls
from sdk.abi.errors import AccessDenied, QuotaExceeded, SyscallError
from sdk.abi.values import Limits, Pid

# --- priority -----------------------------------------------------------------------------------------------------


async def test_a_child_begins_with_its_parents_priority(house):
    async def main(role: str = ""):
        if role:
            try:
                await process.priority(0)
            except AccessDenied as e:
                return [await process.priority(), str(e)]
        await process.priority(4)
        status = await (await sdk.spawn(".", role="child")).wait()
        return [await process.priority(0), status.result.decode()]

    mine, childs = await house.value(main)
    assert mine == 0, "back to where it began"
    assert childs.startswith("[4,")
    assert "cannot become more urgent" in childs


async def test_another_owners_priority_is_its_own(house):
    async def waits():
        await Channel("never").recv()

    async def main(pid: int):
        try:
            await process.priority(9, pid=pid)
        except AccessDenied as e:
            return [str(e), await process.priority(pid=pid)]

    other = house.kernel.spawn(house.program(waits), {}, owner="somebody", client=None, priority=2)
    said, priority = await house.value(main, pid=other.pid)
    assert said.startswith(f"EACCES: process {other.pid} belongs to 'somebody'")
    assert priority == 2
    house.kernel.kill(other.pid, "the test is over")
    await other.wait_exit()


async def test_processes_of_other_tenants_are_not_there(house):
    async def waits():
        await Channel("never").recv()

    async def probes(pid: int):
        found = []
        calls = process.rusage(pid), process.priority(pid=pid), process.priority(9, pid=pid), syscalls.kill(Pid(pid))
        for call in calls:
            try:
                await call
            except SyscallError as e:
                found.append(str(e))
        return found

    async def said(owner, tenant, pid):
        probing = house.kernel.spawn(house.program(probes), {"pid": pid}, owner=owner, client=None, tenant=tenant)
        status = await probing.wait_exit()
        assert status.code == 0, status.error
        return json.loads(status.result)

    others = [house.kernel.spawn(house.program(waits), {}, owner=o, client=None, tenant="ann") for o in ("http", "joe")]
    nobody = await said("http", "bob", 999)
    for other in others:
        assert await said("http", "bob", other.pid) == [error.replace("999", str(other.pid)) for error in nobody]
        refused = await said("eve", "ann", other.pid)
        assert [error.split(":")[0] for error in refused] == ["EACCES", "EACCES"], "its own tenant sees, and no more"
        assert other.status is None
    assert len(nobody) == 4
    assert await said("http", "ann", others[0].pid) == [], "its own user may do anything"
    assert (await others[0].wait_exit()).code == KILLED
    house.kernel.kill(others[1].pid, "the test is over")
    await others[1].wait_exit()


# --- limits -------------------------------------------------------------------------------------------------------


async def test_tokens(house):
    async def main(role: str = ""):
        async with await kv.create() as f:
            if role:
                await f.append([1] * 30)
                return (await process.limits()).tokens
            await f.append([1] * 10)
            await process.limits(tokens=100)
            child = await (await sdk.spawn(".", role="child")).wait()
            refused = []
            for n in (61, 60):
                try:
                    await f.append([1] * n)
                except QuotaExceeded:
                    refused.append(n)
            try:
                await f.generate([1], max_tokens=1)
            except QuotaExceeded as e:
                refused.append(str(e))
            return [child.result.decode(), refused, len(await f.tokens())]

    childs, refused, n_tokens = await house.value(main)
    assert (childs, refused[0], n_tokens) == ("90", 61, 70)
    assert refused[1].startswith("EDQUOT: the limit is 100 tokens: 100 are computed, and 2 more are wanted")


async def test_a_detached_child_does_not_escape(house):
    async def main(role: str = ""):
        if role:
            async with await kv.create() as f:
                await f.append([1] * 30)
            await Channel("done").send((await process.limits()).tokens)
            return None
        await process.limits(tokens=100)
        await sdk.spawn(".", detach=True, role="child")
        left = await Channel("done").recv()
        async with await kv.create() as f:
            try:
                await f.append([1] * 71)
            except QuotaExceeded:
                return left

    assert await house.value(main) == 100


async def test_time(house):
    async def main():
        await process.limits(wall_s=0.01)
        await Channel("never").recv()

    status = await house.run(main)
    assert (status.code, status.error) == (KILLED, "its limit of 0.01 s is reached")


async def test_a_time_that_is_over_already(house):
    async def main():
        await process.sleep(0.002)
        await process.limits(wall_s=0.001)

    assert (await house.run(main)).code == KILLED


async def test_processor_time_of_a_tree(house):
    async def waits():
        await Channel("never").recv()

    parent = house.start(waits)
    child = house.kernel.spawn(house.program(waits), {}, owner="local", client=None, parent=parent)
    grandchild = house.kernel.spawn(house.program(waits), {}, owner="local", client=None, parent=child)
    child.cpu_s, grandchild.cpu_s = 100.0, 1000.0
    assert int(parent.tree_cpu_s) == 1100
    house.kernel.kill(grandchild.pid, "enough")
    await grandchild.wait_exit()
    assert int(parent.tree_cpu_s) == 1100
    house.kernel.kill(parent.pid, "the test is over")
    await parent.wait_exit()


async def test_processor_time_counts_that_of_children(house):
    async def main(role: str = ""):
        if not role:
            await process.limits(cpu_s=0.02)
            await (await sdk.spawn(".", role="child")).wait()
        while True:
            sum(range(1000))
            await asyncio.sleep(0)

    p = house.start(main)
    status = await p.wait_exit()
    assert (status.code, status.error) == (KILLED, "its limit of 0.02 s of processor time is reached")
    assert p.cpu_s < 0.01


async def test_children_inherit_what_is_left(house):
    async def waits():
        await Channel("never").recv()

    async def main():
        await process.limits(pages=7, wall_s=100.0, cpu_s=50.0, horizon_tokens=5)
        return await (await sdk.spawn(".", role="child")).wait()

    parent = house.start(waits)
    await house.until(lambda: parent.waiting)
    parent.account.narrow(Limits(pages=7, wall_s=100.0, cpu_s=50.0, horizon_tokens=5))
    child = house.kernel.spawn(house.program(waits), {}, owner="local", client=None, parent=parent)
    limits = child.account.limits
    assert limits.pages == 7
    assert 99.0 < limits.wall_s <= 100.0
    assert 49.0 < limits.cpu_s <= 50.0
    assert limits.horizon_tokens is None, "what a program expects of itself is no limit"
    house.kernel.kill(parent.pid, "the test is over")
    await parent.wait_exit()


# --- usage --------------------------------------------------------------------------------------------------------


async def test_usage(house):
    async def main():
        f = await kv.create()
        await f.append([1] * 40)
        forks = [await f.fork() for _ in range(3)]
        await f.text(max_tokens=4, ignore_eos=True)
        await Channel("never").recv(timeout=0.03)
        return forks

    p = house.start(main)
    await house.until(lambda: any(w.call == "recv" for w in p.waiting.values()))
    usage = p.usage
    assert (usage.n_prompt_tokens, usage.n_generated_tokens) == (40, 4)
    assert usage.service >= 44
    page_size = house.kernel.model_info().page_size
    assert usage.n_pages == -(-44 // page_size) + (1 if 40 % page_size else 0), "shared pages count once"
    assert {"pred", "generate"} <= usage.wait_s.keys()
    await p.wait_exit()
    assert p.usage.n_pages == 0
    assert p.usage.wait_s["recv"] >= 0.03


async def test_whoever_asks_the_model_is_no_further_behind_than_a_window(house):
    async def main():
        async with await kv.create() as f:
            await f.append([1])

    scheduler = house.kernel.scheduler
    scheduler.open("hog", 0.0, tenant="local").charge(10**9, 0, 0.0)
    p = house.start(main)
    await p.wait_exit()
    assert scheduler.ledger.top - p.account.family.vt <= scheduler.ledger.window
    assert house.kernel.service_by_program()["main"] == p.account.device_s


# --- ps -----------------------------------------------------------------------------------------------------------


async def sleeps():
    await process.sleep(2)


async def receives():
    await Channel("jobs").recv()


async def waits_for_a_child():
    child = await sdk.spawn("usertests", role="sleep")
    await child.wait()


async def awaits():
    await asyncio.Event().wait()


async def gathers():
    await asyncio.gather(*(process.sleep(i + 5) for i in range(3)))


async def generates():
    async with await kv.prompt("x") as f:
        await f.text(max_tokens=200, ignore_eos=True)


@pytest.mark.parametrize(
    ("main", "what"),
    [
        (sleeps, "sleep 2 s"),
        (receives, "recv jobs"),
        (waits_for_a_child, "wait pid 2"),
        (awaits, f"await test_sys_process.py:{awaits.__code__.co_firstlineno + 1}"),
        (gathers, "sleep 5 s (+2)"),
        (generates, "generate #"),
    ],
)
async def test_what_a_process_waits_for(house, main, what):
    p = house.start(main)
    assert p.state == "ready"
    await house.until(lambda: p.state == "blocked" and p.waits_for().startswith(what))
    (shown,) = [info for info in house.kernel.ps() if info.pid == p.pid]
    assert (shown.state, shown.tenant, shown.priority, shown.n_threads > 0) == ("blocked", "local", 0, True)
    assert shown.wait.startswith(what)
    house.kernel.kill(p.pid, "the test is over")
    await p.wait_exit()
    assert p.state == "done"


async def test_states(house):
    seen = []

    async def main():
        (me,) = house.kernel.processes.values()
        seen.append(me.state)
        await Channel("c").recv()

    p = house.start(main)
    await house.until(lambda: p.waiting)
    seen.append(p.state)
    house.kernel.channels.send("c", 1)
    seen.append(p.state)
    await p.wait_exit()
    assert seen == ["running", "blocked", "ready"]


async def test_a_limit_of_tokens_ends_a_generation_in_its_middle(house):
    async def main():
        await process.limits(tokens=20)
        async with await kv.prompt("ten tokens") as f:
            try:
                await f.text(max_tokens=100, ignore_eos=True)
            except SyscallError as e:
                return [e.errno, len(await f.tokens())]

    errno, n_tokens = await house.value(main)
    assert errno == "EDQUOT"
    assert n_tokens == 20, "what was computed is kept"


async def test_a_limit_of_pages_is_held_and_kept_free(make_house):
    async def modest():
        await process.limits(pages=6)
        files = [await kv.create() for _ in range(2)]
        await files[0].append([1] * 40)
        await process.sleep(1.0)
        await files[0].append([1] * 40)
        try:
            await files[1].append([1] * 40)
        except SyscallError as e:
            return [e.errno, len(await files[1].tokens())]

    async def greedy():
        await process.sleep(0.5)
        async with await kv.create() as f:
            await f.append([1] * 64)
            return True

    async with make_house(n_pages=8) as house:
        first, second = house.start(modest), house.start(greedy)
        assert (await first.wait_exit()).result == b'["EDQUOT",0]'
        assert (await second.wait_exit()).code == 0
