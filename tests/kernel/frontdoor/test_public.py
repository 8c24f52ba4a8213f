"""Who may come in by the port."""

import httpx
import msgspec
import pytest

from kernel.frontdoor.public import Guard, public_app
from kernel.loader import LoadError


@pytest.fixture
def locked(kernel):
    """A client of the same kernel, behind a key."""
    kernel.config = msgspec.structs.replace(kernel.config, api_key="s3cret")
    return httpx.AsyncClient(transport=httpx.ASGITransport(public_app(kernel)), base_url="http://kernel")


@pytest.mark.parametrize(
    "shown", [None, "", "s3cret", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "Bearer \xe9"]
)
async def test_without_the_key_nothing_is_served(locked, shown) -> None:
    headers = {} if shown is None else {"Authorization": shown.encode("latin-1")}
    for path in ("/v1/models", "/metrics", "/v1/programs", "/nowhere"):
        response = await locked.get(path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("shown", ["Bearer s3cret", "bearer s3cret", "Bearer  s3cret "])
async def test_with_the_key_everything_is(locked, shown) -> None:
    for path in ("/v1/models", "/metrics", "/v1/programs"):
        assert (await locked.get(path, headers={"Authorization": shown})).status_code == 200


async def test_health_needs_no_key(locked) -> None:
    for path in ("/health", "/healthz"):
        assert (await locked.get(path)).status_code != 401


async def test_web_pages_need_a_key(public, locked) -> None:
    page = {"Origin": "https://evil.example"}
    response = await public.post("/v1/completions", json={"prompt": "x"}, headers=page)
    assert response.status_code == 403
    allowed = await locked.get("/v1/models", headers=page | {"Authorization": "Bearer s3cret"})
    assert allowed.status_code == 200


async def test_a_path_that_is_not_there(public) -> None:
    for method, path, status in [("GET", "/nix", 404), ("GET", "/v1/completions", 405), ("POST", "/run", 404)]:
        response = await public.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["message"].startswith(f"{method} {path}: ")


async def test_a_bug_behind_the_door_is_a_line_to_the_client() -> None:
    async def broken(scope, receive, send):
        raise RuntimeError("secret detail")

    from starlette.applications import Starlette
    from starlette.routing import Mount

    from kernel.frontdoor.public import HANDLERS

    app = Guard(Starlette(routes=[Mount("/", broken)], exception_handlers=HANDLERS), None)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://kernel") as client:
        response = await client.get("/")
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["code"] == "internal_error"


async def test_completions_that_cannot_be_loaded_are_told_at_the_start(kernel) -> None:
    with pytest.raises(LoadError, match="no program 'nix' is installed"):
        public_app(kernel, completions="nix")
