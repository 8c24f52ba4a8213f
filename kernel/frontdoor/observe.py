"""What `lip top` and `lip trace` ask, on the unix socket. `sdk/client.py` is the other side.

    GET  /top           how things stand, and totals since the start; rates are the client's to work out
    POST /trace         record, then the file in the format of ui.perfetto.dev; leaving ends it
    POST /trace/stop    end the recording now

One recording at a time. The response begins when the recording does. Never add here what is recorded: that is
`kernel/tracing.py`.
"""

import asyncio
import contextlib

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kernel import census
from kernel.core import Kernel
from kernel.frontdoor.body import read_as
from kernel.frontdoor.errors import Refusal
from kernel.frontdoor.openai import json_response
from kernel.frontdoor.respond import JSON
from kernel.process import Process
from sdk.abi.values import Pid

SECONDS_MAX = 3600.0


class TraceRequest(Struct, forbid_unknown_fields=True):
    seconds: float
    pid: int | None = None  # with its children; None: all


class Observe:
    """The endpoints."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._recording: Recording | None = None
        self.routes = [
            Route("/top", self.top),
            Route("/trace", self.trace, methods=["POST"]),
            Route("/trace/stop", self.stop, methods=["POST"]),
        ]

    async def top(self, request: Request) -> Response:
        return json_response(census.standing(self.kernel))

    async def trace(self, request: Request) -> Response:
        wanted: TraceRequest = await read_as(request, self.kernel.config.max_body_bytes, TraceRequest)
        if not 0 < wanted.seconds <= SECONDS_MAX:
            raise Refusal(400, f"a recording takes more than 0 seconds and no more than {SECONDS_MAX:g}", code="EINVAL")
        self._recording = Recording(self.kernel, wanted)
        return self._recording

    async def stop(self, request: Request) -> Response:
        if self._recording is None or self._recording.over.is_set():
            raise Refusal(409, "nobody is recording", code="EINVAL")
        self._recording.over.set()
        return json_response({})


class Recording(Response):
    """One recording, as the response to who asked for it."""

    def __init__(self, kernel: Kernel, wanted: TraceRequest) -> None:
        """Begins. Raises NoSuchProcess, Busy."""
        self.background = None
        self.over = asyncio.Event()
        self._kernel = kernel
        self._wanted = wanted
        self._gone = False  # the client is
        self._trace = kernel.record(None if wanted.pid is None else Pid(wanted.pid))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        enders = [asyncio.ensure_future(self._left(receive))]
        process = self._kernel.processes.get(Pid(self._wanted.pid or 0))
        if process is not None:
            enders.append(asyncio.ensure_future(self._ended(process)))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": JSON})
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._wanted.seconds):
                    await self.over.wait()
            self._kernel.stop_recording()
            if not self._gone:
                await self._send(send)
        finally:
            self.over.set()
            self._kernel.stop_recording()
            for ender in enders:
                ender.cancel()

    async def _send(self, send: Send) -> None:
        for piece in self._trace.close(self._kernel.clock()):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)  # the programs go on meanwhile
        await send({"type": "http.response.body", "body": b""})

    async def _ended(self, process: Process) -> None:
        """Over when the traced program is."""
        await process.wait_exit()
        self.over.set()

    async def _left(self, receive: Receive) -> None:
        """Over when the client is gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self.over.set()
