"""What operators' tools ask: is it well, and what are its numbers."""

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kernel.core import Kernel
from kernel.metrics import registry

OPEN_PATHS = frozenset({"/health", "/healthz"})  # no key is asked here, as orchestrators have none


class Probes:
    """`GET /health`, `GET /healthz` and `GET /metrics`."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._registry = registry(kernel)
        self.routes = [
            *(Route(path, self.health) for path in sorted(OPEN_PATHS)),
            Route("/metrics", self.metrics),
        ]

    async def health(self, request: Request) -> Response:
        """200 while a worker that has answered a batch is there to answer the next."""
        if self.kernel.healthy and not self.kernel.stopping:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "stopping" if self.kernel.stopping else "no worker"}, 503)

    async def metrics(self, request: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
