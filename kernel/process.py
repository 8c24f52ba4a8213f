"""Processes: running programs, and everything they hold.

A process owns its threads (asyncio tasks), open handles, children and unread input. It is ALIVE from `start`
until its main thread ends, it calls `exit` or it is killed; then it is DYING while its other threads are unwound;
then it is DONE: its handles are given back and it has an exit status that never changes. All it held is free by
then, whatever the program did. Pids are never reused in one kernel.

`kernel/core.py` makes processes, the system calls look into them, `kernel/stepper.py` runs their threads. What a
handle stands for is none of this file's business: it only calls `close` on it.
"""

import asyncio
import random
import traceback
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Protocol

import msgspec

from kernel.client import Client
from kernel.stepper import Stepper, current
from sdk.abi.errors import BadFile, QuotaExceeded, SyscallError
from sdk.abi.values import ExitStatus, Fd, Pid, ProcessInfo, ProcessState, Usage

KILLED = 137  # exit code of a killed process, as a shell reports SIGKILL


class Handle(Protocol):
    """Something a file descriptor stands for."""

    def close(self) -> None:
        """Give it back. Called exactly once, also when the process ends."""


class Process:
    """One running program."""

    def __init__(
        self,
        pid: Pid,
        name: str,
        *,
        owner: str,
        program: Any,
        parent: "Process | None",
        client: Client | None,
        began: float,
        seed: int,
        n_handles_max: int,
        on_done: "Callable[[Process], None]",
    ) -> None:
        self.pid = pid
        self.name = name
        self.owner = owner
        self.program = program  # what spawn(".") starts again
        self.parent = parent
        self.client = client
        self.began = began
        self.dice = random.Random(seed)
        self.n_handles_max = n_handles_max
        self._on_done = on_done

        self.children: dict[Pid, Process] = {}
        self.unwaited: dict[Pid, ExitStatus] = {}  # children that ended and were not waited for
        self.child_waiters: list[tuple[Pid | None, asyncio.Future[Any]]] = []
        self.waiting: dict[asyncio.Future[Any], str] = {}  # parked calls and their names, oldest first
        self.status: ExitStatus | None = None  # None until DONE
        self.dying = False
        self.cpu_s = 0.0
        self.n_syscalls = 0
        self.n_prompt_tokens = 0
        self.n_generated_tokens = 0

        self._threads: set[asyncio.Task[Any]] = set()
        self._handles: dict[Fd, Handle] = {}
        self._next_fd = 3  # 0 to 2 stay free, as they mean something to everybody
        self._code = 0
        self._error = ""
        self._traceback = ""
        self._result = b""
        self._exit_waiters: list[asyncio.Future[ExitStatus]] = []

    # --- life ---

    def start(self, main: Coroutine[Any, Any, Any], context: Context, loop: asyncio.AbstractEventLoop) -> None:
        """Run `main` as the first thread. `context` carries the door."""
        context.run(current.set, self)
        task: asyncio.Task[Any] = asyncio.Task(Stepper(self, main), loop=loop, context=context, name=f"lip-{self.pid}")
        self.adopt(task)
        task.add_done_callback(self._main_done)

    def adopt(self, task: "asyncio.Task[Any]") -> None:
        self._threads.add(task)
        task.add_done_callback(self._thread_done)

    def end(self, code: int, error: str) -> None:
        """Begin to die: every thread is unwound on its next turn. The first reason given is the one that counts."""
        if self.dying:
            return
        self.dying = True
        self._code, self._error = code, error
        for child in list(self.children.values()):
            child.end(KILLED, f"its parent, process {self.pid}, ended")
        for task in list(self._threads):
            task.cancel()
        if not self._threads:
            self._reap()

    async def wait_exit(self) -> ExitStatus:
        """Wait until the process is DONE."""
        if self.status is not None:
            return self.status
        waiter: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._exit_waiters.append(waiter)
        return await waiter

    def _main_done(self, task: "asyncio.Task[Any]") -> None:
        if self.dying or task.cancelled():
            self.end(1, "cancelled itself")
            return
        error = task.exception()
        if error is None:
            try:
                self._result = msgspec.json.encode(task.result())
                self.end(0, "")
            except (TypeError, ValueError, RecursionError) as e:
                self.end(1, f"the program returned what JSON cannot hold: {e}")
        else:
            self._traceback = own_frames(error)
            self.end(1, one_line(error))

    def _thread_done(self, task: "asyncio.Task[Any]") -> None:
        self._threads.discard(task)
        if self.dying and not self._threads:
            self._reap()

    def _reap(self) -> None:
        if self.status is not None:
            return
        for fd in list(self._handles):
            self._handles.pop(fd).close()
        self.status = ExitStatus(self.pid, self._code, self._result, self._error, self._traceback)
        if self.client is not None:
            self.client.end()
        for waiter in self._exit_waiters:
            if not waiter.done():
                waiter.set_result(self.status)
        self._on_done(self)

    # --- handles ---

    def install(self, handle: Handle) -> Fd:
        """Give a handle the next number. Raises QuotaExceeded, having closed it."""
        if len(self._handles) >= self.n_handles_max:
            handle.close()
            raise QuotaExceeded(f"{self.n_handles_max} handles are open; close some, or raise --max-handles")
        fd = Fd(self._next_fd)
        self._next_fd += 1
        self._handles[fd] = handle
        return fd

    def handle(self, fd: Fd) -> Handle:
        """Raises BadFile."""
        try:
            return self._handles[fd]
        except KeyError:
            raise BadFile(f"{fd} is not an open handle of process {self.pid}") from None

    def close(self, fd: Fd) -> None:
        """Raises BadFile."""
        handle = self.handle(fd)
        del self._handles[fd]
        handle.close()

    # --- waiting ---

    def park(self, call: str, undo: Callable[[], None]) -> "asyncio.Future[Any]":
        """A future for a call that must wait. Whoever blocks hands over the undo: it runs if the caller goes away."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting[future] = call

        def over(f: "asyncio.Future[Any]") -> None:
            del self.waiting[f]
            if f.cancelled():
                undo()
            else:
                f.exception()  # looked at, so that asyncio does not report an error that nobody was left to take

        future.add_done_callback(over)
        return future

    # --- looking ---

    @property
    def usage(self) -> Usage:
        return Usage(self.cpu_s, self.n_syscalls, self.n_prompt_tokens, self.n_generated_tokens)

    def info(self, now: float) -> ProcessInfo:
        wait = next(iter(self.waiting.values()), "")
        state = ProcessState.DONE if self.status else ProcessState.BLOCKED if wait else ProcessState.RUNNING
        ppid = self.parent.pid if self.parent is not None else 0
        return ProcessInfo(
            self.pid, ppid, self.name, state, wait, now - self.began, len(self._threads), len(self._handles), self.usage
        )


def one_line(error: BaseException) -> str:
    """How an exception ends a program, in one line."""
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return one_line(error.exceptions[0])
    text = " ".join(str(error).split())
    if isinstance(error, SyscallError):
        return text
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def own_frames(error: BaseException) -> str:
    """The traceback with the kernel's and asyncio's frames left out: a program's author cannot mend those."""
    inside = (__file__.removesuffix("process.py"), asyncio.__file__.removesuffix("__init__.py"))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(inside)]
    return "".join(traceback.format_list(frames))
