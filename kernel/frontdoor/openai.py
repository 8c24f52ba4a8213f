"""OpenAI's API, for clients that know nothing of programs: `/v1/models` and the two completions.

A completion is a program like any other (`programs/completions.py`, `programs/chat_completions.py`). The front door
reads the request as a dict, starts the program with it as `request`, and sends what it emits or returns; what a
field means is the program's business alone. Whoever wants another meaning gives `OpenAI` another program.

Two fields say how the program is to run, and so are read here: `priority` (vLLM's: lower goes first, 0 is usual) and
`user` (OpenAI's: who asks; its value is a tenant, with files and a quota of its own, and all tenants share the machine
alike unless the configuration's `tenant_share` says otherwise). Both are taken on trust, as is everything from somebody
who may use the port.
"""

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kernel.client import Client
from kernel.core import Kernel
from kernel.credentials import PORT_NAME
from kernel.frontdoor.body import Priority, fields_of, read_object
from kernel.frontdoor.errors import Refusal
from kernel.frontdoor.respond import Answer, EventStream
from kernel.loader import Program
from sdk.abi.errors import NoDevice


class Terms(Struct):
    """How a request wants to be served."""

    priority: Priority | None = None
    user: Annotated[str, Meta(max_length=255)] | None = None  # empty: nobody in particular


class OpenAI:
    """The endpoints, over two programs."""

    def __init__(self, kernel: Kernel, *, completions: Program, chat_completions: Program) -> None:
        self.kernel = kernel
        self.programs = {"/v1/completions": completions, "/v1/chat/completions": chat_completions}
        self.created = int(datetime.now(UTC).timestamp())
        self.routes = [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            *(Route(path, self.complete, methods=["POST"]) for path in self.programs),
        ]

    async def models(self, request: Request) -> Response:
        """The one model that is served, under each of its names; an empty list while no worker has brought it."""
        try:
            data = [self._card(name) for name in self.kernel.model_names]
        except NoDevice:
            data = []
        return json_response({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._check_model(name)
        return json_response(self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        info = self.kernel.model_info()
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "symphony",
            "max_model_len": info.max_model_len,
        }

    async def complete(self, request: Request) -> Response:
        """Run the program of this path on the request."""
        kernel = self.kernel
        body = await read_object(request, kernel.config.max_body_bytes)
        self._check_model(body.setdefault("model", kernel.model_names[0]))
        program = self.programs[request.url.path]
        args = kernel.bind(program, {"request": body})
        wanted = fields_of(body, Terms)
        terms: Any = {"owner": PORT_NAME, "priority": wanted.priority or 0, "tenant": wanted.user or None}
        if body.get("stream") is not True:
            return Answer(kernel, program, args, **terms)
        client = Client(interactive=False, n_buffered_max=kernel.config.max_client_events)
        return EventStream(kernel, program, args, client=client, **terms)

    def _check_model(self, name: Any) -> None:
        names = self.kernel.model_names
        if name not in names:
            message = f"The model {name!r} does not exist; this server has {', '.join(names)}"
            raise Refusal(404, message, code="model_not_found", param="model")


def json_response(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
