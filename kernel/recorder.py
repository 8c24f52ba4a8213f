"""The recorder: puts into the journal what is to count from now on, much of it at once. A part of `kernel/durable.py`.

Whoever has saved a file or changed a name asks here, and waits. Those who ask while the disk is busy are recorded
together, by one `Store.commit` and its syncs, in the order in which they asked. Nobody waits for others to come.

Never add here: what is recorded, and what is said when it cannot be.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from kvfs.store.store import Commit, Store

Run = Callable[..., "asyncio.Future[Any]"]  # a function and its arguments, behind all that the disk has to do by then


class Recorder:
    """Of one store."""

    def __init__(self, store: Store, run: Run, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        """`spawn` starts a task of the kernel's."""
        self._store = store
        self._run = run
        self._spawn = spawn
        self._asked: list[tuple[Commit, asyncio.Future[None]]] = []  # and who waits for it
        self._is_busy = False

    def record(self, commit: Commit) -> "asyncio.Future[None]":
        """Ends when it is on disk. Raises OSError; see `Store.commit` for what has happened then."""
        recorded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append((commit, recorded))
        if not self._is_busy:
            self._is_busy = True
            self._spawn(self._record_all())
        return recorded

    async def _record_all(self) -> None:
        while self._asked:
            await self._run(int)  # nothing: but the disk has something to do until then, and others join
            asked, self._asked = self._asked, []
            error: BaseException | None = None
            try:
                await self._run(self._store.commit, [commit for commit, _ in asked])
            except BaseException as e:
                error = e
            for _, recorded in asked:
                if recorded.done():
                    continue  # nobody waits any more: the kernel stops
                if error is None:
                    recorded.set_result(None)
                else:
                    recorded.set_exception(error)
        self._is_busy = False
