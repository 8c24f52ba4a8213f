"""WHERE a worker listens: the spelling of addresses, which of them are safe, and the bound socket.

zmq accepts ports that it then cuts to 16 bits, and takes an ipc path away from whoever listens on it; both are
refused here with a line that says what to write. Called by serve.py and __main__.py.
"""

import errno
import ipaddress
import os
import pathlib
import re
import socket

import zmq

MAX_MESSAGE_BYTES = 64 << 20  # one frame; a larger one ends the connection inside zmq

TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]]+):(?P<port>\*|[0-9]{1,5})")
HINT = "write tcp://127.0.0.1:7001 or ipc:///path/to/socket"
REASONS = {
    errno.EADDRINUSE: "the address is in use",
    errno.ENODEV: "this machine has no such address",
    errno.ENOENT: "the directory does not exist",
    errno.ENAMETOOLONG: "the path is too long for a socket",
}


class AddressError(Exception):
    """The address cannot be listened on. One line that says why."""


def is_private(address: str) -> bool:
    """Whether only this machine can reach it. Raises AddressError when it is no address of ours.

    The link is neither encrypted nor authenticated: whoever reaches it can use the worker."""
    if re.fullmatch(r"ipc://[^@*].*", address):  # a path; zmq's @abstract names have no permissions
        return True
    tcp = TCP.fullmatch(address)
    if tcp is None or (tcp["port"] != "*" and int(tcp["port"]) > 65535):
        raise AddressError(f"{address!r} is no address to listen on: {HINT}")
    try:
        return ipaddress.ip_address(tcp["host"].strip("[]")).is_loopback
    except ValueError:
        return tcp["host"] == "localhost"


def bind(context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> "zmq.Socket[bytes]":
    """A ROUTER that listens on `address`. Raises AddressError."""
    is_private(address)
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.IPV6, "[" in address)
    try:
        if _is_answered(address):
            raise zmq.ZMQError(errno.EADDRINUSE)
        router.bind(address)
        if address.startswith("ipc://"):
            os.chmod(address.removeprefix("ipc://"), 0o600)
    except zmq.ZMQError as e:
        router.close()
        reason = REASONS.get(e.errno or 0) or e.strerror
        raise AddressError(f"cannot listen on {address}: {reason}") from None
    return router


def release(address: str) -> None:
    """Removes what listening on `address` has left in the file system, which zmq does not."""
    if address.startswith("ipc://"):
        pathlib.Path(address.removeprefix("ipc://")).unlink(missing_ok=True)


def _is_answered(address: str) -> bool:
    """Whether a process listens on this ipc address already."""
    if not address.startswith("ipc://"):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address.removeprefix("ipc://"))
        except OSError:
            return False
        return True
