"""What clients are told when something is wrong: OpenAI's error object, with a status that says whose fault it is.

A refusal is raised anywhere behind the front door as `Refusal`; a program that failed is turned into one by
`from_exit`. No traceback ever leaves through here.
"""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sdk.abi.errors import Errno, SyscallError
from sdk.abi.values import ExitStatus

INVALID, SERVER = "invalid_request_error", "server_error"
KILLED = 137

# What is not listed is a 400 when the request itself met the error, and a 500 when a program let it through.
STATUS_OF = {
    Errno.EINVAL: 400,
    Errno.E2BIG: 400,
    Errno.ENOSYS: 400,
    Errno.EACCES: 403,
    Errno.ENOSPC: 503,
    Errno.EDQUOT: 503,
    Errno.ENODEV: 503,
    Errno.EIO: 503,
}
CODE_OF = {Errno.E2BIG: "context_length_exceeded"}  # the others go by their errno


class Refusal(Exception):
    """A request that is answered with an error object."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {...}}` as OpenAI has it."""
        kind = SERVER if self.status >= 500 else INVALID
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        headers = {"Retry-After": "1"} if self.status == 503 else None
        return Response(msgspec.json.encode(self.body), self.status, headers, "application/json")


def from_syscall(error: SyscallError, otherwise: int) -> Refusal:
    """What a failed system call means to a client; `otherwise` is the status where it has none of its own."""
    code = CODE_OF.get(error.errno, error.errno.value)
    return Refusal(STATUS_OF.get(error.errno, otherwise), error.detail, code=code)


def from_exit(status: ExitStatus) -> Refusal:
    """What the end of a program means to the client that waited for its result."""
    errno, _, detail = status.error.partition(": ")
    if errno in Errno.__members__:
        return from_syscall(SyscallError(detail, Errno(errno)), otherwise=500)
    if status.code == KILLED:
        return Refusal(503, f"the program was ended: {status.error}", code="killed")
    return Refusal(500, status.error or f"the program ended with status {status.code}", code="program_failed")


async def on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def on_syscall_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SyscallError)
    return from_syscall(error, otherwise=400).response()


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or not with this method."""
    status = getattr(error, "status_code", 500)
    return Refusal(status, f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}").response()


async def on_bug(request: Request, error: Exception) -> Response:
    """A bug of the front door: the kernel's log has the traceback, the client a line."""
    return Refusal(500, "internal error; the kernel's log has the details", code="internal_error").response()
