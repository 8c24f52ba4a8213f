"""`/v1/chat/completions` as a program, over the fake kernel."""

from typing import Any

import pytest

from programs.chat_completions import main
from sdk.abi import calls
from sdk.abi.errors import Errno
from sdk.testing import FakeKernel

USER = [{"role": "user", "content": "Hello"}]
GREEDY = {"model": "m", "messages": USER, "max_tokens": 6, "temperature": 0, "ignore_eos": True}


async def chat(**request: Any) -> dict[str, Any]:
    async with FakeKernel() as kernel:
        answer = await main(GREEDY | request)
    assert answer is not None
    answer["calls"] = kernel.calls
    return answer


async def chunks(**request: Any) -> list[dict[str, Any]]:
    async with FakeKernel() as kernel:
        assert await main(GREEDY | request | {"stream": True}) is None
    return [event.data for event in kernel.events]


def generated(answer: dict[str, Any]) -> calls.Generate:
    """The one call that made an answer."""
    (call,) = [call for call in answer["calls"] if isinstance(call, calls.Generate)]
    return call


def joined(parts: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(c["delta"].get("content", "") for part in parts for c in part["choices"] if c["index"] == index)


# --- answers ----------------------------------------------------------------------------------------------------


async def test_the_response_is_openais() -> None:
    answer = await chat()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": choice["message"]["content"]}
    assert len(choice["message"]["content"]) == 6
    assert choice["finish_reason"] == "length"
    n_prompt = len(generated(answer).prompt)
    assert answer["usage"] == {
        "prompt_tokens": n_prompt,
        "completion_tokens": 6,
        "total_tokens": n_prompt + 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_the_model_reads_what_its_template_says() -> None:
    prompt = generated(await chat(messages=[{"role": "system", "content": "Be kind."}, *USER])).prompt
    async with FakeKernel():
        from sdk import model

        assert prompt == await model.chat_tokens([("system", "Be kind."), ("user", "Hello")])


async def test_the_model_ends_its_turn() -> None:
    async with FakeKernel(replies=["Hi!"]):
        answer = await main({"model": "m", "messages": USER})
    assert answer is not None
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == ("Hi!", "stop", None)
    assert answer["usage"]["completion_tokens"] == 4  # with the token that ended it


async def test_an_answer_may_be_as_long_as_the_context() -> None:
    assert generated(await chat(max_tokens=None, ignore_eos=False)).decoding.max_tokens is None
    assert generated(await chat(max_tokens=9, max_completion_tokens=3)).decoding.max_tokens == 3


async def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    in_parts = await chat(messages=[{"role": "user", "content": parts}])
    assert generated(in_parts).prompt == generated(await chat()).prompt


async def test_streaming_says_the_same() -> None:
    whole, parts = await chat(), await chunks()
    assert joined(parts) == whole["choices"][0]["message"]["content"]
    assert [part["choices"][0]["delta"].get("role") for part in parts] == ["assistant"] + [None] * (len(parts) - 1)
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["length"]
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}


async def test_streamed_choices_and_their_usage() -> None:
    request = {"n": 3, "temperature": 1, "seed": 5}
    *parts, last = await chunks(**request, stream_options={"include_usage": True})
    whole = await chat(**request)
    assert [joined(parts, i) for i in range(3)] == [c["message"]["content"] for c in whole["choices"]]
    assert last["usage"] == whole["usage"]
    firsts = [p["choices"][0] for p in parts if "role" in p["choices"][0]["delta"]]
    assert sorted(choice["index"] for choice in firsts) == [0, 1, 2]


async def test_logprobs_are_a_list_of_tokens() -> None:
    (choice,) = (await chat(logprobs=True, top_logprobs=2))["choices"]
    found = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in found) == choice["message"]["content"]
    for entry in found:
        assert entry["bytes"] == list(entry["token"].encode())
        assert [set(best) for best in entry["top_logprobs"]] == [{"token", "logprob", "bytes"}] * 2
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]  # it was greedy
    parts = await chunks(logprobs=True, top_logprobs=2)
    assert [e for part in parts for e in part["choices"][0]["logprobs"]["content"]] == found
    assert (await chat(logprobs=False))["choices"][0]["logprobs"] is None
    assert (await chat(logprobs=True))["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_token_ids() -> None:
    answer = await chat(return_token_ids=True)
    assert answer["prompt_token_ids"] == generated(answer).prompt
    text = answer["choices"][0]["message"]["content"]
    assert bytes(answer["choices"][0]["token_ids"]).decode() == text
    first, *rest = await chunks(return_token_ids=True)
    assert first["prompt_token_ids"] == answer["prompt_token_ids"]
    assert not any("prompt_token_ids" in part for part in rest)


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message", "param"),
    [
        ({"messages": None}, "messages: it is required", "messages"),
        ({"messages": []}, "messages: expected array of length >= 1", "messages"),
        ({"messages": "Hello"}, "messages: expected array, got str", "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role: it is required", "messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: expected str | array", "messages"),
        (
            {"messages": [*USER, {"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[1]: this model reads text, not image_url",
            "messages",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "messages[0].tool_calls: tools are not supported here",
            "messages",
        ),
        ({"max_tokens": 0}, "max_tokens: expected int >= 1", "max_tokens"),
        ({"max_completion_tokens": "x"}, "max_completion_tokens: expected int, got str", "max_completion_tokens"),
        ({"tools": [{"type": "function"}]}, "tools are not supported here", "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format: only text is supported", "response_format"),
        ({"top_logprobs": 2}, "top_logprobs: expected logprobs to be true as well", "top_logprobs"),
        ({"logprobs": 2}, "logprobs: expected bool, got int", "logprobs"),
        ({"n": "x"}, "n: expected int, got str", "n"),
    ],
)
async def test_wrong_requests(request_: dict[str, Any], message: str, param: str) -> None:
    answer = await chat(**request_)
    assert answer["status"] == 400
    assert answer["error"]["message"].startswith(message)
    assert answer["error"]["param"] == param


async def test_tools_that_are_not_to_be_used_do_no_harm() -> None:
    assert "choices" in await chat(tools=[{"type": "function"}], tool_choice="none", response_format={"type": "text"})


async def test_a_chat_that_leaves_no_room() -> None:
    answer = await chat(messages=[{"role": "user", "content": "x" * 1024}])
    assert answer["error"]["code"] == "context_length_exceeded"
    assert answer["error"]["param"] == "messages"


async def test_a_model_without_a_template() -> None:
    async with FakeKernel() as kernel:
        kernel.fail("apply_chat_template", Errno.ENOSYS)
        answer = await main(GREEDY)
    assert answer is not None
    assert answer["status"] == 400
    assert answer["error"]["message"].endswith("or use /v1/completions")
