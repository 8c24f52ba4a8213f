"""A server in a thread, kernels at the other end of real sockets, and devices that stand still or break."""

import threading
from array import array
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from gpuworker import wire
from gpuworker.backend import Backend, Facts
from gpuworker.null import NullBackend
from gpuworker.serve import Server
from gpuworker.wire import Ask, Batch, BatchDone, BatchHead, Row
from tests.gpuworker.connection import PATIENCE_S, Connection


class GatedDevice:
    """A device that starts a step and then stands still until the test opens its gate."""

    def __init__(self, gate_open: bool = True, **options: Any) -> None:
        self.inner = NullBackend(**options)
        self.started: list[int] = []
        self.has_started = threading.Semaphore(0)
        self.gate = threading.Event()
        if gate_open:
            self.gate.set()

    def info(self) -> Facts:
        return self.inner.info()

    def assets(self) -> wire.Assets:
        return self.inner.assets()

    def fetch(self, pages: Sequence[int]) -> bytes:
        return self.inner.fetch(pages)

    def store(self, pages: Sequence[int], contents: bytes | memoryview) -> None:
        self.inner.store(pages, contents)

    def run(self, batch: Batch) -> BatchDone:
        self.started.append(batch.head.seq)
        self.has_started.release()
        assert self.gate.wait(PATIENCE_S)
        return self.inner.run(batch)


class BrokenDevice(GatedDevice):
    """A device whose steps fail."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def run(self, batch: Batch) -> BatchDone:
        raise self.error


class Clock:
    """Stands still until the test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Kernel(Connection):
    """The other end, under a name."""

    def __init__(self, address: str, name: str = "k1") -> None:
        super().__init__(address)
        self.name = name

    def greet(self, kind: Any, name: str | None = None, schema: str = wire.WIRE_HASH) -> Any:
        return super().greet(kind, name or self.name, schema)

    def attach(self) -> "Kernel":
        self.greet(wire.Welcome)
        return self

    def ping(self, nonce: int = 1) -> wire.Pong:
        """Also: all that was sent before has been read."""
        self.tell(wire.Ping(nonce))
        pong: wire.Pong = self.hear(wire.Pong)
        assert pong.nonce == nonce
        return pong


class House:
    """A server in a thread, and its kernels."""

    def __init__(self, path: Path) -> None:
        self.address = f"ipc://{path}"
        self.clock = Clock()
        self.log: list[str] = []
        self.reason: str | None = None
        self.kernels: list[Kernel] = []

    def serve(self, backend: Backend, **options: Any) -> None:
        self.server = Server(self.address, name="w1", log=self.log.append, clock=self.clock, **options)
        self.thread = threading.Thread(target=self._run, args=(backend,))
        self.thread.start()

    def _run(self, backend: Backend) -> None:
        with closing(self.server):
            self.reason = self.server.run(backend)

    def kernel(self, name: str = "k1") -> Kernel:
        self.kernels.append(Kernel(self.address, name))
        return self.kernels[-1]

    def ended(self) -> str | None:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.reason

    def close(self) -> None:
        self.server.stop("the test is over")
        self.ended()
        for kernel in self.kernels:
            kernel.close()


def batch(seq: int, n_new: int = 1, n_before: int = 0, n_failed: int = 0) -> Batch:
    n_pages = -(-(n_before + n_new) // 16)
    head = BatchHead(seq, [], [Row(seq, n_before, n_new, n_pages, [Ask(n_new - 1, top_k=3)])], n_failed)
    tokens = [65 + seq % 26] * n_new
    return Batch(head, *(array("I", a) for a in (tokens, range(n_before, n_before + n_new), range(n_pages), ())))
