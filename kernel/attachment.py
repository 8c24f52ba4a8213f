"""One attachment of one worker, as the rim holds it: its link, its batcher, and who waits for it.

A worker that is lost and comes back has another attachment; nothing that belongs to an old one is ever heard by
the new. Made by `kernel/fleet.py`.
"""

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Any

from gpuworker.wire import Assets, Fetch, Fetched, FromKernel, PagesFailed, Store, Stored, StoreHead
from kernel.batcher import Batcher
from kernel.link import Link
from kernel.local import LocalWorker
from kernel.workers import State, Worker
from kvfs.table import is_host, page_number
from sdk.abi.errors import SyscallError

ANSWER_S = 10.0  # for a worker to send pages, or to store them, behind the batches that it has


class AttachError(Exception):
    """A worker could not be attached or detached; the text is one line."""


class WorkerLost(Exception):
    """A worker was lost before it answered."""


class Attached:
    """The rim's side of one attachment of one worker."""

    def __init__(self, worker: Worker, link: Link, local: LocalWorker | None) -> None:
        self.worker = worker
        self.link = link
        self.local = local
        self.batcher: Batcher  # from its welcome on
        self.loop = asyncio.get_running_loop()
        self.assets: asyncio.Future[Assets] = self.loop.create_future()
        self.requests: dict[int, asyncio.Future[Any]] = {}  # of pages, by number
        self.pump_due = False
        self.kernel_s = 0.0  # that this process was busy with its batches since the last one was answered
        self.timer: asyncio.TimerHandle | None = None
        self._numbers = count(1)  # of requests
        self._waiting: list[asyncio.Future[None]] = []  # for a change

    async def changed(self) -> None:
        """Wait until a batch is answered, or the worker is lost."""
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def change(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def request(self, message: FromKernel, number: int, timeout_s: float) -> Any:
        """Send a `Fetch` or `Store` and get its answer. Raises WorkerLost, SyscallError."""
        if self.worker.state is State.LOST:
            raise WorkerLost(f"{self.worker.name} is gone")
        future = self.requests[number] = self.loop.create_future()
        self.link.send(message)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise WorkerLost(f"{self.worker.name} did not answer within {timeout_s:g} s") from None
        finally:
            self.requests.pop(number, None)

    async def fetch(self, entries: Sequence[int]) -> "bytes | memoryview":
        """The contents of pages, on the device or in its host memory (`kvfs/table.py`), behind the batches that it has.

        Raises WorkerLost, SyscallError."""
        number = next(self._numbers)
        fetched: Fetched = await self.request(Fetch(number, self._numbered(entries)), number, ANSWER_S)
        return fetched.contents

    async def store(self, entries: Sequence[int], contents: "bytes | memoryview") -> None:
        """Write the contents of such pages, behind the batches that it has. Raises WorkerLost, SyscallError."""
        number = next(self._numbers)
        await self.request(Store(StoreHead(number, self._numbered(entries)), contents), number, ANSWER_S)

    def _numbered(self, entries: Sequence[int]) -> list[int]:
        """Pages by the numbers that they have in a `Fetch`."""
        assert self.worker.welcome is not None
        n_device = self.worker.welcome.n_pages
        return [page_number(entry) + (n_device if is_host(entry) else 0) for entry in entries]

    def close(self, reason: str, linger_ms: int) -> None:
        """Nothing is heard or said any more; who waits for an answer is told so."""
        self.link.close(linger_ms=linger_ms)
        if self.timer is not None:
            self.timer.cancel()
        if not self.assets.done():  # whoever attaches it waits for them; a cancellation would be taken for theirs
            self.assets.set_exception(
                AttachError(f"worker {self.worker.name} was lost while it was being attached: {reason}")
            )
            self.assets.exception()
        for future in self.requests.values():
            if not future.done():
                future.set_exception(WorkerLost(reason))
                future.exception()
        self.change()

    def answered(self, message: Fetched | Stored | PagesFailed) -> None:
        """A request was answered."""
        number = message.head.number if isinstance(message, Fetched) else message.number
        future = self.requests.pop(number, None)
        if future is None or future.done():
            return
        if isinstance(message, PagesFailed):
            future.set_exception(SyscallError.make(message.errno, message.detail))
        else:
            future.set_result(message)

    def take_kernel_s(self) -> float:
        """How long it was since the last look, a batch ago."""
        spent = self.kernel_s + self.link.take_decode_s()
        self.worker.kernel_s += spent
        self.kernel_s = 0.0
        return spent

    @property
    def ready(self) -> bool:
        return self.worker.state is State.READY
