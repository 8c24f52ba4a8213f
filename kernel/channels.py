"""Named channels between processes: bounded queues of messages, made by their first use.

A channel holds either messages or waiting readers, never both, and is forgotten when it holds neither. Called by
`kernel/sys_ipc.py` alone; knows no processes.
"""

import asyncio
from collections import deque
from typing import Any

from sdk.abi.errors import QuotaExceeded


class Channel:
    """A named queue: either messages wait or readers do, never both."""

    __slots__ = ("messages", "readers")

    def __init__(self) -> None:
        self.messages: deque[Any] = deque()
        self.readers: deque[asyncio.Future[Any]] = deque()


class Channels:
    """All channels of a kernel, each of a bounded length."""

    def __init__(self, n_messages_max: int, n_channels_max: int) -> None:
        self.n_messages_max = n_messages_max
        self.n_channels_max = n_channels_max
        self._channels: dict[str, Channel] = {}

    def _open(self, name: str) -> Channel:
        channel = self._channels.get(name)
        if channel is None:
            if len(self._channels) >= self.n_channels_max:
                raise QuotaExceeded(f"{self.n_channels_max} channels are in use")
            channel = self._channels[name] = Channel()
        return channel

    def _forget(self, name: str) -> None:
        channel = self._channels.get(name)
        if channel is not None and not channel.messages and not channel.readers:
            del self._channels[name]

    def send(self, name: str, message: Any) -> None:
        channel = self._open(name)
        while channel.readers:
            reader = channel.readers.popleft()
            if not reader.done():
                reader.set_result(message)
                self._forget(name)
                return
        if len(channel.messages) >= self.n_messages_max:
            raise QuotaExceeded(f"channel {name!r} holds {self.n_messages_max} messages that nobody has taken")
        channel.messages.append(message)

    def take(self, name: str) -> deque[Any] | None:
        """The waiting messages of a channel, None when there are none."""
        channel = self._channels.get(name)
        return channel.messages if channel is not None and channel.messages else None

    def taken(self, name: str) -> None:
        self._forget(name)

    def wait(self, name: str, reader: "asyncio.Future[Any]") -> None:
        self._open(name).readers.append(reader)

    def leave(self, name: str, reader: "asyncio.Future[Any]") -> None:
        channel = self._channels.get(name)
        if channel is not None and reader in channel.readers:
            channel.readers.remove(reader)
        self._forget(name)
