"""The prefix cache behind the two OpenAI-compatible programs, over the fake kernel: who computes what, and says so."""

import asyncio
from typing import Any

import pytest

from programs import _openai, chat_completions, completions
from programs.prefix_cache import DIRECTORY, Entry
from sdk import Errno, kv, rusage
from sdk.abi import calls
from sdk.testing import FakeKernel

PROMPT = "The quick brown fox jumps over the lazy dog. "
ASKED = {"model": "m", "prompt": PROMPT, "max_tokens": 8, "temperature": 1, "seed": 3, "ignore_eos": True}
CHAT = {"model": "m", "max_tokens": 8, "temperature": 1, "seed": 3, "ignore_eos": True}


async def complete(**request: Any) -> dict[str, Any]:
    answer = await completions.main(ASKED | request)
    assert answer is not None
    return answer


async def n_computed() -> int:
    """Tokens of prompts that were computed so far."""
    return (await rusage()).n_prompt_tokens


def n_cached(answer: dict[str, Any]) -> int:
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def text(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


# --- turns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_each_turn_of_a_chat_computes_what_is_new(stream: bool) -> None:
    """The usage says so, and the kernel's own count agrees."""
    messages: list[dict[str, str]] = []
    async with FakeKernel(max_model_len=4096) as kernel:
        before = 0
        for turn in range(5):
            messages.append({"role": "user", "content": f"Question number {turn}?"})
            began = await n_computed()
            request = CHAT | {"messages": messages, "stream": stream, "stream_options": {"include_usage": True}}
            answer = await chat_completions.main(request)
            if stream:
                parts = [event.data for event in kernel.events]
                kernel.events.clear()
                content = "".join(p["choices"][0]["delta"]["content"] for p in parts if p["choices"])
                answer = parts[-1]
            else:
                content = answer["choices"][0]["message"]["content"]
            assert n_cached(answer) == before
            assert await n_computed() - began == answer["usage"]["prompt_tokens"] - before
            before = answer["usage"]["total_tokens"]
            messages.append({"role": "assistant", "content": content})
        assert len(await kv.readdir(DIRECTORY)) == 1


async def test_the_text_is_the_same_hit_or_miss() -> None:
    requests: list[dict[str, Any]] = [
        {},
        {"n": 3},
        {"prompt": PROMPT + "And then"},
        {"prompt": [PROMPT, PROMPT + "And then"], "n": 2},
        {"stop": ["e", "a"]},
        {"logprobs": 2},
        {"echo": True},
        {"echo": True, "logprobs": 1},
        {"echo": True, "max_tokens": 0},
        {"temperature": 0},
    ]
    alone = []
    for request in requests:
        async with FakeKernel():
            alone.append(await complete(**request))
    async with FakeKernel():
        together = [await complete(**request) for request in requests * 2]
    assert [a["choices"] for a in together] == [a["choices"] for a in alone] * 2
    assert all(n_cached(a) > 0 for a, r in zip(together[1:], requests[1:], strict=False) if not r.get("logprobs"))


async def test_choices_are_all_kept() -> None:
    async with FakeKernel():
        answer = await complete(n=3)
        for choice in text(answer):
            longer = await complete(prompt=PROMPT + choice + "!" * 20)
            assert n_cached(longer) == len(PROMPT + choice)


async def test_what_a_stop_cut_off_is_not_kept() -> None:
    async with FakeKernel():
        whole = text(await complete())[0]
        await complete(stop=[whole[5]], cache_salt="x", prompt=PROMPT)
        at = whole.index(whole[5])
        longer = await complete(prompt=PROMPT + whole[:at] + "#" * 20, cache_salt="x")
        assert n_cached(longer) == len(PROMPT) + at


# --- fields -----------------------------------------------------------------------------------------------------


async def test_salts_keep_apart() -> None:
    async with FakeKernel():
        await complete(cache_salt="ann")
        assert n_cached(await complete(cache_salt="bob")) == 0
        assert n_cached(await complete()) == 0
        assert n_cached(await complete(cache_salt="ann")) == len(PROMPT) - 1


async def test_it_can_be_turned_off() -> None:
    async with FakeKernel():
        await complete(cache_prompt=False)
        with pytest.raises(Exception, match="ENOENT"):
            await kv.readdir(DIRECTORY)
        await complete(skip_reading_prefix_cache=True)
        assert n_cached(await complete(skip_reading_prefix_cache=True)) == 0
        assert n_cached(await complete(cache_prompt=False)) == 0
        assert n_cached(await complete()) == len(PROMPT) - 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cache_salt", 3),
        ("cache_salt", ""),
        ("cache_salt", ["a"]),
        ("cache_prompt", "no"),
        ("skip_reading_prefix_cache", 1),
    ],
)
async def test_wrong_fields_are_refused_by_name(field: str, value: Any) -> None:
    async with FakeKernel():
        answer = await complete(**{field: value})
    assert (answer["status"], answer["error"]["param"]) == (400, field)


async def test_another_policy() -> None:
    """What goes first is a function's to say, that a program of one's own hands on."""
    asked: list[Entry] = []

    def curious(entry: Entry) -> float:
        asked.append(entry)
        return entry.idle_s

    async with FakeKernel(max_model_len=4096) as kernel:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("programs.prefix_cache.N_TOKENS_MAX", 100)
            for i in range(3):
                await completions.answer(ASKED | {"prompt": f"{i} {PROMPT}"}, curious)
                messages = [{"role": "user", "content": f"{i} {PROMPT}"}]
                await chat_completions.answer(CHAT | {"messages": messages}, curious)
    assert asked
    assert kernel.events == []


# --- company ----------------------------------------------------------------------------------------------------


async def test_a_long_prompt_is_there_before_its_answer() -> None:
    """Those who come while the answer is being made need not compute it as well."""
    long = PROMPT * 6
    assert len(long) >= _openai.N_EARLY
    async with FakeKernel(max_model_len=4096) as kernel:
        first = asyncio.create_task(complete(prompt=long))
        while not any(isinstance(call, calls.Generate) for call in kernel.calls):  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert n_cached(await complete(prompt=long)) == len(long) - 1
        assert n_cached(await first) == 0


async def test_a_reader_who_leaves_spoils_nothing() -> None:
    async with FakeKernel(max_model_len=4096) as kernel:
        for prompt in (PROMPT, PROMPT * 6):
            kernel.events.clear()
            reader = asyncio.create_task(completions.main(ASKED | {"prompt": prompt, "stream": True}))
            while len(kernel.events) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
        answer = await complete(prompt=PROMPT * 6)
        assert n_cached(answer) == len(PROMPT * 6) - 1, "what was computed early is there"
    async with FakeKernel(max_model_len=4096):
        assert (await complete(prompt=PROMPT * 6))["choices"] == answer["choices"]


async def test_the_same_at_once() -> None:
    async with FakeKernel():
        alone = await complete()
        answers = await asyncio.gather(*(complete(cache_salt="other") for _ in range(8)))
        assert all(a["choices"] == alone["choices"] for a in answers)
        assert n_cached(await complete(cache_salt="other")) == len(PROMPT) - 1


@pytest.mark.parametrize("name", ["readdir", "open", "fork", "tokens", "mkdir", "truncate", "rename", "unlink"])
async def test_an_error_of_the_cache_is_none_of_the_requests(name: str) -> None:
    async with FakeKernel():
        alone = await complete()
    async with FakeKernel() as kernel:
        await complete(prompt=PROMPT + "Then")
        kernel.fail(name, Errno.EDQUOT)
        assert (await complete())["choices"] == alone["choices"]
