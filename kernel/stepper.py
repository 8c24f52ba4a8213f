"""Drives the coroutines of programs, one step at a time, inside ordinary asyncio tasks.

A `Stepper` stands between an asyncio.Task and a program's coroutine. It sees every `send` and `throw`, so a
program may use all of asyncio and still cannot escape:

- `SystemExit` and `KeyboardInterrupt` end the process instead of the event loop;
- tasks that a program makes are adopted by its process (`install`, through the loop's task factory), up to a limit;
- a step that takes too long is interrupted (`kernel/guard.py`), and with it the process ends;
- a process that must end gets `Killed` thrown into each of its threads, `DEATH_THROES` times over if it swallows it;
  then its coroutine is abandoned where it stands, and the task ends anyway;
- time on the stack is charged to the process.

`kernel/process.py` owns the processes; this file knows of one only what `Owner` names. Nothing here schedules,
and nothing here may await.
"""

import asyncio
import contextlib
import ctypes
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from kernel import guard as guards
from kernel import storm
from kernel.guard import guard
from kernel.waits import LONG_S
from sdk.abi.errors import Killed, QuotaExceeded

T = TypeVar("T")

N_THREADS_MAX = 1024
DEATH_THROES = 8  # how often `Killed` is thrown again at a coroutine that swallows it


class Owner(guards.Owner, Protocol):
    """A process, as the stepper sees it."""

    cpu_s: float
    left_at: float  # when its last step ended, on `clock`

    @property
    def trace(self) -> object:
        """Not None while it is recorded."""

    def clock(self) -> float:
        """Seconds on the guard's clock; a simulation has its own."""

    def returned(self, coroutine: Coroutine[Any, Any, Any], now: float) -> None:
        """A thread is about to go on after an absence that is worth remembering."""

    def adopt(self, task: "asyncio.Task[Any]") -> None:
        """A thread of this process has begun."""

    def stepped(self, thread: Any, began: float, awaited: Any) -> None:
        """A step that is recorded is over; its thread awaits something now."""


current: ContextVar[Owner] = ContextVar("symphony_process")


class Stepper(Coroutine[Any, Any, T]):
    """A coroutine that runs another one on behalf of `owner`."""

    __slots__ = ("__name__", "__qualname__", "coroutine", "owner")

    def __init__(self, owner: Owner, coroutine: Coroutine[Any, Any, T]) -> None:
        self.owner = owner
        self.coroutine = coroutine
        self.__name__ = getattr(coroutine, "__name__", "thread")
        self.__qualname__ = getattr(coroutine, "__qualname__", "thread")

    def __await__(self) -> Generator[Any, Any, T]:
        raise TypeError("a stepper is driven by its task alone")

    def send(self, value: Any) -> Any:
        if self.owner.dying:
            return self._kill()
        return self._step(self.coroutine.send, value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        if self.owner.dying:
            return self._kill()
        return self._step(self.coroutine.throw, typ if val is None else val)

    def close(self) -> None:
        self._step(self.coroutine.close)

    def _step(self, act: Callable[..., Any], *args: Any) -> Any:
        """Do something that runs the program, under the guard's eyes and on the process's account."""
        owner = self.owner
        began = owner.clock()
        if began - owner.left_at >= LONG_S:
            owner.returned(self.coroutine, began)
        outer, outer_began = guard.owner, guard.began  # not None: an eager task, inside of another's step
        guard.owner = owner
        guard.began = began
        if guard.asleep:
            guard.wake()
        awaited = None
        try:
            try:
                awaited = act(*args)
                return awaited
            finally:
                if guard.over:  # before anything else: what is interrupted from here on is ours
                    try:  # noqa: SIM105  (`suppress` is Python code, and would be what is interrupted)
                        storm.end()
                    except storm.Calm:
                        pass
                    guard.calm()
                guard.owner = outer
                if outer is not None:
                    guard.began = outer_began
                owner.left_at = left = owner.clock()
                owner.cpu_s += left - began
                if owner.trace is not None:
                    owner.stepped(self, began, awaited)
        except (SystemExit, KeyboardInterrupt) as e:
            self._leave(e)
        except Killed:
            raise asyncio.CancelledError from None

    def _leave(self, e: BaseException) -> None:
        """The program ended itself, in whichever thread: the loop must not see how."""
        if isinstance(e, SystemExit):
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
            self.owner.end(code, "" if code == 0 or isinstance(e.code, int) else str(e.code))
        else:
            self.owner.end(130, "KeyboardInterrupt")
        raise asyncio.CancelledError

    def _kill(self) -> Any:
        """End the coroutine, or give it up; a thread of a dying process never waits again."""
        with contextlib.suppress(BaseException):  # whatever it says: it was told to end
            self._step(self._unwind)
        if getattr(self.coroutine, "cr_frame", None) is not None:
            bury(self.coroutine)
        raise asyncio.CancelledError

    def _unwind(self) -> None:
        """Throw `Killed` until it gives in. One step altogether: it has one budget for all its refusals."""
        for _ in range(DEATH_THROES):
            try:
                self.coroutine.throw(Killed())
            except BaseException:
                return


guards.STEPS |= {Stepper._step.__code__, Stepper._unwind.__code__}


def bury(coroutine: object) -> None:
    """Keep a coroutine that refuses to end from ever being collected.

    Its finalizer would run the refusal again, where nobody guards it; and at the interpreter's end, where nothing can
    be awaited any more, for ever. So it is given a reference that nobody holds; a few hundred bytes for each program
    so ill-mannered.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(coroutine))


def install(loop: asyncio.AbstractEventLoop, n_threads_max: int = N_THREADS_MAX) -> None:
    """Make every task that is created inside a process a thread of that process; no more than so many at a time."""
    threads: WeakKeyDictionary[Owner, int] = WeakKeyDictionary()

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, context: Any = None, **options: Any) -> "asyncio.Task[Any]":
        owner = context.get(current) if context is not None else current.get(None)
        if owner is None or isinstance(coro, Stepper):
            return asyncio.Task(coro, loop=loop, context=context, **options)
        if not isinstance(coro, Coroutine):
            raise TypeError(f"a coroutine was expected, got {coro!r}")
        n = threads.get(owner, 0)
        if n >= n_threads_max:
            coro.close()
            raise QuotaExceeded(f"{n_threads_max} threads are running; wait for some, or raise --max-threads")
        task: asyncio.Task[Any] = asyncio.Task(Stepper(owner, coro), loop=loop, context=context, **options)
        threads[owner] = n + 1
        task.add_done_callback(lambda task: threads.update({owner: threads[owner] - 1}))
        owner.adopt(task)
        return task

    loop.set_task_factory(factory)
