"""The front doors of the kernel that `house` is: in memory where that will do, on real sockets where it matters."""

import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import httpx
import pytest

from kernel import loader
from kernel.core import Kernel
from kernel.frontdoor.admin import admin_app
from kernel.frontdoor.public import public_app
from kernel.frontdoor.server import Server, serve_http
from tests.kernel.conftest import running_house

Install = Callable[[str, str], str]


def in_memory(app: Any) -> httpx.AsyncClient:
    """A client of an application, with no socket between. A bug behind the door is an exception in the test."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://kernel")


@pytest.fixture
async def public(kernel: Kernel) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the port."""
    async with in_memory(public_app(kernel)) as client:
        yield client


@pytest.fixture
async def admin(kernel: Kernel) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the unix socket."""
    async with in_memory(admin_app(kernel)) as client:
        yield client


@pytest.fixture
async def server(kernel: Kernel) -> AsyncIterator[Server]:
    """The port, open."""
    server = await serve_http(kernel, "127.0.0.1", 0)
    yield server
    await server.stop()


@pytest.fixture
async def remote(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client over TCP, by paths as in the documentation (`/v1/...`)."""
    async with httpx.AsyncClient(base_url=server.address.removesuffix("/v1"), timeout=30) as client:
        yield client


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a program from source; returns the name it goes by, which no other test uses."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(loader.importlib.metadata, "entry_points", lambda **_: EntryPoints(points))
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, source: str) -> str:
        name = f"{name}_{abs(hash(tmp_path))}"
        (tmp_path / f"{name}.py").write_text(source)
        points.append(EntryPoint(name, f"{name}:main", loader.ENTRY_POINTS))
        return name

    yield install
    for point in points:
        sys.modules.pop(point.name, None)


@pytest.fixture
def served_with(house: Any) -> Any:
    """`async with served_with(source) as client`: a server whose completions are this program, and a client."""

    @asynccontextmanager
    async def served(source: str) -> AsyncIterator[httpx.AsyncClient]:
        path = house.program(source).path
        app = public_app(house.kernel, completions=str(path))
        sock = socket.create_server(("127.0.0.1", 0))
        server = Server(app, sock, f"http://127.0.0.1:{sock.getsockname()[1]}")
        async with httpx.AsyncClient(base_url=server.address, timeout=30) as client:
            yield client
        await server.stop()

    return served


@pytest.fixture
async def empty_house(tmp_path: Path) -> AsyncIterator[Any]:
    """A kernel without a worker."""
    async with running_house(tmp_path, n_workers=0) as house:
        yield house


@pytest.fixture
async def small_house(tmp_path: Path) -> AsyncIterator[Any]:
    """A kernel whose worker has four pages."""
    async with running_house(tmp_path, n_pages=4) as house:
        yield house
