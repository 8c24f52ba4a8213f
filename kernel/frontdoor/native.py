"""Our own API on the port: installed programs, by name. Code never comes in this way, only names and arguments."""

from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kernel.client import Client
from kernel.core import Kernel
from kernel.credentials import PORT_NAME
from kernel.frontdoor.body import Priority, TenantName, read_as
from kernel.frontdoor.errors import Refusal
from kernel.frontdoor.openai import json_response
from kernel.frontdoor.respond import Lines, Result
from kernel.loader import LoadError, Program, installed, load_installed


class RunRequest(Struct, forbid_unknown_fields=True):
    """Arguments of the program's `main`; with `stream` the answer is a line of JSON per event. `priority` and `user`
    are what they are in the OpenAI API (`openai.py`)."""

    args: dict[str, Any] = {}
    stream: bool = False
    priority: Priority = 0
    user: TenantName | None = None


class Native:
    """`GET /v1/programs`, `GET /v1/programs/NAME` and `POST /v1/programs/NAME`."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.routes = [
            Route("/v1/programs", self.programs),
            Route("/v1/programs/{name}", self.describe, methods=["GET"]),
            Route("/v1/programs/{name}", self.run, methods=["POST"]),
        ]

    async def programs(self, request: Request) -> Response:
        return json_response({"programs": [{"name": name, "doc": doc} for name, doc in installed().items()]})

    async def describe(self, request: Request) -> Response:
        return json_response(self._program(request).describe())

    async def run(self, request: Request) -> Response:
        """Run a program to its end. `{"result": ...}`, or the events as they come."""
        kernel, program = self.kernel, self._program(request)
        wanted = await read_as(request, kernel.config.max_body_bytes, RunRequest)
        args = kernel.bind(program, wanted.args)
        terms: Any = {"owner": PORT_NAME, "priority": wanted.priority, "tenant": wanted.user}
        if not wanted.stream:
            return Result(kernel, program, args, **terms)
        client = Client(interactive=False, n_buffered_max=kernel.config.max_client_events)
        return Lines(kernel, program, args, client=client, **terms)

    def _program(self, request: Request) -> Program:
        try:
            return load_installed(request.path_params["name"])
        except LoadError as e:
            raise Refusal(404, str(e), code="program_not_found") from None
