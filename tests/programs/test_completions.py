"""`/v1/completions` as a program, over the fake kernel."""

from typing import Any

import pytest

from programs.completions import main
from sdk.abi import calls
from sdk.testing import FakeKernel

USAGE = {"prompt_tokens": 4, "prompt_tokens_details": {"cached_tokens": 0}}
GREEDY = {"model": "m", "prompt": "Once", "max_tokens": 6, "temperature": 0, "ignore_eos": True}


async def complete(**request: Any) -> dict[str, Any]:
    async with FakeKernel():
        answer = await main(GREEDY | request)
    assert answer is not None
    return answer


async def chunks(**request: Any) -> list[dict[str, Any]]:
    """What is emitted when the same is streamed."""
    async with FakeKernel() as kernel:
        assert await main(GREEDY | request | {"stream": True}) is None
    assert all(event.stream is None for event in kernel.events)
    return [event.data for event in kernel.events]


async def why(**request: Any) -> tuple[str, str]:
    """Message and parameter of a refusal."""
    answer = await complete(**request)
    assert answer["status"] == 400
    assert answer["error"]["type"] == "invalid_request_error"
    return answer["error"]["message"], answer["error"]["param"]


def joined(parts: list[dict[str, Any]], index: int, field: str = "text") -> Any:
    """One field of a choice, put together from its chunks."""
    found = [c[field] for part in parts for c in part["choices"] if c["index"] == index]
    return "".join(found) if field == "text" else [x for part in found for x in part]


# --- answers ----------------------------------------------------------------------------------------------------


async def test_the_response_is_openais() -> None:
    answer = await complete()
    assert answer.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", "m")
    (choice,) = answer["choices"]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason", "stop_reason"}
    assert len(choice["text"]) == 6  # the toy's tokens are letters
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
    assert answer["usage"] == USAGE | {"completion_tokens": 6, "total_tokens": 10}


async def test_openais_defaults() -> None:
    async with FakeKernel() as kernel:
        answer = await main({"model": "m", "prompt": "Once", "ignore_eos": True})
    assert answer is not None
    assert answer["usage"]["completion_tokens"] == 16
    (call,) = [call for call in kernel.calls if isinstance(call, calls.Generate)]
    assert call.decoding.sampling.temperature == 1.0


async def test_every_option_reaches_the_kernel() -> None:
    sampling = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 3, "presence_penalty": 0.2,
        "frequency_penalty": 0.3, "repetition_penalty": 1.1, "logit_bias": {"65": -100},
    }  # fmt: skip
    other = {
        "max_tokens": 5, "stop": ["a", "b"], "stop_token_ids": [66], "include_stop_str_in_output": True,
        "ignore_eos": True, "min_tokens": 2, "logprobs": 3,
    }  # fmt: skip
    async with FakeKernel() as kernel:
        await main({"model": "m", "prompt": "x", "user": "somebody", "unknown": 1} | sampling | other)
    (call,) = [call for call in kernel.calls if isinstance(call, calls.Generate)]
    d = call.decoding
    assert {name: getattr(d.sampling, name) for name in sampling} == sampling | {"logit_bias": {65: -100.0}}
    assert (d.max_tokens, d.stop, d.stop_tokens, d.include_stop) == (5, ["a", "b"], [66], True)
    assert (d.ignore_eos, d.min_tokens, d.logprobs) == (True, 2, 3)


async def test_null_is_a_field_left_out() -> None:
    fields = [
        "temperature",
        "n",
        "stop",
        "logprobs",
        "seed",
        "logit_bias",
        "stream",
        "stream_options",
        "best_of",
        "echo",
    ]
    left_out = await complete(temperature=None)
    assert (await complete(**dict.fromkeys(fields)))["usage"] == left_out["usage"]


async def test_streaming_says_the_same() -> None:
    whole, parts = await complete(), await chunks()
    assert joined(parts, 0) == whole["choices"][0]["text"]
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["length"]
    assert all(part.keys() == {"id", "object", "created", "model", "choices"} for part in parts)
    assert len({part["id"] for part in parts}) == 1


async def test_usage_comes_last_when_it_is_asked_for() -> None:
    *parts, last = await chunks(stream_options={"include_usage": True}, n=2)
    assert all(part["usage"] is None for part in parts)
    assert last["choices"] == []
    assert last["usage"] == USAGE | {"completion_tokens": 12, "total_tokens": 16}


async def test_a_stop_ends_it_and_is_counted() -> None:
    text = (await complete())["choices"][0]["text"]
    answer = await complete(stop=text[3])
    (choice,) = answer["choices"]
    at = text.index(text[3])
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text[:at], "stop", text[3])
    assert answer["usage"]["completion_tokens"] == at + 1
    parts = await chunks(stop=[text[3]])
    assert joined(parts, 0) == text[:at]
    assert parts[-1]["choices"][0]["stop_reason"] == text[3]


# --- choices and prompts ----------------------------------------------------------------------------------------


async def test_choices_go_on_from_one_prompt_with_seeds_of_their_own() -> None:
    async with FakeKernel() as kernel:
        answer = await main(GREEDY | {"n": 3, "temperature": 1, "seed": 7})
    assert answer is not None
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(set(texts)) > 1
    computed = [call.tokens for call in kernel.calls if isinstance(call, calls.Pred)]
    assert computed == [list(b"Once")]
    alone = [await complete(temperature=1, seed=7 + i) for i in range(3)]
    assert texts == [answer["choices"][0]["text"] for answer in alone]


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63), 0])
async def test_seeds_wrap_at_their_end(seed: int) -> None:
    answer = await complete(n=2, seed=seed, temperature=1)
    assert len(answer["choices"]) == 2


@pytest.mark.parametrize("prompt", [["Once", "Twice"], [list(b"Once"), list(b"Twice")], ["Once", list(b"Twice")]])
async def test_several_prompts(prompt: Any) -> None:
    answer = await complete(prompt=prompt, n=2, seed=1, temperature=1)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 9
    for i, text in enumerate(["Once", "Twice"]):
        alone = await complete(prompt=text, n=2, seed=1, temperature=1)
        assert [c["text"] for c in alone["choices"]] == [c["text"] for c in answer["choices"][2 * i : 2 * i + 2]]


async def test_a_prompt_of_tokens() -> None:
    assert (await complete(prompt=list(b"Once")))["choices"] == (await complete())["choices"]


async def test_streamed_choices_come_side_by_side() -> None:
    parts = await chunks(n=2, temperature=1, seed=1)
    indices = [part["choices"][0]["index"] for part in parts]
    assert set(indices) == {0, 1}
    assert indices != sorted(indices)
    whole = await complete(n=2, temperature=1, seed=1)
    assert [joined(parts, i) for i in range(2)] == [choice["text"] for choice in whole["choices"]]


# --- extras -----------------------------------------------------------------------------------------------------


async def test_logprobs_are_four_lists() -> None:
    answer = await complete(logprobs=2)
    text, found = answer["choices"][0]["text"], answer["choices"][0]["logprobs"]
    assert found["tokens"] == list(text)
    assert found["text_offset"] == list(range(6))
    assert all(logprob <= 0 for logprob in found["token_logprobs"])
    for token, logprob, best in zip(text, found["token_logprobs"], found["top_logprobs"], strict=True):
        assert len(best) == 2
        assert best[token] == logprob == max(best.values())  # it was greedy
    parts = await chunks(logprobs=2)
    for field in found:
        assert [x for part in parts for x in part["choices"][0]["logprobs"][field]] == found[field]


async def test_no_alternatives_are_the_token_itself() -> None:
    found = (await complete(logprobs=0))["choices"][0]["logprobs"]
    assert [list(best) for best in found["top_logprobs"]] == [[token] for token in found["tokens"]]


async def test_echo_puts_the_prompt_first() -> None:
    plain = await complete()
    echoed = await complete(echo=True, n=2)
    assert [choice["text"] for choice in echoed["choices"]] == ["Once" + plain["choices"][0]["text"]] * 2
    assert (await complete(echo=True, prompt=list(b"Once")))["choices"][0]["text"] == echoed["choices"][0]["text"]
    parts = await chunks(echo=True, n=2)
    assert joined(parts, 1) == echoed["choices"][1]["text"]


async def test_echoed_logprobs_score_the_prompt() -> None:
    """What evaluation harnesses ask for: no new token, and the logprob of each given one."""
    answer = await complete(echo=True, logprobs=1, max_tokens=0)
    found = answer["choices"][0]["logprobs"]
    assert answer["choices"][0]["text"] == "Once"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0
    assert found["tokens"] == list("Once")
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    assert all(logprob < 0 for logprob in found["token_logprobs"][1:])
    longer = await complete(prompt="Onc", echo=True, logprobs=1, max_tokens=1)
    assert longer["choices"][0]["logprobs"]["token_logprobs"][:3] == found["token_logprobs"][:3]
    assert longer["choices"][0]["logprobs"]["text_offset"] == [0, 1, 2, 3]
    (part,) = await chunks(echo=True, logprobs=1, max_tokens=0)
    assert part["choices"] == answer["choices"]


async def test_token_ids() -> None:
    answer = await complete(return_token_ids=True)
    (choice,) = answer["choices"]
    assert choice["prompt_token_ids"] == list(b"Once")
    assert bytes(choice["token_ids"]).decode() == choice["text"]
    first, *rest = await chunks(return_token_ids=True)
    assert first["choices"][0]["prompt_token_ids"] == list(b"Once")
    assert all(part["choices"][0]["prompt_token_ids"] is None for part in rest)
    assert joined([first, *rest], 0, "token_ids") == choice["token_ids"]


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message", "param"),
    [
        ({"prompt": None}, "prompt: it is required", "prompt"),
        ({"prompt": []}, "prompt: expected a text, a list of tokens, or a list of either", "prompt"),
        ({"prompt": ["a", 3]}, "prompt: expected a text, a list of tokens, or a list of either", "prompt"),
        ({"prompt": ""}, "prompt: it is empty, and this model has no token that begins a text", "prompt"),
        ({"prompt": [[1], []]}, "prompt: it is empty, and this model has no token that begins a text", "prompt"),
        ({"prompt": {"a": 1}}, "prompt: expected str | array, got object", "prompt"),
        ({"prompt": [-1]}, "prompt[0]: expected int >= 0", "prompt"),
        ({"max_tokens": "3"}, "max_tokens: expected int, got str", "max_tokens"),
        ({"max_tokens": -1}, "max_tokens: expected int >= 0", "max_tokens"),
        ({"max_tokens": 0}, "max_tokens: expected at least 1, or 0 together with echo", "max_tokens"),
        ({"temperature": -1}, "temperature: expected float >= 0.0", "temperature"),
        ({"temperature": "hot"}, "temperature: expected float, got str", "temperature"),
        ({"top_p": 0}, "top_p: expected float > 0.0", "top_p"),
        ({"n": 0}, "n: expected int >= 1", "n"),
        ({"n": 129}, "n: expected int <= 128", "n"),
        ({"stop": [""]}, "stop[0]: expected str of length >= 1", "stop"),
        ({"stop": ["x"] * 17}, "stop: expected array of length <= 16", "stop"),
        ({"seed": 2**63}, "seed: expected int", "seed"),
        ({"logit_bias": {"x": 1}}, "logit_bias: expected int, got str", "logit_bias"),
        ({"logprobs": True}, "logprobs: expected int, got bool", "logprobs"),
        ({"stream_options": 1}, "stream_options: expected object, got int", "stream_options"),
        ({"best_of": 2}, "best_of is not supported", "best_of"),
        ({"suffix": "x"}, "suffix is not supported", "suffix"),
    ],
)
async def test_wrong_requests(request_: dict[str, Any], message: str, param: str) -> None:
    said, about = await why(**request_)
    assert said.startswith(message)
    assert about == param


async def test_a_prompt_that_leaves_no_room() -> None:
    assert (await complete(prompt=[1] * 1023))["usage"]["completion_tokens"] == 1
    answer = await complete(prompt=[1] * 1024)
    assert answer["error"]["code"] == "context_length_exceeded"
    assert answer["error"]["message"].startswith(
        "This model's maximum context length is 1024 tokens. However, your prompt has 1024 tokens"
    )
