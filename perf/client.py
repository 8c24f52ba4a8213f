"""A client of `/v1/completions` that times what it sees: the same for our server and for every peer.

Prompts are lists of token ids. Every request asks for an exact number of tokens (`ignore_eos`), greedily unless it
says otherwise. Called by `perf/workloads.py`.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from perf.harness import Failed

TIMEOUT_S = 600.0
N_CONNECTIONS = 128
SSE = "text/event-stream"


class Answer(Struct, frozen=True):
    """What came back. Times are in seconds since the request was sent."""

    e2e_s: float
    n_out: int  # tokens of all choices, as the server counts them
    n_choices: int
    n_cached: int | None  # tokens of the prompt that the server did not compute; None: it does not say
    text: str  # of the first choice
    ids: list[int]  # of the first choice, where the server tells them
    ttft_s: float = 0.0  # to the first chunk with a choice, of a stream
    tpot_s: float = 0.0  # from that chunk to the last, for each token after the first


class Api:
    """One server."""

    def __init__(self, http: httpx.AsyncClient, model: str, encode: Callable[[str], list[int]]) -> None:
        """`http` has the base URL, to the `/v1`; `encode` is for servers that return texts without ids."""
        self.encode = encode
        self._http = http
        self._model = model

    async def once(self, prompt: Sequence[int], n_out: int, **fields: Any) -> Answer:
        """A request whose answer comes whole. Raises Failed."""
        began = time.perf_counter()
        try:
            response = await self._http.post("completions", json=self._body(prompt, n_out, fields))
        except httpx.HTTPError as e:
            raise lost(e) from None
        e2e_s = time.perf_counter() - began
        body = checked(response.status_code, response.content)
        choices, usage = body.get("choices") or [{}], body.get("usage") or {}
        first = choices[0]
        return Answer(
            e2e_s=e2e_s,
            n_out=usage.get("completion_tokens") or 0,
            n_choices=len(choices),
            n_cached=cached(usage),
            text=first.get("text") or "",
            ids=first.get("token_ids") or [],
        )

    async def stream(self, prompt: Sequence[int], n_out: int, **fields: Any) -> Answer:
        """A request whose answer comes in chunks. Raises Failed."""
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
        began = time.perf_counter()
        seen: list[float] = []
        texts: list[str] = []
        usage: dict[str, Any] = {}
        try:
            async with self._http.stream("POST", "completions", json=self._body(prompt, n_out, fields)) as response:
                if not response.headers.get("content-type", "").startswith(SSE):
                    checked(response.status_code, await response.aread())
                    raise Failed("the server does not stream")
                async for line in response.aiter_lines():
                    if not line.startswith("data:") or line.endswith("[DONE]"):
                        continue
                    chunk = checked(200, line.removeprefix("data:"))
                    usage = chunk.get("usage") or usage
                    if chunk.get("choices"):
                        seen.append(time.perf_counter())
                        texts.append(chunk["choices"][0].get("text") or "")
        except httpx.HTTPError as e:
            raise lost(e) from None
        e2e_s = time.perf_counter() - began
        if not seen:
            raise Failed("the server streamed no choice")
        n = usage.get("completion_tokens") or len(seen)
        return Answer(
            e2e_s=e2e_s,
            n_out=n,
            n_choices=1,
            n_cached=cached(usage),
            text="".join(texts),
            ids=[],
            ttft_s=seen[0] - began,
            tpot_s=(seen[-1] - seen[0]) / max(1, n - 1),
        )

    def _body(self, prompt: Sequence[int], n_out: int, fields: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self._model, "prompt": list(prompt), "max_tokens": n_out, "temperature": 0, "seed": 0}
        return body | {"ignore_eos": True} | fields


def open_http(base: str) -> httpx.AsyncClient:
    """Connections to a server; the base URL ends in `/v1`."""
    limits = httpx.Limits(max_connections=N_CONNECTIONS, max_keepalive_connections=N_CONNECTIONS)
    return httpx.AsyncClient(base_url=base, timeout=httpx.Timeout(TIMEOUT_S), limits=limits)


async def model_of(http: httpx.AsyncClient) -> str:
    """The first model that the server names. Raises Failed."""
    try:
        response = await http.get("models")
    except httpx.HTTPError as e:
        raise lost(e) from None
    models = checked(response.status_code, response.content).get("data") or []
    if not models:
        raise Failed(f"{http.base_url} serves no model")
    return str(models[0]["id"])


def checked(status: int, content: bytes | str) -> dict[str, Any]:
    """The body of an answer that is no error. Raises Failed."""
    try:
        body = msgspec.json.decode(content)
    except msgspec.DecodeError:
        body = None
    if status != 200 or not isinstance(body, dict) or "error" in body:
        text = content if isinstance(content, str) else content.decode(errors="replace")
        raise Failed(f"the server answered {status}: {' '.join(text.split())[:300]}")
    return body


def cached(usage: dict[str, Any]) -> int | None:
    found: int | None = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return found


def lost(error: httpx.HTTPError) -> Failed:
    return Failed(f"the server cannot be asked: {type(error).__name__}: {error}".rstrip(": "))
