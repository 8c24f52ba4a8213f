"""Request bodies: JSON objects of bounded size, read before anything is started on their behalf."""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import ClientDisconnect, Request

from kernel.frontdoor.errors import Refusal

T = TypeVar("T")

Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]  # lower goes first, as in vLLM
TenantName = Annotated[str, Meta(min_length=1, max_length=255)]  # whose share of the machine a program uses

_object = msgspec.json.Decoder(dict[str, Any])


async def read(request: Request, n_bytes_max: int) -> bytes:
    """The body. Raises Refusal when it is too long or the client left."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > n_bytes_max:
        raise too_long(n_bytes_max)
    parts: list[bytes] = []
    n_bytes = 0
    try:
        async for part in request.stream():
            n_bytes += len(part)
            if n_bytes > n_bytes_max:
                raise too_long(n_bytes_max)
            parts.append(part)
    except ClientDisconnect:
        raise Refusal(400, "the client left in the middle of its request") from None
    return b"".join(parts)


def too_long(n_bytes_max: int) -> Refusal:
    return Refusal(413, f"the request is longer than {n_bytes_max} bytes", code="request_too_large")


async def read_object(request: Request, n_bytes_max: int) -> dict[str, Any]:
    """The body as a JSON object. Raises Refusal."""
    try:
        return _object.decode(await read(request, n_bytes_max))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Refusal(400, f"the request is no JSON object: {e}") from None


async def read_as(request: Request, n_bytes_max: int, tp: type[T]) -> T:
    """The body as `tp`. Raises Refusal."""
    try:
        return msgspec.json.decode(await read(request, n_bytes_max), type=tp)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Refusal(400, f"the request is not as it should be: {e}") from None


def fields_of(body: dict[str, Any], tp: type[T]) -> T:
    """Those fields of a body that `tp` has. Raises Refusal, naming the one that is wrong."""
    try:
        return msgspec.convert(body, tp)
    except msgspec.ValidationError as e:
        what, _, where = str(e).partition(" - at `$.")
        raise Refusal(400, f"{where.rstrip('`')}: {what}", param=where.rstrip("`") or None) from None
