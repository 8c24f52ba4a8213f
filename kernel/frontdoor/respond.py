"""From a running program to an HTTP response.

A `Running` response holds one process for as long as its client stays: when the client leaves, in whatever state
the request is, the process is killed, and with it all it held. `Answer` sends what the program returned,
`EventStream` what it emits as server-sent events (OpenAI's way), `Lines` every event as a line of JSON.
"""

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kernel.client import Client, Event
from kernel.core import Kernel
from kernel.frontdoor.errors import from_exit
from kernel.loader import Program
from kernel.process import Process
from sdk.abi.values import ExitStatus

_encode = msgspec.json.Encoder().encode

JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
NDJSON = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-cache")]
RETRY = (b"retry-after", b"1")  # what a 503 wants: pages and workers come back


class Returned(Struct):
    """The part of a program's answer that the front door looks at: a refusal has an error object and a status."""

    error: Raw | UnsetType = UNSET
    status: Annotated[int, Meta(ge=400, le=599)] = 400


class Running(Response):
    """The response to a request on whose behalf a program runs."""

    def __init__(
        self,
        kernel: Kernel,
        program: Program,
        args: dict[str, Any],
        *,
        owner: str,
        client: Client | None = None,
        priority: int = 0,
        tenant: str | None = None,
    ) -> None:
        """Starts the program. Raises SyscallError."""
        self.kernel = kernel
        self.client = client
        self.process: Process = kernel.spawn(
            program, args, owner=owner, client=client, priority=priority, tenant=tenant
        )
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.ensure_future(self._watch(receive))
        try:
            await self.reply(send)
        finally:
            watcher.cancel()
            self._abandon()

    async def reply(self, send: Send) -> None:
        """Send the whole response."""
        raise NotImplementedError

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._abandon()

    def _abandon(self) -> None:
        """Nobody listens any more. Nothing happens when the process has ended."""
        if self.process.status is not None:
            return
        if self.client is not None:
            self.client.leave()
        self.kernel.kill(self.process.pid, "its client left")


async def send_whole(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append(RETRY)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def outcome(status: ExitStatus) -> tuple[int, bytes]:
    """HTTP status and body for a program that has ended: what it returned, or an error object.

    A program refuses a request by returning `{"error": {...}, "status": 4xx}`.
    """
    if status.code != 0:
        refusal = from_exit(status)
        return refusal.status, _encode(refusal.body)
    result = result_of(status)
    try:
        returned = msgspec.json.decode(result, type=Returned)
    except msgspec.ValidationError:  # not of that form, so no refusal
        return 200, result
    if isinstance(returned.error, UnsetType):
        return 200, result
    return returned.status, _encode({"error": returned.error})


def result_of(status: ExitStatus) -> bytes:
    """The returned value as JSON; a program that left by `exit(0)` returned none."""
    return status.result or b"null"


class Answer(Running):
    """One JSON body: what the program returned."""

    async def reply(self, send: Send) -> None:
        status, body = outcome(await self.process.wait_exit())
        await send_whole(send, status, JSON, body)


class Result(Running):
    """One JSON body: `{"result": what the program returned}`."""

    async def reply(self, send: Send) -> None:
        status = await self.process.wait_exit()
        if status.code == 0:
            await send_whole(send, 200, JSON, b'{"result":' + result_of(status) + b"}")
        else:
            refusal = from_exit(status)
            await send_whole(send, refusal.status, JSON, _encode(refusal.body))


class EventStream(Running):
    """Server-sent events: one for everything the program emits, then `[DONE]`.

    The status waits for the first event, so that a program that refuses is answered as if nothing was to stream.
    """

    async def reply(self, send: Send) -> None:
        assert self.client is not None
        event = await self.client.next()
        if event is None:
            status, body = outcome(await self.process.wait_exit())
            if status != 200:
                await send_whole(send, status, JSON, body)
                return
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        while event is not None:
            data = b"data: " + _encode(event.data) + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})
            event = await self.client.next()
        status, body = outcome(await self.process.wait_exit())
        last = b"data: [DONE]\n\n" if status == 200 else b"data: " + body + b"\n\ndata: [DONE]\n\n"
        await send({"type": "http.response.body", "body": last})


class Lines(Running):
    """A line of JSON for everything that happens: `{"pid"}`, `{"emit", "stream"?}` and `{"prompt"}` as they come,
    and `{"exit": {"pid", "code", "result"?, "error"?, "traceback"?}}` at the end."""

    async def reply(self, send: Send) -> None:
        assert self.client is not None
        await send({"type": "http.response.start", "status": 200, "headers": NDJSON})
        line = {"pid": self.process.pid}
        await send({"type": "http.response.body", "body": _encode(line) + b"\n", "more_body": True})
        while (event := await self.client.next()) is not None:
            await send({"type": "http.response.body", "body": _encode(as_line(event)) + b"\n", "more_body": True})
        status = await self.process.wait_exit()
        await send({"type": "http.response.body", "body": _encode({"exit": as_dict(status)}) + b"\n"})


def as_line(event: Event) -> dict[str, Any]:
    if event.prompt is not None:
        return {"prompt": event.prompt}
    return {"emit": event.data} if event.stream is None else {"emit": event.data, "stream": event.stream}


def as_dict(status: ExitStatus) -> dict[str, Any]:
    ended: dict[str, Any] = {"pid": status.pid, "code": status.code}
    if status.code == 0:
        return ended | {"result": Raw(result_of(status))}
    return ended | {"error": status.error, "traceback": status.traceback}
