"""ONE CONNECTION to a worker, from its side: messages in, messages out, and no waiting for either.

Received from by the I/O thread of serve.py alone; sent to by its compute thread as well, so that an answer leaves
without another thread's turn. What the socket does not take at once waits here, and the I/O thread goes on with it
(`flush`) when there is room. Never put in here what messages mean.
"""

import socket
import threading
from collections import deque

from gpuworker.stream import Assembler, Frames, pieces

RECEIVE_BYTES = 1 << 18
MAX_BACKLOG_BYTES = 256 << 20  # that a peer has not read; it is given up then


class Peer:
    """A connection that was accepted."""

    def __init__(self, connection: socket.socket, max_message_bytes: int) -> None:
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self.n_faults = 0  # messages that did not decode
        self._assembler = Assembler(max_message_bytes)
        self._lock = threading.Lock()  # of what follows, and of sending
        self._backlog: deque[memoryview] = deque()
        self._n_backlog = 0
        self._is_open = True

    def receive(self) -> list[list[memoryview]] | None:
        """The messages that have come; None at the end of the stream. Raises StreamError."""
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        return list(self._assembler.feed(data)) if data else None

    def send(self, frames: Frames) -> bool:
        """Send, or queue what does not fit; False when some is queued: `flush` it. Raises OSError when it cannot be
        sent, now or ever."""
        with self._lock:
            if not self._is_open:
                raise BrokenPipeError("the connection is closed")
            for piece in pieces(frames):
                self._backlog.append(memoryview(piece))
                self._n_backlog += len(piece)
            return self._flush()

    def flush(self) -> bool:
        """Go on sending what is queued; whether all has left. Raises OSError."""
        with self._lock:
            return not self._is_open or self._flush()

    def _flush(self) -> bool:
        if self._n_backlog > MAX_BACKLOG_BYTES:
            raise TimeoutError(f"{self._n_backlog} bytes wait for it to read them")
        while self._backlog:
            try:
                n = self.socket.send(self._backlog[0])
            except (BlockingIOError, InterruptedError):
                return False
            self._n_backlog -= n
            if n == len(self._backlog[0]):
                self._backlog.popleft()
            else:
                self._backlog[0] = self._backlog[0][n:]
        return True

    def close(self, linger_s: float = 0.0) -> None:
        """Close; what is queued has `linger_s` left to leave. Safe to call twice."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            try:
                if linger_s and self._backlog:
                    self.socket.settimeout(linger_s)
                    for piece in self._backlog:
                        self.socket.sendall(piece)
            except OSError:
                pass
            finally:
                self._backlog.clear()
                self.socket.close()
