"""Drives the coroutines of programs, one step at a time, inside ordinary asyncio tasks.

A `Stepper` stands between an asyncio.Task and a program's coroutine. It sees every `send` and `throw`, so a
program may use all of asyncio and still cannot escape:

- `SystemExit` and `KeyboardInterrupt` end the process instead of the event loop;
- tasks that a program makes are adopted by its process (`install`, through the loop's task factory);
- a process that must end gets `Killed` thrown into each of its threads; one that swallows it is given
  `DEATH_THROES` more, then its coroutine is closed and, if it will not close, abandoned: the task ends anyway;
- time on the stack is charged to the process.

`kernel/process.py` owns the processes; this file knows of one only what `Owner` names. Nothing here schedules,
and nothing here may await.
"""

import asyncio
import ctypes
import time
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from sdk.abi.errors import Killed

T = TypeVar("T")

DEATH_THROES = 8  # how often `Killed` is thrown again at a coroutine that swallows it


class Owner(Protocol):
    """A process, as the stepper sees it."""

    dying: bool
    cpu_s: float

    def adopt(self, task: "asyncio.Task[Any]") -> None:
        """A thread of this process has begun."""

    def end(self, code: int, error: str) -> None:
        """The program asked for its own end."""


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
        began = time.perf_counter()
        try:
            return self.coroutine.send(value)
        except (SystemExit, KeyboardInterrupt) as e:
            self._leave(e)
        except Killed:
            raise asyncio.CancelledError from None
        finally:
            self.owner.cpu_s += time.perf_counter() - began

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        if self.owner.dying:
            return self._kill()
        began = time.perf_counter()
        try:
            return self.coroutine.throw(typ if val is None else val)
        except (SystemExit, KeyboardInterrupt) as e:
            self._leave(e)
        except Killed:
            raise asyncio.CancelledError from None
        finally:
            self.owner.cpu_s += time.perf_counter() - began

    def close(self) -> None:
        self.coroutine.close()

    def _leave(self, e: BaseException) -> None:
        """The program ended itself, in whichever thread: the loop must not see how."""
        if isinstance(e, SystemExit):
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
            self.owner.end(code, "" if code == 0 or isinstance(e.code, int) else str(e.code))
        else:
            self.owner.end(130, "KeyboardInterrupt")
        raise asyncio.CancelledError

    def _kill(self) -> Any:
        """Throw `Killed` until the coroutine ends; a thread of a dying process never waits again."""
        for _ in range(DEATH_THROES):
            try:
                self.coroutine.throw(Killed())
            except StopIteration:
                break
            except BaseException:
                break
        else:
            try:
                self.coroutine.close()
            except BaseException:
                bury(self.coroutine)
        raise asyncio.CancelledError


def bury(coroutine: object) -> None:
    """Keep a coroutine that refuses to close from ever being collected.

    Its finalizer would run the refusal again, and at the interpreter's end, where nothing can be awaited any more,
    for ever. So it is given a reference that nobody holds; a few hundred bytes for each program so ill-mannered.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(coroutine))


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Make every task that is created inside a process a thread of that process."""

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, context: Any = None, **options: Any) -> "asyncio.Task[Any]":
        owner = context.get(current) if context is not None else current.get(None)
        if owner is None or isinstance(coro, Stepper):
            return asyncio.Task(coro, loop=loop, context=context, **options)
        if not isinstance(coro, Coroutine):
            raise TypeError(f"a coroutine was expected, got {coro!r}")
        task: asyncio.Task[Any] = asyncio.Task(Stepper(owner, coro), loop=loop, context=context, **options)
        owner.adopt(task)
        return task

    loop.set_task_factory(factory)
