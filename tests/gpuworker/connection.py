"""The other end of a worker's socket, for tests: a client that waits for what it wants."""

import select
import socket
from collections import deque
from typing import Any

from gpuworker import wire
from gpuworker.stream import Assembler, Frames, parse, pieces

PATIENCE_S = 20.0  # how long a test waits before it fails; nothing waits that long


class Connection:
    """A connection to the worker at `address`."""

    def __init__(self, address: str) -> None:
        place = parse(address)
        self.socket = socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(place)
        self._assembler = Assembler(1 << 30)
        self._messages: deque[Frames] = deque()

    def send(self, frames: Frames) -> None:
        for piece in pieces(frames):
            self.socket.sendall(piece)

    def receive(self) -> Frames:
        """The next message. Raises EOFError at the end of the stream."""
        while not self._messages:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError("the worker has closed the connection")
            self._messages += self._assembler.feed(data)
        return self._messages.popleft()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has come that was not received."""
        return not self._messages and not select.select([self.socket], [], [], 0)[0]

    def close(self) -> None:
        self.socket.close()

    # --- messages ---

    def tell(self, message: wire.FromKernel) -> None:
        self.send(wire.encode(message))

    def hear(self, kind: Any) -> Any:
        message = wire.decode_to_kernel(self.receive())
        assert isinstance(message, kind), message
        return message

    def greet(self, kind: Any, name: str = "k1", schema: str = wire.WIRE_HASH) -> Any:
        self.send(wire.encode_greeting(wire.Hello(schema, name)))
        answer = wire.decode_greeting(self.receive())
        assert isinstance(answer, kind), answer
        return answer
