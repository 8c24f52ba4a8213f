"""Where a kernel listens for `lip`: one rule, for the kernel that makes the socket and the client that looks for it."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT = "SYMPHONY_SOCKET"


def socket_path(environ: Mapping[str, str] = os.environ) -> Path:
    """`$SYMPHONY_SOCKET`, else `symphony/kernel.sock` in `$XDG_RUNTIME_DIR`, else in a directory of ours in /tmp."""
    given = environ.get(ENVIRONMENT)
    if given:
        return Path(given)
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "symphony" / "kernel.sock"
    return Path(f"/tmp/symphony-{os.getuid()}") / "kernel.sock"  # noqa: S108  (its owner is checked)


def check_private(path: Path) -> None:
    """Whoever can put a socket at `path` can stand in for the kernel, so nobody else may.

    Raises PermissionError with one line that says what to do, and FileNotFoundError without the directory.
    """
    ours = os.getuid()
    directory = path.parent.stat()
    writable = directory.st_mode & 0o022 and not directory.st_mode & stat.S_ISVTX
    if directory.st_uid not in (ours, 0) or writable:
        raise PermissionError(
            f"others may write {path.parent}: use a socket in a directory of your own ({ENVIRONMENT})"
        )
    if path.exists() and path.lstat().st_uid != ours:
        raise PermissionError(f"{path} belongs to another user: use a socket of your own ({ENVIRONMENT})")
