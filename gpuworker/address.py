"""WHERE a worker listens: which addresses are safe, and the listening socket. Called by serve.py and __main__.py."""

import errno
import ipaddress
import os
import pathlib
import socket

from gpuworker.stream import parse

BACKLOG = 128  # connections that wait to be accepted
REASONS = {
    errno.EADDRINUSE: "the address is in use",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.ENODEV: "this machine has no such address",
    errno.ENOENT: "the directory does not exist",
}


class AddressError(Exception):
    """The address cannot be listened on. One line that says why."""


def is_private(address: str) -> bool:
    """Whether only this machine can reach it. Raises AddressError when it is no address of ours.

    The link is neither encrypted nor authenticated: whoever reaches it can use the worker."""
    place = _parse(address)
    if isinstance(place, str):
        return True
    try:
        return ipaddress.ip_address(place[0]).is_loopback
    except ValueError:
        return place[0] == "localhost"


def listen(address: str) -> socket.socket:
    """A socket that listens on `address`, never waits, and is for this user alone if it is a path.

    Raises AddressError."""
    place = _parse(address)
    try:
        return _listen_ipc(place) if isinstance(place, str) else _listen_tcp(*place)
    except OSError as e:
        no_name = isinstance(e, socket.gaierror)
        reason = REASONS[errno.ENODEV] if no_name else REASONS.get(e.errno or 0) or e.strerror or str(e)
        raise AddressError(f"cannot listen on {address}: {reason}") from None


def address_of(listener: socket.socket) -> str:
    """As a kernel has to spell it, with the port that was chosen."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"ipc://{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"tcp://{host}:{name[1]}"


def release(address: str) -> None:
    """Removes what listening on `address` has left in the file system."""
    if address.startswith("ipc://"):
        pathlib.Path(address.removeprefix("ipc://")).unlink(missing_ok=True)


def _parse(address: str) -> tuple[str, int] | str:
    try:
        return parse(address)
    except ValueError as e:
        raise AddressError(str(e)) from None


def _listen_tcp(host: str, port: int) -> socket.socket:
    family, _, _, _, name = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a restart; not beside another listener
        listener.bind(name)
        return _ready(listener)
    except BaseException:
        listener.close()
        raise


def _listen_ipc(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        if _is_answered(path):
            raise OSError(errno.EADDRINUSE, "in use")
        if pathlib.Path(path).is_socket():
            pathlib.Path(path).unlink()  # left behind by a process that died
        listener.bind(path)
        os.chmod(path, 0o600)  # before anybody can connect
        return _ready(listener)
    except BaseException:
        listener.close()
        raise


def _ready(listener: socket.socket) -> socket.socket:
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _is_answered(path: str) -> bool:
    """Whether a process listens on this path already."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError as e:
            if "too long" in str(e):
                raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket") from None
            return False
        return True
