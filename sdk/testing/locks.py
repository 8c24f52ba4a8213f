"""Locks in the fake kernel: who has a file locked, and who waits. They are given in no particular order; of threads
that wait for each other the last one is refused, whichever process it belongs to.
"""

import asyncio
from typing import Any, ClassVar, NamedTuple

from sdk.abi import calls
from sdk.abi.errors import BadFile, Busy, Deadlock, TimedOut
from sdk.abi.values import Fd, LockMode, Pid

Holder = tuple[Pid, Fd]
Thread = asyncio.Task[Any] | None


class Wait(NamedTuple):
    """Somebody who waits for a lock."""

    lock: "FileLock"
    who: Holder
    mode: LockMode
    woken: asyncio.Future[bool]  # False: the handle was closed


class FileLock:
    """The locks of one file."""

    waits: ClassVar[dict[Thread, Wait]] = {}  # of all files

    def __init__(self) -> None:
        self.held: dict[Holder, LockMode] = {}
        self._threads: dict[Holder, Thread] = {}  # that took them

    def others(self, who: Holder, mode: LockMode) -> list[Pid]:
        """The processes whose locks are in the way of this one."""
        return [pid for pid, _ in self._in_the_way(who, mode)]

    def _in_the_way(self, who: Holder, mode: LockMode) -> list[Holder]:
        return [other for other, held in self.held.items() if other != who and LockMode.EXCLUSIVE in (held, mode)]

    async def acquire(self, who: Holder, call: calls.Lock) -> None:
        if any(wait.lock is self and wait.who == who for wait in self.waits.values()):
            raise Busy("another thread waits for a lock with this handle: give each a handle of its own")
        thread = asyncio.current_task()
        try:
            async with asyncio.timeout(call.timeout):
                while self._in_the_way(who, call.mode):
                    await self._wait(thread, who, call)
        except TimeoutError:
            pids = self.others(who, call.mode)
            raise TimedOut(f"this file was locked for {call.timeout} s by process {pids}") from None
        self.held[who], self._threads[who] = call.mode, thread
        self._wake()  # it may be less than it had

    async def _wait(self, thread: Thread, who: Holder, call: calls.Lock) -> None:
        woken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waits[thread] = Wait(self, who, call.mode, woken)
        try:
            if call.timeout != 0 and self._waits_for(thread, thread, set()):
                raise Deadlock("this thread would wait for itself: unlock what it has first")
            if not await woken:
                raise BadFile("the handle was closed while this waited for a lock")
        finally:
            del self.waits[thread]

    def _waits_for(self, thread: Thread, wanted: Thread, seen: set[Thread]) -> bool:
        """Whether a thread that waits does so, by way of others, for the wanted one."""
        wait = self.waits.get(thread)
        if wait is None or thread in seen:
            return False
        seen.add(thread)
        threads = [wait.lock._threads[other] for other in wait.lock._in_the_way(wait.who, wait.mode)]
        return wanted in threads or any(self._waits_for(other, wanted, seen) for other in threads)

    def release(self, who: Holder, *, closed: bool = False) -> None:
        self.held.pop(who, None)
        self._threads.pop(who, None)
        for wait in self.waits.values():
            if closed and wait.lock is self and wait.who == who and not wait.woken.done():
                wait.woken.set_result(False)
        self._wake()

    def check_writer(self, who: Holder) -> None:
        """Raises Busy when another handle has the file exclusively."""
        if LockMode.EXCLUSIVE in self.held.values() and who not in self.held:
            raise Busy(f"this file is locked by process {next(iter(self.held))[0]}")

    def _wake(self) -> None:
        for wait in self.waits.values():
            if wait.lock is self and not wait.woken.done():
                wait.woken.set_result(True)
