"""Messages: between programs on named channels, and between a program and the client that started it.

A channel exists while somebody names it; its messages are JSON-able values, taken in the order they were sent,
each by exactly one receiver.
"""

from dataclasses import dataclass
from typing import Any

from sdk import syscalls
from sdk.syscalls import emit, input  # noqa: A004

__all__ = ["Channel", "emit", "input"]


@dataclass(frozen=True)
class Channel:
    """A named queue of messages that any program of the same kernel may use."""

    name: str

    async def send(self, message: Any) -> None:
        """Put a message at the end; never waits.

        Raises InvalidArgument when it is not JSON-able and QuotaExceeded when the channel is full.
        """
        await syscalls.send(self.name, message)

    async def recv(self, timeout: float | None = None) -> Any:
        """Take the oldest message, waiting for one. Raises TimedOut after `timeout` seconds."""
        return await syscalls.recv(self.name, timeout=timeout)
