"""Ports and sockets: opened in one line or refused in one, and nothing left behind."""

import asyncio
import os
import signal
import socket
import stat
from pathlib import Path

import httpx
import pytest

from kernel.frontdoor.server import FrontDoorError, serve_http, serve_socket
from sdk.client import Client


async def refused(serving) -> str:
    with pytest.raises(FrontDoorError) as caught:
        await serving
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_free_port(kernel) -> None:
    server = await serve_http(kernel, "127.0.0.1", 0)
    assert server.started
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{server.address}/models")).status_code == 200
    await server.stop()
    await server.stop()
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{server.address}/models")


async def test_a_port_that_is_taken(kernel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = await refused(serve_http(kernel, "127.0.0.1", port))
    assert message == f"port {port} of 127.0.0.1 is taken: choose another with --port (0: any)"


async def test_a_host_that_is_not_ours(kernel) -> None:
    assert "cannot listen on 192.0.2.1 port 0" in await refused(serve_http(kernel, "192.0.2.1", 0))


async def test_signals_stay_with_the_kernel(kernel) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    server = await serve_http(kernel, "127.0.0.1", 0)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    await server.stop()


async def test_the_socket_is_for_this_user_alone(kernel, tmp_path: Path) -> None:
    path = tmp_path / "new" / "k.sock"
    mask = os.umask(0)
    try:
        server = await serve_socket(kernel, path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    async with Client(path) as client:
        assert await client.ps() == []
    await server.stop()
    assert not path.exists()


async def test_a_socket_that_a_dead_kernel_left_is_replaced(kernel, tmp_path: Path) -> None:
    path = tmp_path / "k.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    server = await serve_socket(kernel, path)
    async with Client(path) as client:
        assert await client.ps() == []
    await server.stop()


async def test_a_socket_that_is_in_use_is_left_alone(kernel, tmp_path: Path) -> None:
    path = tmp_path / "k.sock"
    server = await serve_socket(kernel, path)
    assert "another kernel listens on" in await refused(serve_socket(kernel, path))
    async with Client(path) as client:
        assert await client.ps() == []
    await server.stop()


async def test_places_where_no_socket_can_be(kernel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert "is no socket" in await refused(serve_socket(kernel, tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"
    assert "cannot open the socket" in await refused(serve_socket(kernel, tmp_path / "file" / "k.sock"))
    assert "AF_UNIX path too long" in await refused(serve_socket(kernel, tmp_path / ("x" * 120)))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert "others may write" in await refused(serve_socket(kernel, tmp_path / "open" / "k.sock"))


async def test_stopping_ends_what_is_under_way(house, tmp_path: Path) -> None:
    path = tmp_path / "k.sock"
    server = await serve_socket(house.kernel, path)
    program = house.program("from sdk.channel import Channel\nasync def main(): await Channel('never').recv()\n")
    async with Client(path) as client:
        events = client.run(file=program.path)
        process = house.kernel.processes[(await anext(events)).pid]
        stopping = asyncio.ensure_future(server.stop())
        house.kernel.kill(process.pid, "the kernel is stopping")
        last = [event async for event in events][-1]
        await stopping
    assert last.exit.error == "the kernel is stopping"
