"""What is behind the TCP port, and who may come in.

With an API key everybody must show it, but for the health probes. Without one the port is on loopback, where any
program of this machine may connect, and so may any web page by way of a browser: requests with an `Origin` are
refused, since those are the ones that a browser sends on a page's behalf.
"""

import hmac

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, ExceptionHandler, Receive, Scope, Send

from kernel.core import Kernel
from kernel.frontdoor import errors
from kernel.frontdoor.errors import Refusal
from kernel.frontdoor.native import Native
from kernel.frontdoor.openai import OpenAI
from kernel.frontdoor.probes import OPEN_PATHS, Probes
from kernel.loader import load
from sdk.abi.errors import SyscallError

HANDLERS: dict[type[Exception] | int, ExceptionHandler] = {
    Refusal: errors.on_refusal,
    SyscallError: errors.on_syscall_error,
    HTTPException: errors.on_http_error,
    Exception: errors.on_bug,
}


class Guard:
    """Lets in whom it may."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self.app = app
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope)
        await (self.app if refusal is None else refusal.response())(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        if scope["path"] in OPEN_PATHS:
            return None
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._key is None:
            if b"origin" in headers:
                return Refusal(403, "web pages may not call this server unless it has an API key (--api-key)")
            return None
        scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), self._key):
            return None
        return Refusal(401, "give this server's API key as `Authorization: Bearer KEY`", code="invalid_api_key")


def public_app(kernel: Kernel, completions: str = "completions", chat_completions: str = "chat_completions") -> ASGIApp:
    """The application. The two programs are names or files. Raises LoadError when they cannot be loaded."""
    openai = OpenAI(kernel, completions=load(completions), chat_completions=load(chat_completions))
    routes = [*openai.routes, *Native(kernel).routes, *Probes(kernel).routes]
    return Guard(Starlette(routes=routes, exception_handlers=HANDLERS), kernel.config.api_key)
