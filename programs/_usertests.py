"""The harness of `programs/usertests.py`: runs the tests, and keeps count of the calls and errors they meet."""

import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import sdk
from sdk import Errno, KVFile, SyscallError, kv
from sdk.abi.table import TABLE, Syscall
from sdk.abi.trap import door, trap
from sdk.abi.values import FileKind

TEXT = "The quick brown fox jumps over the lazy dog."

# What a program cannot bring about by itself: a full device, a missing worker, a lost one, a second user's files,
# limits that the operator sets, a client that goes away, what a model's own template refuses, and the files of another.
BEYOND = {Errno.ENOSPC, Errno.ENODEV, Errno.EIO, Errno.EDQUOT, Errno.ESTALE}
BEYOND_OF = {
    "apply_chat_template": {Errno.EINVAL, Errno.ENOSYS},
    "emit": {Errno.EPIPE},
    "kill": {Errno.EACCES},
    "chown": {Errno.EACCES, Errno.EBUSY},
    **{name: {Errno.EACCES} for name in ("chmod", "create", "fork", "link", "mkdir", "open", "readdir", "rename")},
    **{name: {Errno.EACCES, Errno.EXDEV} for name in ("extract", "merge")},
    "splice": {Errno.EXDEV},
    "sync": {Errno.EINVAL, Errno.ENOSYS},  # one with --kv-dir, the other without
    **{name: {Errno.EACCES} for name in ("quota", "stat", "unlink")},
}


class Tally:
    """What the tests have met so far."""

    def __init__(self, home: str) -> None:
        self.home = home  # a directory for files with names
        self.called: set[str] = set()
        self.refused: set[tuple[str, Errno]] = set()

    def watch(self) -> None:
        """Put a door before the kernel's that notes the calls."""
        enter = door.get()

        def watched(call: Syscall[Any]) -> Any:
            self.called.add(TABLE[type(call)].name)
            return enter(call)

        door.set(watched)

    async def refuses(self, errno: Errno, *refused: Syscall[Any]) -> None:
        """Each of these calls must fail with `errno`."""
        for call in refused:
            name = TABLE[type(call)].name
            try:
                await trap(call)
            except SyscallError as e:
                if e.errno is not errno:
                    raise AssertionError(f"{name} failed with {e}, not with {errno}") from None
            else:
                raise AssertionError(f"{name} did not fail with {errno}")
            self.refused.add((name, errno))

    def unmet(self) -> list[str]:
        """Calls and errors of the table that nobody has met."""
        missing = [e.name for e in TABLE.values() if e.name not in self.called]
        for entry in TABLE.values():
            expected = set(entry.errnos) - BEYOND_OF.get(entry.name, set())
            expected -= BEYOND if entry.name != "send" else set()
            missing += [f"{errno} of {entry.name}" for errno in expected if (entry.name, errno) not in self.refused]
        return sorted(missing)


Test = Callable[[Tally], Awaitable[None]]
TESTS: list[Test] = []


def test(function: Test) -> Test:
    """Register a test."""
    TESTS.append(function)
    return function


async def run(function: Test, tally: Tally) -> str | None:
    """One test and its line. Returns its name when it fails."""
    name = getattr(function, "__name__", "test")
    try:
        await function(tally)
    except Exception as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        await sdk.emit(f"FAILED {name}: {type(e).__name__}: {e} (line {frame.lineno}: {frame.line})\n")
        return name
    await sdk.emit(f"ok {name}\n")
    return None


async def sample_file(path: str | None = None) -> KVFile:
    """An open file that has something in it."""
    file = await kv.create(path)
    await file.append(TEXT)
    return file


async def sweep(directory: str) -> None:
    """Unlink a directory with all that failed tests have left in it."""
    for entry in await kv.readdir(directory):
        path = f"{directory}/{entry.name}"
        await (sweep(path) if entry.kind is FileKind.DIRECTORY else kv.unlink(path))
    await kv.unlink(directory)
