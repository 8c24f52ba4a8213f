"""Opens the ports: uvicorn in the kernel's own event loop, with nothing of uvicorn's own.

Signals, logging and the life of the application belong to the kernel. Sockets are made here, so that a port or path
that is taken is one line before anything runs, and so that the unix socket never exists with a mode that lets
others in. Called by `kernel/boot.py`.
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from kernel.core import Kernel
from kernel.frontdoor.admin import admin_app
from kernel.frontdoor.public import public_app
from kernel.loader import LoadError
from sdk.abi.paths import check_private

BACKLOG = 2048
KEEP_ALIVE_S = 75  # idle connections stay longer than the usual client pool keeps them, so clients close first
GRACE_S = 2  # for responses to be written out when the door closes


class FrontDoorError(Exception):
    """A front door could not be opened; the text is one line."""


class _Uvicorn(uvicorn.Server):
    """uvicorn without signal handlers and without its ten wake-ups a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.opened = asyncio.Event()
        self.told = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.opened.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.told.wait()


class Server:
    """One open door."""

    def __init__(self, app: ASGIApp, sock: socket.socket, address: str) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            ws="none",
            date_header=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        self.address = address  # as the banner shows it
        self.port: int = sock.getsockname()[1] if sock.family != socket.AF_UNIX else 0
        self._uvicorn = _Uvicorn(config)
        self._task = asyncio.ensure_future(self._uvicorn.serve(sockets=[sock]))

    @property
    def started(self) -> bool:
        return self._uvicorn.started

    async def wait_started(self) -> None:
        await self._uvicorn.opened.wait()

    async def stop(self) -> None:
        """Close the door; responses that are under way have `GRACE_S` to end. Safe to call twice."""
        self._uvicorn.told.set()
        await asyncio.wait({self._task})


class SocketServer(Server):
    """A door on a unix socket, whose path goes with it."""

    def __init__(self, app: ASGIApp, sock: socket.socket, path: Path) -> None:
        super().__init__(app, sock, f"unix:{path}")
        self._path = path
        self._ino = path.stat().st_ino

    async def stop(self) -> None:
        await super().stop()
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._ino:  # not somebody else's by now
                self._path.unlink()


async def serve_http(kernel: Kernel, host: str, port: int) -> Server:
    """Open the TCP port for clients; port 0 takes a free one. Raises FrontDoorError."""
    try:
        app = public_app(kernel, kernel.config.completions_program, kernel.config.chat_completions_program)
    except LoadError as e:
        raise FrontDoorError(f"the completions cannot be served: {e}") from None
    sock = _tcp_socket(host, port)
    shown = f"[{host}]" if ":" in host else host
    server = Server(app, sock, f"http://{shown}:{sock.getsockname()[1]}/v1")
    await server.wait_started()
    return server


def _tcp_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise FrontDoorError(f"port {port} of {host} is taken: choose another with --port (0: any)") from None
        raise FrontDoorError(f"cannot listen on {host} port {port}: {e.strerror or e}") from None


async def serve_socket(kernel: Kernel, path: Path) -> Server:
    """Open the unix socket for this machine's owner. Raises FrontDoorError."""
    server = SocketServer(admin_app(kernel), _unix_socket(path), path)
    await server.wait_started()
    return server


def check_socket(path: Path) -> None:
    """That `serve_socket` will be able to open this one: nobody listens on it. Raises FrontDoorError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(path)
        _clear_stale(path)
    except OSError as e:
        raise FrontDoorError(f"cannot open the socket {path}: {e.strerror or e}") from None


def _unix_socket(path: Path) -> socket.socket:
    """A listening socket that only this user can connect to, from the moment it exists."""
    check_socket(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
        sock.listen(BACKLOG)
    except OSError as e:
        sock.close()
        raise FrontDoorError(f"cannot open the socket {path}: {e.strerror or e}") from None
    return sock


def _clear_stale(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises FrontDoorError when somebody does, OSError when it is none."""
    if not path.exists():
        return
    if not path.is_socket():
        raise FrontDoorError(f"{path} is there already and is no socket: choose another path with --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FrontDoorError(f"another kernel listens on {path}: end it, or choose another path with --socket")
