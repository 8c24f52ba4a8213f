"""Addresses: what can be listened on, who can reach it, and what is said when it cannot be."""

import socket
from pathlib import Path

import pytest

from gpuworker.address import AddressError, address_of, is_private, listen


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("tcp://127.0.0.1:7001", True),
        ("tcp://127.8.8.8:*", True),
        ("tcp://localhost:7001", True),
        ("tcp://[::1]:7001", True),
        ("ipc:///run/w", True),
        ("ipc://w", True),
        ("tcp://0.0.0.0:7001", False),
        ("tcp://*:7001", False),
        ("tcp://[::]:7001", False),
        ("tcp://10.1.2.3:7001", False),
        ("tcp://eth0:7001", False),
    ],
)
def test_who_can_reach_it(address: str, private: bool) -> None:
    assert is_private(address) is private


@pytest.mark.parametrize(
    "address",
    [
        "",
        "7001",
        "tcp://",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:80x",
        "tcp://::1:80",
        "udp://127.0.0.1:7001",
        "inproc://x",
        "ipc://",
        "ipc://*",
        "ipc://@abstract",
        "http://127.0.0.1:7001",
    ],
)
def test_no_address(address: str) -> None:
    with pytest.raises(AddressError, match="write tcp://"):
        is_private(address)


def test_a_tcp_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(AddressError, match="in use"):
        listen(f"tcp://127.0.0.1:{other.getsockname()[1]}")


def test_an_ipc_path_is_not_taken_from_its_owner(tmp_path: Path) -> None:
    with listen(f"ipc://{tmp_path}/w"), pytest.raises(AddressError, match="in use"):
        listen(f"ipc://{tmp_path}/w")


def test_an_ipc_path_that_nobody_listens_on_is_taken(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "w"))
    listen(f"ipc://{tmp_path}/w").close()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ipc:///nowhere/at/all", "directory"),
        ("ipc://" + "x" * 200, "too long"),
        ("tcp://203.0.113.7:7001", "."),
        ("tcp://no-such-interface:7001", "no such address"),
    ],
)
def test_what_cannot_be_bound(address: str, why: str) -> None:
    with pytest.raises(AddressError, match=why) as e:
        listen(address)
    assert "\n" not in str(e.value)


def test_a_free_port_is_told() -> None:
    with listen("tcp://127.0.0.1:*") as listener:
        port = listener.getsockname()[1]
        assert port > 0
        assert address_of(listener) == f"tcp://127.0.0.1:{port}"


def test_only_its_user_may_use_an_ipc_path(tmp_path: Path) -> None:
    with listen(f"ipc://{tmp_path}/w"):
        assert (tmp_path / "w").stat().st_mode & 0o077 == 0
