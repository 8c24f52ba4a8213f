"""Where the socket is, and who may be trusted to have put it there."""

import os
import socket
from pathlib import Path

import pytest

from sdk.abi.paths import check_private, socket_path


def test_the_first_that_is_set_counts() -> None:
    environ = {"SYMPHONY_SOCKET": "/a/b.sock", "XDG_RUNTIME_DIR": "/run/user/7"}
    assert socket_path(environ) == Path("/a/b.sock")
    environ["SYMPHONY_SOCKET"] = ""
    assert socket_path(environ) == Path("/run/user/7/symphony/kernel.sock")
    assert socket_path({}) == Path(f"/tmp/symphony-{os.getuid()}/kernel.sock")


def test_a_directory_of_our_own_will_do(tmp_path: Path) -> None:
    check_private(tmp_path / "k.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "k.sock"))
        check_private(tmp_path / "k.sock")


def test_a_sticky_directory_of_roots_will_do() -> None:
    check_private(Path("/tmp/no-such-socket-here"))


def test_a_directory_that_others_may_write_will_not(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with pytest.raises(PermissionError, match="others may write"):
        check_private(tmp_path / "k.sock")


def test_anothers_directory_will_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:
        os.chown(tmp_path, 12345, 12345)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="others may write"):
        check_private(tmp_path / "k.sock")


def test_anothers_socket_will_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Path("/tmp") / f"symphony-test-{os.getpid()}"  # in a sticky directory, as an impostor would have it
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory))
        try:
            monkeypatch.setattr(os, "getuid", lambda: 12345)
            with pytest.raises(PermissionError, match="belongs to another user"):
                check_private(directory)
        finally:
            directory.unlink()


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_private(tmp_path / "nix" / "k.sock")
