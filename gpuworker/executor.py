"""THE ORDER of one attachment: each piece of work is answered once, in its turn. No sockets, no threads, no clock.

A kernel sends batches ahead of the answers. When one fails, those sent before the kernel could know were built on
something that did not happen: they are void, and answered so untried. The kernel says in each batch how many
failures it has heard of; as both sides count the same answers, a difference is a failure on its way to the kernel.

Called by the compute thread of serve.py, and by simulations in its place. Never add retries: what becomes of failed
work is the kernel's to decide.
"""

import traceback
from collections.abc import Callable
from functools import partial
from typing import TypeAlias, TypeVar

from gpuworker import wire
from gpuworker.backend import Backend, StepError
from sdk.abi.errors import Errno

# A failure stands for work that was refused at the door, and is answered in the turn of that work.
Work: TypeAlias = wire.Batch | wire.Fetch | wire.Store | wire.BatchFailed | wire.PagesFailed
Answer: TypeAlias = wire.BatchDone | wire.BatchFailed | wire.Fetched | wire.Stored | wire.PagesFailed

Done = TypeVar("Done")
Failed = TypeVar("Failed")


class Executor:
    """Drives one backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.crash: str | None = None  # the bug that was met: nobody knows what the pages hold now, the worker must end
        self.begin()

    def begin(self) -> None:
        """A kernel attaches: it has heard of no failure, and can go on from no batch."""
        self._n_failed = 0
        self._last_is_done = False  # the batch before, of this attachment

    def answer(self, work: Work) -> Answer:
        """Does the work. Never raises."""
        match work:
            case wire.Batch():
                failed = partial(wire.BatchFailed, work.head.seq)
                return self._counted(self._guarded(lambda: self._run(work), failed))
            case wire.BatchFailed():
                return self._counted(work)
            case wire.Fetch(number, pages):
                head, refused = wire.FetchedHead(number), partial(wire.PagesFailed, number)
                return self._guarded(lambda: wire.Fetched(head, self._backend.fetch(pages)), refused)
            case wire.Store():
                return self._guarded(lambda: self._store(work), partial(wire.PagesFailed, work.head.number))
            case wire.PagesFailed():
                return work

    def _run(self, batch: wire.Batch) -> wire.BatchDone | wire.BatchFailed:
        head = batch.head
        if head.n_failed != self._n_failed:
            detail = f"void: sent when {head.n_failed} failures were known, after {self._n_failed}"
            return wire.BatchFailed(head.seq, Errno.EIO, detail, void=True)
        if not self._last_is_done and any(row.chained for row in head.rows):
            raise StepError(Errno.EINVAL, "a row is chained, but no batch was done before this one")
        return self._backend.run(batch)

    def _store(self, store: wire.Store) -> wire.Stored:
        self._backend.store(store.head.pages, store.contents)
        return wire.Stored(store.head.number)

    def _counted(self, answer: wire.BatchDone | wire.BatchFailed) -> wire.BatchDone | wire.BatchFailed:
        self._last_is_done = isinstance(answer, wire.BatchDone)
        if isinstance(answer, wire.BatchFailed) and not answer.void:
            self._n_failed += 1
        return answer

    def _guarded(self, do: Callable[[], Done], failed: Callable[[Errno, str], Failed]) -> Done | Failed:
        try:
            return do()
        except StepError as e:
            return failed(e.errno, e.detail)
        except Exception as e:  # a device that has faulted stays so
            traceback.print_exc()
            self.crash = f"the worker failed: {type(e).__name__}: {e}"
            return failed(Errno.EIO, self.crash)
