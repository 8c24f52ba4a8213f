"""Named channels between processes: bounded queues of messages, made by their first use.

A channel holds either messages or waiting readers, never both, and is forgotten when it holds neither. A reader that
goes away with a message that it did not see yet gives it back. Called by `kernel/sys_ipc.py` alone; knows no processes.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from sdk.abi.errors import QuotaExceeded


class Reader(Protocol):
    """Somebody who waits for a message."""

    @property
    def gone(self) -> bool:
        """It does not wait any more."""

    def complete(self, result: Any, give_back: Callable[[Any], None]) -> None:
        """Take a message."""


class Channel:
    """A named queue: either messages wait or readers do, never both."""

    __slots__ = ("messages", "readers")

    def __init__(self) -> None:
        self.messages: deque[Any] = deque()
        self.readers: deque[Reader] = deque()


class Channels:
    """All channels of a kernel, each of a bounded length."""

    def __init__(self, n_messages_max: int, n_channels_max: int) -> None:
        self.n_messages_max = n_messages_max
        self.n_channels_max = n_channels_max
        self._channels: dict[str, Channel] = {}

    def open(self, name: str) -> Channel:
        """The channel of that name, made if there is none. Raises QuotaExceeded."""
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
        """Raises QuotaExceeded."""
        channel = self.open(name)
        if self._deliver(name, channel, message):
            return
        if len(channel.messages) >= self.n_messages_max:
            raise QuotaExceeded(f"this channel holds {self.n_messages_max} messages that nobody has taken")
        channel.messages.append(message)

    def give_back(self, name: str, message: Any) -> None:
        """A message that its reader has not seen: it goes to the next one, or is the first again."""
        channel = self._channels.setdefault(name, Channel())
        if not self._deliver(name, channel, message):
            channel.messages.appendleft(message)

    def _deliver(self, name: str, channel: Channel, message: Any) -> bool:
        while channel.readers:
            reader = channel.readers.popleft()
            if not reader.gone:
                reader.complete(message, partial(self.give_back, name))
                self._forget(name)
                return True
        return False

    def take(self, name: str) -> deque[Any] | None:
        """The waiting messages of a channel, None when there are none."""
        channel = self._channels.get(name)
        return channel.messages if channel is not None and channel.messages else None

    def taken(self, name: str) -> None:
        self._forget(name)

    def wait(self, name: str, reader: Reader) -> None:
        self.open(name).readers.append(reader)

    def leave(self, name: str, reader: Reader) -> None:
        channel = self._channels.get(name)
        if channel is not None and reader in channel.readers:
            channel.readers.remove(reader)
        self._forget(name)
