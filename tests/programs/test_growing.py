"""Many who want one prompt at the same time, over the fake kernel: who computes it, and who waits."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest

from programs import _growing
from programs._growing import DIRECTORY, Sign, growing
from programs.prefix_cache import PrefixCache
from sdk import Errno, KVFile, SyscallError, kv, process, rusage
from sdk.abi import calls
from sdk.testing import FakeKernel

SYSTEM = [1 + i % 50 for i in range(600)]


async def n_computed() -> int:
    return (await rusage()).n_prompt_tokens


async def read(prompt: Sequence[int], cache: PrefixCache | None = None) -> int:
    """Have a prompt read, and look that it was; how many of its tokens were known."""
    file, n_known, rest = await (cache or PrefixCache()).read(prompt)
    assert (await file.tokens(), rest) == (list(prompt), [])
    await file.close()
    return n_known


async def begun(prompt: Sequence[int], cache: PrefixCache | None = None) -> asyncio.Task[int]:
    """Somebody who is computing a prompt, and has a sign up."""
    task = asyncio.create_task(read(prompt, cache))
    while not await signs():  # noqa: ASYNC110
        await asyncio.sleep(0)
    return task


async def signs() -> list[str]:
    with suppress(SyscallError):
        return [entry.name for entry in await kv.readdir(DIRECTORY)]
    return []


async def sign_of(prompt: Sequence[int]) -> tuple[Sign, KVFile]:
    """The sign of somebody who computes this prompt for as long as the test likes."""
    keys = await PrefixCache()._keys(prompt)
    found = await _growing.put_up(keys, 0)
    assert found is not None
    return found


async def test_agents_who_begin_together_compute_what_they_share_once() -> None:
    async with FakeKernel(max_model_len=4096):
        known = await asyncio.gather(*(read(SYSTEM + [100 + i] * 20) for i in range(16)))
        assert sorted(known) == [0] + [600] * 15
        assert await n_computed() == 600 + 16 * 20
        assert await signs() == []


async def test_who_has_less_than_half_in_common_does_not_wait() -> None:
    async with FakeKernel(max_model_len=4096):
        known = await asyncio.gather(*(read(SYSTEM + [100 + i] * 700) for i in range(4)))
        assert known == [0] * 4


@pytest.mark.parametrize("n", [255, 15])
async def test_a_short_prompt_asks_nobody(n: int) -> None:
    async with FakeKernel(max_model_len=4096) as kernel:
        assert await asyncio.gather(*(read(SYSTEM[:n]) for _ in range(3))) == [0] * 3
        assert not any(isinstance(call, calls.Lock) for call in kernel.calls)
        assert await signs() == []


async def test_what_is_left_to_the_caller_is_not_waited_for() -> None:
    async with FakeKernel(max_model_len=4096):
        await read(SYSTEM)
        first = await begun(SYSTEM + [100] * 400)
        file, n_known, rest = await PrefixCache().read(SYSTEM + [100] * 400, leave=401)
        assert (n_known, list(rest), await file.tokens()) == (600, [100] * 400, SYSTEM)
        assert not first.done()
        await first


async def test_what_goes_on_from_what_is_known_is_waited_for_as_well() -> None:
    async with FakeKernel(max_model_len=4096):
        await read(SYSTEM)
        known = await asyncio.gather(*(read(SYSTEM + [100] * 300 + [i]) for i in range(4)))
        assert sorted(known) == [600] + [900] * 3


async def test_salts_do_not_wait_for_each_other() -> None:
    async with FakeKernel(max_model_len=4096):
        await begun(SYSTEM, PrefixCache(salt="ann"))
        assert await read(SYSTEM, PrefixCache(salt="bob")) == 0


@pytest.mark.parametrize("priority", [0, 1])
async def test_nobody_waits_for_one_who_is_less_urgent(priority: int) -> None:
    async with FakeKernel(max_model_len=4096):
        sign, file = await sign_of(SYSTEM)
        await kv.rename(sign.path, sign._replace(priority=priority).path)
        task = asyncio.create_task(read(SYSTEM))
        for _ in range(20):
            await asyncio.sleep(0)
        assert task.done() == (priority > await process.priority())
        await file.close()
        assert await task == 0


async def test_who_is_ended_is_followed_by_one_of_the_others() -> None:
    """Its sign stays up, as it has no time to take it down, and the next one finds it."""
    async with FakeKernel(max_model_len=4096):
        _, file = await sign_of(SYSTEM)
        others = [asyncio.create_task(read(SYSTEM)) for _ in range(5)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(task.done() for task in others)
        await file.close()  # as its end does
        assert sorted(await asyncio.gather(*others)) == [0] + [599] * 4
        assert await signs() == []


async def test_a_sign_that_was_left_behind_keeps_nobody() -> None:
    async with FakeKernel(max_model_len=4096):
        _, file = await sign_of(SYSTEM)
        await file.close()
        assert await read([60] * 600) == 0
        assert await signs() == [], "whoever sees it takes it down"


async def test_who_gives_up_takes_his_sign_down() -> None:
    async with FakeKernel(max_model_len=4096):
        keys = await PrefixCache()._keys(SYSTEM)

        async def compute_for_ever() -> None:
            async with growing(keys, 0):
                await asyncio.Event().wait()

        first = asyncio.create_task(compute_for_ever())
        others = [asyncio.create_task(read(SYSTEM)) for _ in range(3)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(task.done() for task in others)
        first.cancel()
        assert sorted(await asyncio.gather(*others)) == [0, 599, 599]
        assert await signs() == []


async def test_who_cannot_compute_it_is_told_and_the_others_try() -> None:
    async with FakeKernel(max_model_len=4096) as kernel:
        kernel.fail("pred", Errno.ENOSPC)
        first, *others = await asyncio.gather(*(read(SYSTEM) for _ in range(4)), return_exceptions=True)
        assert isinstance(first, SyscallError)
        assert others == [0, 599, 599]


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_growing, "WAIT_S", 0.01)
    async with FakeKernel(max_model_len=4096):
        sign, _ = await sign_of(SYSTEM)
        assert await read(SYSTEM) == 0
        assert await signs() == [sign.path.rpartition("/")[2]], "it is still at it"


async def test_what_will_not_be_kept_is_not_waited_for() -> None:
    async with FakeKernel(max_model_len=4096) as kernel:
        known = await asyncio.gather(*(read(SYSTEM, PrefixCache(n_tokens_max=599)) for _ in range(3)))
        assert known == [0] * 3
        assert not any(isinstance(call, calls.Lock) for call in kernel.calls)


async def test_where_there_can_be_no_signs_all_compute() -> None:
    async with FakeKernel(max_model_len=4096):
        await read([60] * 600)
        await kv.unlink(DIRECTORY)
        await kv.create(DIRECTORY)
        assert await asyncio.gather(*(read(SYSTEM) for _ in range(3))) == [0] * 3


async def test_names_of_others_are_no_signs() -> None:
    async with FakeKernel(max_model_len=4096):
        await read(SYSTEM)
        key = "0123456789abcdef"
        names = ["note", "a.1.0", f"{key}.3", f"{key}.3.x", f"{key}.3.4.5", f"{key}.--1.0", f"{key}.03.0"]
        for name in names:
            await (await kv.create(f"{DIRECTORY}/{name}")).close()
        names.append(f"{key}.3.0")
        await kv.mkdir(f"{DIRECTORY}/{names[-1]}")
        assert await read([60] * 600) == 0
        assert await signs() == sorted(names)


@pytest.mark.parametrize(
    "name", ["mkdir", "priority", "readdir", "stat", "fstat", "lock", "unlink", "open", "df", "model_info"]
)
@pytest.mark.parametrize("errno", [Errno.EACCES, Errno.EDQUOT, Errno.EDEADLK])
async def test_an_error_is_nobodys_concern(name: str, errno: Errno) -> None:
    """Whatever it interrupts: the first one's sign, the second one's look, or the taking down of one left behind."""
    async with FakeKernel(max_model_len=4096) as kernel:
        _, left = await sign_of([60] * 600)
        await left.close()
        kernel.fail(name, errno)
        first = asyncio.create_task(read(SYSTEM))
        await asyncio.sleep(0)
        if not kernel.faults:
            kernel.fail(name, errno)
        assert await read(SYSTEM) in (0, 599)
        assert await first in (0, 599)
