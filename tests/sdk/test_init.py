"""`import sdk` is cheap and says what it offers."""

import subprocess
import sys

import sdk
from sdk.abi import errors


def test_importing_the_sdk_loads_no_heavy_package() -> None:
    """The kernel, kvfs and the workers run `sdk/__init__.py` whenever they import `sdk.abi`."""
    heavy = {"httpx", "typer", "numpy", "torch", "rich", "uvloop", "starlette"}
    code = f"import sys, sdk, sdk.syscalls, sdk.testing; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist_and_are_sorted() -> None:
    assert all(hasattr(sdk, name) for name in sdk.__all__)
    assert list(sdk.__all__) == sorted(sdk.__all__)


def test_every_error_of_the_table_can_be_caught_by_name() -> None:
    for errno in errors.Errno:
        raised = errors.SyscallError.make(errno, "detail")
        assert type(raised).__name__ in sdk.__all__, errno
        assert str(raised) == f"{errno}: detail"


def test_greedy_is_the_default() -> None:
    assert sdk.Sampling().temperature == 0.0
    assert sdk.Decoding().sampling == sdk.Sampling()
