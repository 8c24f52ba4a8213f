"""Having lost workers back: our own is started again, somebody else's is greeted until it answers.

Asked by `kernel/fleet.py` when a worker is lost. Never add here what becomes of the jobs: they do not wait for this.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from kernel.attachment import AttachError
from kernel.local import LocalWorker, WorkerFailed

log = logging.getLogger(__name__)

REJOIN_S = (0.1, 5.0)  # a lost worker is tried again after the first, then ever later up to the second
RESTARTS = (3, 60.0)  # of our own worker: so many in so many seconds


class Recovery:
    """Of one fleet's workers."""

    def __init__(
        self,
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
        greet: Callable[[str], Awaitable[Any]],
        start_local: Callable[[Path], Awaitable[Any]],
    ) -> None:
        """`greet` attaches the worker at an address, and raises AttachError; `start_local` starts one of ours, and
        raises that or WorkerFailed."""
        self._spawn, self._greet, self._start_local = spawn, greet, start_local
        self._sought: dict[str, asyncio.Task[None]] = {}
        self._restarts: list[float] = []
        self.directory: Path | None = None  # of our own workers

    @property
    def sought(self) -> list[str]:
        """Workers that were lost and are looked for."""
        return list(self._sought)

    def seek(self, name: str) -> None:
        """Look for a worker of somebody else: it may have been cut off, and waits to be greeted."""
        if name not in self._sought:
            self._sought[name] = self._spawn(self._seek(name))

    def give_up(self, name: str) -> bool:
        """Look for it no more. Whether it was looked for."""
        task = self._sought.pop(name, None)
        if task is not None:
            task.cancel()
        return task is not None

    async def _seek(self, name: str) -> None:
        wait_s, longest_s = REJOIN_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, longest_s)
            with contextlib.suppress(AttachError):
                await self._greet(name)
                self._sought.pop(name, None)
                log.info("worker %s is back", name)
                return

    def restart(self, local: LocalWorker) -> None:
        """Our own worker: end what is left of it, and start another."""
        self._spawn(self._restart(local))

    async def _restart(self, local: LocalWorker) -> None:
        await local.kill()
        now = asyncio.get_running_loop().time()
        n_max, period_s = RESTARTS
        self._restarts = [at for at in self._restarts if now - at < period_s]
        if len(self._restarts) >= n_max:
            log.error("the local worker was lost %d times in %g s: it is not started again", n_max + 1, period_s)
            return
        self._restarts.append(now)
        assert self.directory is not None
        try:
            await self._start_local(self.directory)
        except (WorkerFailed, AttachError) as e:
            log.error("the local worker does not start again: %s", e)
