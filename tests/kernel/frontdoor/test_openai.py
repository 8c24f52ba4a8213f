"""OpenAI's API over the null model, and what happens when programs or clients do not behave."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from kernel.frontdoor.public import public_app
from kernel.frontdoor.server import Server

PROMPT = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "ignore_eos": True, "seed": 1}


def events(text: str) -> list[Any]:
    """The JSON of server-sent events, which must end with [DONE]."""
    parts = text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def in_memory(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://kernel")


async def refused(client: httpx.AsyncClient, path: str, status: int, **request: Any) -> dict[str, Any]:
    """The error object of a request that is refused with that status."""
    response = await client.post(path, **request)
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert "\n" not in body["error"]["message"]
    return dict(body["error"])


# --- models -----------------------------------------------------------------------------------------------------


async def test_models(public, kernel) -> None:
    (card,) = (await public.get("/v1/models")).json()["data"]
    assert card["id"] == kernel.model_names[0] == "null"
    assert card["object"] == "model"
    assert card["max_model_len"] == 8192
    assert (await public.get("/v1/models/null")).json() == card
    missing = await public.get("/v1/models/org/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_without_a_worker_there_is_no_model(tmp_path: Path, empty_house) -> None:
    async with in_memory(public_app(empty_house.kernel)) as client:
        assert (await client.get("/v1/models")).json() == {"object": "list", "data": []}
        error = await refused(client, "/v1/completions", 503, json=PROMPT)
        assert error["type"] == "server_error"
        assert error["code"] == "ENODEV"
        assert "lip worker attach" in error["message"]


# --- completions ------------------------------------------------------------------------------------------------


async def test_a_completion(public, kernel) -> None:
    response = await public.post("/v1/completions", json=PROMPT)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["model"] == "null"
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "length"
    n_prompt = len(kernel.language.encode(PROMPT["prompt"]))
    assert body["usage"] == {
        "prompt_tokens": n_prompt,
        "completion_tokens": 8,
        "total_tokens": n_prompt + 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert not kernel.processes


async def test_streaming_says_the_same(public) -> None:
    whole = (await public.post("/v1/completions", json=PROMPT)).json()
    response = await public.post(
        "/v1/completions", json=PROMPT | {"stream": True, "stream_options": {"include_usage": True}}
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(response.text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert {chunk["id"] for chunk in chunks} == {last["id"]}
    assert last["choices"] == []
    n_known = whole["usage"]["prompt_tokens"] - 1
    assert last["usage"] == whole["usage"] | {"prompt_tokens_details": {"cached_tokens": n_known}}


async def test_a_chat(public) -> None:
    body = (await public.post("/v1/chat/completions", json=CHAT)).json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["role"] == "assistant"
    response = await public.post("/v1/chat/completions", json=CHAT | {"stream": True})
    chunks = events(response.text)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == body["choices"][0]["message"]["content"]


async def test_choices_share_the_prompt_and_have_their_own_seeds(public, kernel) -> None:
    request = PROMPT | {"temperature": 1.0, "seed": 5, "n": 4}
    before = kernel.counters.n_prompt_tokens
    body = (await public.post("/v1/completions", json=request)).json()
    assert kernel.counters.n_prompt_tokens - before == body["usage"]["prompt_tokens"]
    texts = [choice["text"] for choice in body["choices"]]
    assert len(set(texts)) > 1
    alone = [
        (await public.post("/v1/completions", json=request | {"n": 1, "seed": 5 + i})).json()["choices"][0]["text"]
        for i in range(4)
    ]
    assert texts == alone


async def test_streamed_choices_interleave(public) -> None:
    response = await public.post(
        "/v1/completions", json=PROMPT | {"n": 3, "stream": True, "temperature": 1, "max_tokens": 400}
    )
    indices = [chunk["choices"][0]["index"] for chunk in events(response.text)]
    assert set(indices) == {0, 1, 2}
    assert indices != sorted(indices)


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_requests_that_make_no_sense(public, path: str, stream: bool) -> None:
    good = PROMPT if path == "/v1/completions" else CHAT
    error = await refused(public, path, 400, json=good | {"max_tokens": "many", "stream": stream})
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "max_tokens"
    assert error["message"] == "max_tokens: expected int, got str"
    error = await refused(public, path, 404, json=good | {"model": "gpt-17", "stream": stream})
    assert error["code"] == "model_not_found"
    long = {"prompt": [5] * 8192, "messages": [{"role": "user", "content": "x" * 9000}], "stream": stream}
    error = await refused(public, path, 400, json=long)
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("This model's maximum context length is 8192 tokens. However, your prompt has")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
async def test_bodies_that_are_no_object(public, content: bytes) -> None:
    error = await refused(public, "/v1/completions", 400, content=content)
    assert error["message"].startswith("the request is no JSON object")


async def test_bodies_that_are_too_long(public, kernel) -> None:
    content = b"x" * (kernel.config.max_body_bytes + 1)

    async def in_parts():
        yield content

    for sent in (content, in_parts()):  # with and without a length announced
        error = await refused(public, "/v1/completions", 413, content=sent)
        assert error["code"] == "request_too_large"


async def test_the_models_errors_keep_their_meaning(public) -> None:
    error = await refused(public, "/v1/completions", 400, json=PROMPT | {"prompt": [999_999]})
    assert error["code"] == "EINVAL"
    assert "999999" in error["message"]


async def test_pages_that_run_out_are_a_503(small_house) -> None:
    async with in_memory(public_app(small_house.kernel)) as client:
        response = await client.post("/v1/completions", json=PROMPT | {"prompt": [5] * 1000})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "ENOSPC"
    assert response.headers["retry-after"] == "1"


# --- other programs ---------------------------------------------------------------------------------------------


async def with_program(house, source: str, **request: Any) -> httpx.Response:
    """The answer of a server whose completions are this program."""
    path = house.program(source).path
    async with in_memory(public_app(house.kernel, completions=str(path))) as client:
        return await client.post("/v1/completions", json=request)


async def test_completions_are_whatever_program_is_given(house) -> None:
    response = await with_program(house, "async def main(request): return {'you said': request}", prompt="hi")
    assert response.json() == {"you said": {"prompt": "hi", "model": "null"}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("1 / 0", 500, "program_failed"),
        ("raise SystemExit(3)", 500, "program_failed"),
        ("from sdk.abi.errors import *; raise NoSpace('full')", 503, "ENOSPC"),
        ("from sdk.abi.errors import *; raise DeviceLost('gone')", 503, "EIO"),
        ("from sdk.abi.errors import *; raise TooLong('long')", 400, "context_length_exceeded"),
        ("from sdk.abi.errors import *; raise FileNotFound('/x')", 500, "ENOENT"),
        ("from sdk import process; await process.spawn('nix')", 500, "ENOENT"),
        ("return {'error': {'message': 'no', 'type': 't', 'param': None, 'code': 'c'}, 'status': 418}", 418, "c"),
        ("return float('nan'), object()", 500, "program_failed"),
    ],
)
async def test_how_a_program_ends_decides_the_status(house, stream, body, status, code) -> None:
    source = "async def main(request):\n    " + body.replace("; ", "\n    ").replace("import *", "import NoSpace")
    source = source.replace("import NoSpace", "import DeviceLost, FileNotFound, NoSpace, TooLong")
    response = await with_program(house, source, stream=stream)
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code


@pytest.mark.parametrize(
    "returned", [3, None, [1], {"status": 418}, {"error": {}, "status": 99}, {"error": 1, "status": "x"}]
)
async def test_what_is_no_refusal_is_an_answer(house, returned) -> None:
    response = await with_program(house, f"async def main(request): return {returned}")
    assert (response.status_code, response.json()) == (200, returned)


async def test_an_error_in_the_middle_of_a_stream_is_an_event(house) -> None:
    source = "from sdk.channel import emit\nasync def main(request):\n    await emit({'x': 1})\n    1 / 0\n"
    response = await with_program(house, source, stream=True)
    assert response.status_code == 200
    first, last = events(response.text)
    assert first == {"x": 1}
    assert last["error"]["message"] == "ZeroDivisionError: division by zero"


async def test_a_stream_of_nothing_is_done(house) -> None:
    response = await with_program(house, "async def main(request): pass", stream=True)
    assert events(response.text) == []


async def test_arguments_that_do_not_fit_are_the_clients_mistake(house) -> None:
    source = "import msgspec\nclass R(msgspec.Struct):\n    n: int\nasync def main(request: R): return request.n\n"
    assert (await with_program(house, source, n=3)).json() == 3
    response = await with_program(house, source, n="3")
    assert response.status_code == 400
    assert "request.n: expected int" in response.json()["error"]["message"]


# --- clients that leave -----------------------------------------------------------------------------------------

WAITS = """
from sdk.channel import Channel, emit
async def main(request):
    if request.get("stream"):
        await emit({"x": 1})
    await Channel("began").send(True)
    await Channel("never").recv()
"""


async def began(house, tenant: str = "http") -> Any:
    """The process of a `WAITS` that is under way."""

    async def main(tenant: str):
        from sdk.channel import Channel

        return await Channel(f"{tenant}/began").recv(5)

    assert await house.value(main, tenant=tenant) is True
    (process,) = house.kernel.processes.values()
    return process


async def test_priority_and_user_are_the_programs_terms(house, served_with) -> None:
    async with served_with(WAITS) as client:
        body = {"priority": 3, "user": "Ada"}
        request = asyncio.create_task(client.post("/v1/completions", json=body))
        process = await began(house, "Ada")
        assert (process.account.priority, process.account.tenant.name) == (3, "Ada")
        request.cancel()
        await process.wait_exit()


@pytest.mark.parametrize(("field", "value"), [("priority", "high"), ("priority", 2**40), ("user", 7)])
async def test_wrong_terms_are_refused_by_name(public, field, value) -> None:
    response = await public.post("/v1/completions", json=PROMPT | {field: value})
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_its_program(house, served_with, stream: bool) -> None:
    async with served_with(WAITS) as client:
        request = asyncio.create_task(client.post("/v1/completions", json={"stream": stream}))
        process = await began(house)
        request.cancel()
        status = await process.wait_exit()
    assert (status.code, status.error) == (137, "its client left")


async def test_leaving_a_stream_in_the_middle_frees_everything(house, remote) -> None:
    request = PROMPT | {"max_tokens": 8000, "stream": True, "n": 3}
    async with remote.stream("POST", "/v1/completions", json=request) as response:
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                break
        (process,) = house.kernel.processes.values()
    assert (await process.wait_exit()).code == 137
    assert process.account.n_generated_tokens < 3 * 8000


async def test_a_slow_reader_holds_the_program_back_and_loses_nothing(house, served_with) -> None:
    source = """
    from sdk.channel import emit
    async def main(request):
        for i in range(3000):
            await emit({"i": i, "pad": "x" * 1000})
    """
    async with served_with(source) as client, client.stream("POST", "/v1/completions", json={"stream": True}) as r:
        seen = [json.loads(line[6:])["i"] async for line in r.aiter_lines() if line.startswith("data: {")]
    assert seen == list(range(3000))


# --- the stock client -------------------------------------------------------------------------------------------


async def test_the_stock_client_works_unmodified(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=server.address, api_key="none", max_retries=0) as client:
        (model,) = (await client.models.list()).data
        done = await client.chat.completions.create(
            model=model.id, messages=[{"role": "user", "content": "Hi"}], n=4, max_tokens=6, seed=3
        )
        assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
        assert done.usage is not None
        assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
        texts = [""] * 4
        async for chunk in await client.chat.completions.create(
            model=model.id, messages=[{"role": "user", "content": "Hi"}], n=4, max_tokens=6, seed=3, stream=True
        ):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert texts == [choice.message.content for choice in done.choices]

        whole = await client.completions.create(model=model.id, prompt="a", max_tokens=30, temperature=0)
        word = whole.choices[0].text[4:6]
        cut = await client.completions.create(model=model.id, prompt="a", max_tokens=30, temperature=0, stop=[word])
        assert cut.choices[0].text == whole.choices[0].text[: whole.choices[0].text.index(word)]
        assert cut.choices[0].finish_reason == "stop"
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await client.completions.create(model=model.id, prompt="a", temperature=-1)
        with pytest.raises(openai.NotFoundError, match="gpt-17"):
            await client.completions.create(model="gpt-17", prompt="a")


def use_blocking_client(address: str) -> list[str]:
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        made = client.completions.create(model="null", prompt="a", max_tokens=5, temperature=0)
        stream = client.completions.create(model="null", prompt="a", max_tokens=5, temperature=0, stream=True)
        return [made.choices[0].text, "".join(chunk.choices[0].text for chunk in stream)]


async def test_the_stock_blocking_client_works_too(server: Server) -> None:
    whole, streamed = await asyncio.to_thread(use_blocking_client, server.address)
    assert whole == streamed != ""
