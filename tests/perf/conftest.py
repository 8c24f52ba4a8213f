"""A server of completions that does exactly as it is told, and remembers what it was asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perf.client import Api

FIRST_WORD = 5000


class Server:
    """Each choice is `max_tokens` ids, counted up from FIRST_WORD. `answer` may be replaced."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.n_under_way = self.most_under_way = 0
        self.answer: Callable[[dict[str, Any]], Response] = complete
        self.app = Starlette(
            routes=[Route("/v1/completions", self.completions, methods=["POST"]), Route("/v1/models", models)]
        )

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.n_under_way += 1
        self.most_under_way = max(self.most_under_way, self.n_under_way)
        await asyncio.sleep(0)  # others get their turn
        self.n_under_way -= 1
        return self.answer(body)


def events(*lines: str) -> Response:
    """Server-sent events."""
    return Response("".join(f"data: {line}\n\n" for line in lines), media_type="text/event-stream")


async def models(request: Request) -> Response:
    return JSONResponse({"data": [{"id": "toy"}]})


def complete(body: dict[str, Any], n: int | None = None) -> Response:
    """`n` tokens for each choice, by default as many as were asked for."""
    n = body["max_tokens"] if n is None else n
    words = list(range(FIRST_WORD, FIRST_WORD + n))
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": n * body.get("n", 1)}
    usage["prompt_tokens_details"] = {"cached_tokens": len(body["prompt"]) // 2}
    if body.get("stream"):
        chunks = [{"choices": [{"text": f"{word} "}]} for word in words] + [{"choices": [], "usage": usage}]
        return events(*map(json.dumps, chunks), "[DONE]")
    choice = {"text": " ".join(map(str, words)), "token_ids": words if body.get("return_token_ids") else None}
    return JSONResponse({"choices": [choice] * body.get("n", 1), "usage": usage})


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    transport = httpx.ASGITransport(app=server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://toy/v1") as http:
        yield Api(http, "toy", lambda text: [int(word) for word in text.split()])
