"""A lock on a KV file, as a block of a program: `async with file.lock(): ...`."""

from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

from sdk import syscalls
from sdk.abi.errors import BadFile
from sdk.abi.values import Fd, LockMode, choice

Mode = LockMode | Literal["shared", "exclusive"]


class FileLock:
    """Holds the lock from the beginning of an `async with` block to its end. Made by `KVFile.lock`."""

    def __init__(self, fd: Fd, mode: Mode, timeout: float | None) -> None:
        self._fd = fd
        self._mode = mode
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        await self.convert(self._mode, timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(BadFile):  # the file was closed in the block, and the lock went with it
            await syscalls.unlock(self._fd)

    async def convert(self, mode: Mode, *, timeout: float | None = None) -> None:
        """Make it shared, which is immediate, or exclusive, which waits for the others and keeps the shared lock
        meanwhile. Raises TimedOut, Deadlock (two that both want to go up); then it is what it was."""
        await syscalls.lock(self._fd, mode=choice(LockMode, mode), timeout=timeout)
