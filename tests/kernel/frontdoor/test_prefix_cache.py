"""The prefix cache behind the port, on null workers that check every row they compute: counts, pages, tenants."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from kernel.config import UserQuota
from kernel.core import Kernel
from kernel.frontdoor.public import public_app
from kernel.loader import load_installed
from kvfs.access import OPERATOR, OPERATOR_NAME
from sdk import FileNotFound
from tests.kernel.frontdoor.conftest import in_memory

HOUSE = Path(__file__).resolve().parents[3]
LONG = "The quick brown fox jumps over the lazy dog. " * 3
ASKED = {"prompt": LONG, "max_tokens": 12, "temperature": 1.0, "seed": 4, "ignore_eos": True}


async def complete(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/completions", json=ASKED | fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def n_cached(body: dict[str, Any]) -> int:
    found: int = body["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


async def test_each_turn_computes_what_is_new(public: httpx.AsyncClient, kernel: Kernel) -> None:
    messages, before = [{"role": "system", "content": "Be brief."}], 0
    for turn in range(4):
        messages.append({"role": "user", "content": f"Question number {turn}?"})
        request = {"messages": messages, "max_tokens": 20, "temperature": 0, "ignore_eos": True}
        began = kernel.counters.n_prompt_tokens
        body = (await public.post("/v1/chat/completions", json=request)).json()
        assert kernel.counters.n_prompt_tokens - began == body["usage"]["prompt_tokens"] - n_cached(body)
        assert n_cached(body) >= before
        assert (n_cached(body) > 0) == (turn > 0)
        before = body["usage"]["prompt_tokens"]
        messages.append({"role": "assistant", "content": body["choices"][0]["message"]["content"]})


async def test_a_hit_says_what_a_miss_says(public: httpx.AsyncClient) -> None:
    miss = await complete(public, n=2, logprobs=1)
    hit = await complete(public, n=2, logprobs=1)
    assert (n_cached(miss), n_cached(hit)) == (0, hit["usage"]["prompt_tokens"] - 1)
    assert hit["choices"] == miss["choices"]


async def test_few_pages_are_enough(make_house: Any) -> None:
    """Prompts that together want ten times the pages: each is answered as if it were alone."""
    async with make_house(n_pages=40) as house, in_memory(public_app(house.kernel)) as client:
        prompts = [f"{i} {LONG}" for i in range(12)]
        alone = [await complete(client, prompt=prompt, cache_prompt=False) for prompt in prompts]
        for round_ in range(2):
            kept = [await complete(client, prompt=prompt) for prompt in prompts]
            assert [body["choices"] for body in kept] == [body["choices"] for body in alone], round_
        together = await asyncio.gather(*(complete(client, prompt=prompt) for prompt in prompts))
        assert [body["choices"] for body in together] == [body["choices"] for body in alone]


@pytest.mark.parametrize("mode", ["auto", "swap", "recompute"])
async def test_what_was_dropped_is_not_said_to_be_cached(make_house: Any, mode: str) -> None:
    """Tokens whose KV was gone are computed again, and the usage counts them so."""
    async with make_house(n_pages=24, n_host_pages=48, preemption_mode=mode) as house:
        async with in_memory(public_app(house.kernel)) as client:
            for round_ in range(2):
                for i in range(6):
                    counters = house.kernel.counters
                    began = counters.n_prompt_tokens + counters.n_recomputed_tokens
                    body = await complete(client, prompt=f"{i} {LONG}")
                    computed = counters.n_prompt_tokens + counters.n_recomputed_tokens - began
                    assert n_cached(body) == body["usage"]["prompt_tokens"] - computed, (round_, i)


async def test_a_quota_is_for_the_user_too(make_house: Any) -> None:
    """The cache takes half of it, whatever it could share: requests never fail for what it holds."""
    quota = {"http": UserQuota(pages=60, files=20)}
    async with make_house(quota=quota) as house, in_memory(public_app(house.kernel)) as client:
        for i in range(20):
            body = await complete(client, prompt=f"{i % 7} {LONG}", n=1 + i % 2)
            assert len(body["choices"]) == 1 + i % 2
        assert n_cached(await complete(client, prompt=f"5 {LONG}")) > 0
        assert 0 < house.kernel.fs.quota("http", house.kernel.now()).n_pages <= 30


async def test_the_same_and_others_at_once(public: httpx.AsyncClient) -> None:
    prompts = [LONG + ending for ending in ("One", "Two", "Three " * 9)]
    alone = [await complete(public, prompt=prompt, cache_prompt=False) for prompt in prompts]
    bodies = await asyncio.gather(*(complete(public, prompt=prompts[i % 3], n=1 + i % 2) for i in range(24)))
    for i, body in enumerate(bodies):
        assert body["choices"][0] == alone[i % 3]["choices"][0]
    assert n_cached(await complete(public, prompt=LONG)) > 0


async def test_those_who_begin_together_compute_it_once(public: httpx.AsyncClient, kernel: Kernel) -> None:
    """Agents with one long system prompt, on a kernel that has never seen it."""
    chats = [
        [{"role": "system", "content": LONG * 4}, {"role": "user", "content": f"You are agent {i}."}] for i in range(8)
    ]
    asked = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
    began = kernel.counters.n_prompt_tokens
    responses = await asyncio.gather(
        *(public.post("/v1/chat/completions", json=asked | {"messages": chat, "stream": False}) for chat in chats)
    )
    bodies = [response.json() for response in responses]
    computed = kernel.counters.n_prompt_tokens - began
    assert computed == sum(body["usage"]["prompt_tokens"] - n_cached(body) for body in bodies)
    assert computed < len(LONG * 4) + len(chats) * 60
    assert sum(n_cached(body) == 0 for body in bodies) == 1


async def test_when_the_one_who_computes_it_leaves_another_does(remote: httpx.AsyncClient, kernel: Kernel) -> None:
    prompt = LONG * 4
    alone = await complete(remote, prompt=prompt, cache_prompt=False)
    asked = [asyncio.create_task(remote.post("/v1/completions", json=ASKED | {"prompt": prompt})) for _ in range(6)]
    async with asyncio.timeout(30):
        while not (signs := [p for p, _ in kernel.fs.names.walk(kernel.fs.names.root) if "/growing/" in p]):  # noqa: ASYNC110
            await asyncio.sleep(0)
    kernel.kill(min(kernel.processes), "its client left")
    answers = [response.json() for response in await asyncio.gather(*asked)]
    bodies = [answer for answer in answers if "choices" in answer]
    assert len(bodies) == len(asked) - 1
    assert all(body["choices"] == alone["choices"] for body in bodies)
    assert sum(n_cached(body) > 0 for body in bodies) == len(bodies) - 1
    with pytest.raises(FileNotFound):
        kernel.fs.stat(signs[0], who=OPERATOR, now=kernel.now())


async def test_readers_who_leave(remote: httpx.AsyncClient, kernel: Kernel) -> None:
    for prompt in (LONG, LONG * 3):
        async with remote.stream("POST", "/v1/completions", json=ASKED | {"prompt": prompt, "stream": True}) as r:
            await anext(r.aiter_lines())
    while kernel.processes:  # noqa: ASYNC110
        await asyncio.sleep(0)
    alone = await complete(remote, prompt=LONG * 3, cache_prompt=False)
    assert (await complete(remote, prompt=LONG * 3))["choices"] == alone["choices"]


async def test_tenants_do_not_meet(public: httpx.AsyncClient) -> None:
    await complete(public, user="ann")
    assert n_cached(await complete(public, user="bob")) == 0
    assert n_cached(await complete(public)) == 0
    assert n_cached(await complete(public, user="ann")) > 0


async def test_tenants_do_not_push_each_other_out(public: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("programs.prefix_cache.N_TOKENS_MAX", 400)
    await complete(public, user="ann")
    for i in range(12):
        await complete(public, user="bob", prompt=f"{i} {LONG}")
    assert n_cached(await complete(public, user="ann")) > 0
    assert n_cached(await complete(public, user="bob", prompt=f"0 {LONG}")) == 0


async def test_the_policy_of_the_docs_works_as_it_is_written(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("programs.prefix_cache.N_TOKENS_MAX", 400)
    blocks = re.findall(r"```python\n(.*?)```", (HOUSE / "docs" / "prefix-cache.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "async def main" in block)
    program = house.program(example).path
    async with in_memory(public_app(house.kernel, chat_completions=str(program))) as client:
        for i in range(6):
            request = {"messages": [{"role": "user", "content": f"{i} {LONG}"}], "max_tokens": 4}
            body = (await client.post("/v1/chat/completions", json=request)).json()
            assert n_cached(body) == 0, body


async def test_the_operator_sees_and_clears_it(public: httpx.AsyncClient, house: Any) -> None:
    await complete(public)
    args = {"directory": "/tenants/http/home/http/.cache/prefix", "clear": True}
    process = house.kernel.spawn(load_installed("prefix_cache"), args, owner=OPERATOR_NAME, client=None)
    status = await process.wait_exit()
    assert msgspec.json.decode(status.result)["nodes"] == 1, status
    assert n_cached(await complete(public)) == 0
