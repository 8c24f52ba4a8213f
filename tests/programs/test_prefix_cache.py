"""The prefix cache over the fake kernel: what is found, what is held, what is let go, and what may not go wrong."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from programs import prefix_cache
from programs.prefix_cache import CHUNK, DIRECTORY, Entry, Node, PrefixCache, Tree, least_saving, limit_of, n_common
from sdk import Errno, kv, process
from sdk.abi import calls
from sdk.testing import FakeKernel

A, B, C = ([i] * 40 for i in (1, 2, 3))


async def keep(cache: PrefixCache, tokens: Sequence[int]) -> None:
    """Store these tokens, as a request would that had to compute them all."""
    async with await kv.create() as file:
        await file.append(tokens)
        await cache.store(file)


async def found(cache: PrefixCache, prompt: Sequence[int]) -> int:
    """Tokens of the prompt that are known, having looked that they are the prompt's."""
    file, n = await cache.open(prompt)
    async with file:
        assert await file.tokens() == list(prompt[:n])
    return n


async def nodes() -> list[Node]:
    return [node for entry in await kv.readdir(DIRECTORY) if (node := Node.parse(entry))]


async def held() -> int:
    return sum(Tree(await nodes()).sizes().values())


async def check() -> None:
    """What is true of a tree at any time: names say what is in files, and every node has a parent."""
    await asyncio.sleep(0)  # nodes are closed when somebody finds the time
    tree = Tree(await nodes())
    assert len({node.first for node in tree.nodes}) == len(tree.nodes)
    ends = {node.last for node in tree.nodes}
    roots = {node.parent for node in tree.nodes if node.start == 0}
    for node in tree.nodes:
        assert node.parent in (ends if node.start else roots)
        assert node.start % CHUNK == 0
        assert (await kv.stat(node.path)).n_tokens == node.n_tokens >= node.start + CHUNK
        assert (await kv.stat(node.path)).n_open == 0


# --- hits -------------------------------------------------------------------------------------------------------


async def test_kv_of_another_context_is_not_kept() -> None:
    """Files that were joined have the tokens and positions of a prompt, but not what computing it gives."""
    async with FakeKernel():
        cache = PrefixCache()
        async with await kv.create() as a, await kv.create() as b:
            await a.append(A)
            await b.append(B)
            async with await kv.merge(a, b) as both:
                assert await both.positions() == list(range(len(A + B)))
                await cache.store(both)
        assert await found(cache, [*A, *B]) == 0


async def test_what_was_stored_is_found_to_the_token() -> None:
    async with FakeKernel():
        cache = PrefixCache()
        assert await found(cache, A) == 0
        await keep(cache, A + B)
        assert await found(cache, A + B + C) == 80
        assert await found(cache, A + C) == 40
        assert await found(cache, (A + B)[:57]) == 56, "something is left to compute"
        assert await found(cache, A[:CHUNK]) == CHUNK - 1
        assert await found(cache, B) == 0
        await check()


async def test_a_hit_computes_nothing_and_is_the_callers_own() -> None:
    async with FakeKernel() as kernel:
        cache = PrefixCache()
        await keep(cache, A)
        n_calls = len(kernel.calls)
        file, n = await cache.open(A + B)
        assert not any(isinstance(call, calls.Pred) for call in kernel.calls[n_calls:])
        await file.append(B)
        assert await found(cache, A + B) == n == 40


async def test_a_chat_that_goes_on_replaces_what_it_was() -> None:
    async with FakeKernel():
        cache = PrefixCache()
        for n_turns in range(1, 5):
            await keep(cache, (A + B) * n_turns)
            assert [node.n_tokens for node in await nodes()] == [80 * n_turns]
        await keep(cache, (A + B) * 4 + [9])
        assert [node.n_tokens for node in await nodes()] == [321], "be it by one token"


async def test_what_two_have_in_common_is_held_once() -> None:
    async with FakeKernel():
        cache = PrefixCache()
        await keep(cache, A + B)
        await keep(cache, A + C)
        sizes = sorted(node.n_tokens for node in await nodes())
        assert sizes == [40, 80, 80]
        assert await held() == 40 + (80 - 32) * 2, "branches begin at whole chunks"
        await keep(cache, A + B + C)
        await keep(cache, A)
        assert sorted(node.n_tokens for node in await nodes()) == [40, 80, 120]
        await check()


async def test_less_than_a_chunk_is_no_entry() -> None:
    async with FakeKernel():
        cache = PrefixCache()
        await keep(cache, [1] * (CHUNK - 1))
        await keep(cache, A)
        await keep(cache, [*A[:-1], 7])
        assert [node.n_tokens for node in await nodes()] == [40]
        assert await found(cache, [*A[:-1], 7, 7]) == 39


prompts = st.lists(st.sampled_from([A[:CHUNK], B[:CHUNK], A[:5], B[:21], C[:1]]), min_size=1, max_size=6).map(
    lambda parts: [token for part in parts for token in part]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(prompts, max_size=12), st.lists(prompts, min_size=1, max_size=4))
def test_nothing_in_common_is_missed_by_more_than_a_chunk(stored: list[list[int]], asked: list[list[int]]) -> None:
    async def go() -> None:
        async with FakeKernel():
            cache = PrefixCache()
            for tokens in stored:
                await keep(cache, tokens)
            for prompt in asked:
                best = max((n_common(tokens, prompt[:-1]) for tokens in stored), default=0)
                assert best - CHUNK < await found(cache, prompt) <= best
            if stored and max(map(len, stored)) >= CHUNK:
                await check()

    asyncio.run(go())


# --- room -------------------------------------------------------------------------------------------------------


async def test_the_least_recently_used_goes_first() -> None:
    async with FakeKernel():
        cache = PrefixCache(n_tokens_max=120)
        for tokens in (A, B, C):
            await keep(cache, tokens)
            await process.sleep(1)
        assert await found(cache, [*A, 0]) == 40
        await process.sleep(1)
        await keep(cache, [4] * 40)
        assert [await found(cache, [*tokens, 0]) for tokens in (A, B, C)] == [40, 0, 0], "a tenth goes beyond need"
        assert await held() <= 120


async def test_a_policy_is_a_function() -> None:
    def shortest(entry: Entry) -> float:
        return -entry.n_tokens

    async with FakeKernel():
        cache = PrefixCache(n_tokens_max=138, policy=shortest)
        for tokens in (A, B[:20], C):
            await keep(cache, tokens)
        await keep(cache, [4] * 40)
        assert [await found(cache, [*tokens, 0]) for tokens in (A, B[:20], C)] == [40, 0, 40]


async def test_what_saves_more_stays_longer() -> None:
    assert least_saving(Entry(100, 100, 9, 10.0)) < least_saving(Entry(100, 100, 1, 10.0))
    assert least_saving(Entry(100, 100, 1, 10.0)) < least_saving(Entry(100, 100, 1, 20.0))


async def test_stems_outlive_their_leaves() -> None:
    async with FakeKernel():
        cache = PrefixCache(n_tokens_max=200)
        for i in range(20):
            await keep(cache, A + [10 + i] * 40)
            await process.sleep(1)
            assert await held() <= 200
            await check()
        assert await found(cache, [*A, 0]) == 40


async def test_what_never_fits_is_not_stored() -> None:
    async with FakeKernel():
        cache = PrefixCache(n_tokens_max=40)
        await keep(cache, A)
        await keep(cache, B + C)
        assert [node.n_tokens for node in await nodes()] == [40]
        await keep(PrefixCache(n_tokens_max=0), B)
        assert len(await nodes()) == 1


async def test_there_are_never_more_nodes_than_one_can_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "N_NODES_MAX", 20)
    async with FakeKernel():
        cache = PrefixCache(n_tokens_max=100_000)
        for i in range(60):
            await keep(cache, [i] * 40)
            await keep(cache, [i] * 20 + [100] * 20)
            assert len(await nodes()) <= 20
            await process.sleep(1)
        assert await found(cache, [59] * 41) == 40
        await check()


def test_the_environment_says_how_many_tokens_or_why_not() -> None:
    assert (limit_of(""), limit_of("0"), limit_of("5000")) == (None, 0, 5000)
    for said in ("many", "-5", "1e3", "5.0", "²"):
        with pytest.raises(ValueError, match=f"expected a number of tokens .*{said}"):
            limit_of(said)


# --- company ----------------------------------------------------------------------------------------------------


async def test_salts_keep_apart() -> None:
    async with FakeKernel():
        ann, bob = PrefixCache(salt="ann"), PrefixCache(salt="bob")
        await keep(ann, A)
        assert await found(bob, A + B) == 0
        await keep(bob, A)
        assert await found(ann, A + B) == await found(bob, A + B) == 40
        assert len({node.first for node in await nodes()}) == 2


@pytest.mark.parametrize("truth", [B, A[:20], A[:16], A + B, []])
async def test_a_name_that_lies_is_believed_by_nobody(truth: list[int]) -> None:
    """And does so until somebody comes with the truth."""
    async with FakeKernel():
        cache = PrefixCache()
        await keep(cache, A)
        (node,) = await nodes()
        await kv.unlink(node.path)
        async with await kv.create(node.path) as file:
            await file.append(truth)
        assert await found(cache, A + C) == n_common(truth, A)
        await keep(cache, A + C)
        assert await found(cache, A + C + B) == 80
        assert len(await nodes()) == 1
        await check()


@pytest.mark.parametrize("errno", [Errno.EIO, Errno.EACCES])
async def test_what_nobody_can_read_is_replaced(errno: Errno) -> None:
    async with FakeKernel() as kernel:
        cache = PrefixCache()
        await keep(cache, A + B)
        await keep(cache, A + C)
        kernel.fail("open", errno)
        assert await found(cache, [*A, *B, 0]) == 40, "what is above it can be read"
        kernel.fail("open", errno)
        await keep(cache, A + B)
        assert not kernel.faults
        assert await found(cache, [*A, *B, 0]) == 80
        await check()


KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    "name",
    [
        *("x", "----", "a-b-c-0-40", f"{KEY}-{KEY}-{KEY}-0-٣", f"{KEY}-{KEY}-{KEY}-00-40", f"{KEY}-{KEY}-{KEY}-0-40-1"),
        *(f"{KEY}-{KEY}-{KEY}-0-{9 * 10**100}", f"{KEY}-{KEY}-{KEY}-0-999999999", f"{KEY}-{KEY}-{KEY}-500-10"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "directory", "full directory"])
async def test_a_name_that_somebody_made_up_costs_nothing_for_long(name: str, kind: str) -> None:
    async with FakeKernel():
        cache = PrefixCache(n_tokens_max=300, policy=lambda entry: entry.idle_s / entry.n_tokens**2)
        await keep(cache, C)
        if kind == "file":
            await (await kv.create(f"{DIRECTORY}/{name}")).close()
        else:
            await kv.mkdir(f"{DIRECTORY}/{name}")
            if kind == "full directory":
                await kv.mkdir(f"{DIRECTORY}/{name}/below")
        for tokens in (A, B) * 3:
            await keep(cache, tokens)
        assert [await found(cache, [*tokens, 0]) for tokens in (A, B)] == [40, 40]


async def test_one_that_cannot_go_keeps_none_of_the_others() -> None:
    async with FakeKernel() as kernel:
        cache = PrefixCache(n_tokens_max=100)
        await keep(cache, A)
        await keep(cache, B)
        kernel.fail("unlink", Errno.EACCES)
        await keep(cache, C)
        assert not kernel.faults
        assert await found(cache, [*C, 0]) == 40
        await keep(cache, [4] * 40)
        assert await held() <= 100, "it goes the next time"


async def test_others_may_remove_what_they_like() -> None:
    async with FakeKernel():
        cache = PrefixCache()
        await keep(cache, A + B)
        await keep(cache, A + C)
        (stem,) = (node for node in await nodes() if node.n_tokens == 40)
        await kv.unlink(stem.path)
        await (await kv.create(f"{DIRECTORY}/a note")).close()
        assert await found(cache, A + B + C) == 80
        assert await held() == 160, "each holds all of its tokens now"


async def test_many_at_once_agree() -> None:
    async with FakeKernel() as kernel:
        cache = PrefixCache()

        async def request(i: int) -> None:
            prompt = A + [10 + i % 4] * 40
            file, n = await cache.open(prompt)
            await file.append(prompt[n:])
            await cache.store(file)
            await file.close()

        await asyncio.gather(*(request(i) for i in range(32)))
        assert [await found(cache, A + [10 + i] * 40 + B) for i in range(4)] == [80] * 4
        assert not kernel.faults
        await check()


@pytest.mark.parametrize("name", ["readdir", "open", "fork", "truncate", "tokens", "model_info"])
@pytest.mark.parametrize("errno", [Errno.EDQUOT, Errno.ENOENT, Errno.EIO, Errno.ENODEV])
async def test_an_error_is_a_miss(name: str, errno: Errno) -> None:
    async with FakeKernel() as kernel:
        cache = PrefixCache()
        await keep(cache, A)
        kernel.fail(name, errno)
        assert await found(cache, A + B) in (0, 40)
        assert not kernel.faults


@pytest.mark.parametrize("name", ["readdir", "open", "fork", "truncate", "rename", "mkdir", "df", "quota", "positions"])
@pytest.mark.parametrize("n_before", range(3))
async def test_what_an_error_has_interrupted_is_done_the_next_time(name: str, n_before: int) -> None:
    async with FakeKernel() as kernel:
        cache = PrefixCache()
        for tokens in (A + B, A + B + A)[:n_before]:
            await keep(cache, tokens)
        kernel.fail(name, Errno.EDQUOT)
        await keep(cache, A + C)
        kernel.faults.clear()
        await keep(cache, A + C)
        assert await found(cache, A + C + B) == 80
        assert await found(cache, A + B + C) == (80 if n_before else 40)
        await check()


@pytest.mark.parametrize("name", ["stat", "now"])
async def test_what_could_not_be_let_go_goes_the_next_time(name: str) -> None:
    async with FakeKernel() as kernel:
        cache = PrefixCache(n_tokens_max=100)
        await keep(cache, A + B)
        kernel.fail(name, Errno.EIO)
        await keep(cache, A + C)
        assert not kernel.faults
        await keep(cache, A + C)
        assert await held() <= 100
        assert await found(cache, A + C + B) == 80


async def test_what_no_prompt_would_compute_is_not_kept() -> None:
    async with FakeKernel():
        async with await kv.create() as file:
            await file.pred(A, positions=range(5, 45))
            await PrefixCache().store(file)
        assert await found(PrefixCache(), A + B) == 0


# --- the tool ---------------------------------------------------------------------------------------------------


async def test_it_can_be_looked_at_and_cleared() -> None:
    async with FakeKernel():
        assert await prefix_cache.main() == {"nodes": 0, "tokens": 0, "cleared": False}
        await keep(PrefixCache(), A)
        assert await prefix_cache.main(clear=True) == {"nodes": 1, "tokens": 40, "cleared": True}
        assert (await prefix_cache.main())["nodes"] == 0
        with pytest.raises(SystemExit, match="no file '/nowhere'"):
            await prefix_cache.main("/nowhere", clear=True)
