"""Processes: running programs, and everything they hold.

A process owns its threads (asyncio tasks), open handles, children and unread input. It is ALIVE from `start`
until its main thread ends, it calls `exit` or it is killed; then it is DYING while its other threads are unwound;
then it is DONE: its handles are given back and it has an exit status that never changes. All it held is free by
then, whatever the program did. Pids are never reused in one kernel.

A thread whose call must wait is `park`ed on a future. Nobody completes that future but the ready queue: who has the
answer says `complete` or `fail`, and the thread goes on when `kernel/ready.py` lets it.

`kernel/core.py` makes processes, the system calls look into them, `kernel/stepper.py` runs their threads. What a
handle stands for is none of this file's business: it only asks for its pages and calls `close` on it.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from functools import cached_property
from typing import Any, Protocol

import msgspec

from kernel.accounts import Account
from kernel.backtrace import awaits_at, one_line, own_frames
from kernel.client import Client
from kernel.ready import Ready, WakeUp
from kernel.stepper import Stepper, current
from kernel.tracing import Trace
from kernel.waits import LONG_S, MODEL_CALLS, History, Wait
from kvfs.access import Who
from kvfs.quota import Bill, allowed
from sdk.abi.errors import BadFile, QuotaExceeded, SyscallError
from sdk.abi.values import ExitStatus, Fd, Limits, Pid, ProcessInfo, ProcessState, Usage

KILLED = 137  # exit code of a killed process, as a shell reports SIGKILL
WATCH_S = 0.01  # between two looks at a limit that is nearly reached
INF = float("inf")


class Handle(Protocol):
    """Something a file descriptor stands for."""

    def pages(self) -> Iterable[object]:
        """What tells apart the KV pages that it keeps."""

    def close(self) -> None:
        """Give it back. Called exactly once, also when the process ends."""


class Caller(msgspec.Struct, frozen=True, eq=False):
    """A parked call, for whoever has the answer and knows no processes."""

    process: "Process"
    future: "asyncio.Future[Any]"

    @property
    def gone(self) -> bool:
        """Nobody waits for the answer any more."""
        return self.future.done()

    def complete(self, result: Any, give_back: Callable[[Any], None] | None = None) -> None:
        self.process.complete(self.future, result, give_back)

    def fail(self, error: SyscallError) -> None:
        self.process.fail(self.future, error)


class Process:
    """One running program."""

    def __init__(
        self,
        pid: Pid,
        name: str,
        *,
        who: Who,
        bill: Bill,
        program: Any,
        parent: "Process | None",
        client: Client | None,
        began: float,
        seed: int,
        n_handles_max: int,
        account: Account,
        ready: Ready,
        history: History,
        clock: Callable[[], float],
        on_done: "Callable[[Process], None]",
    ) -> None:
        self.pid = pid
        self.name = name
        self.bill = bill  # of the KV that it has open
        self.who = who  # as whom it acts; replaced when its umask changes
        self.program = program  # what spawn(".") starts again
        self.parent = parent
        self.client = client
        self.began = began
        self.n_handles_max = n_handles_max
        self.account = account
        self.clock = clock  # the loop's, but exact
        self._seed = seed
        self._ready = ready
        self._loop = asyncio.get_running_loop()
        self._history = history
        self._on_done = on_done

        self.children: dict[Pid, Process] = {}
        self.unwaited: dict[Pid, ExitStatus] = {}  # children that ended and were not waited for
        self.child_waiters: list[tuple[Pid | None, asyncio.Future[Any]]] = []
        self.waiting: dict[asyncio.Future[Any], Wait] = {}  # parked calls, oldest first
        self.n_ready = 0  # of those, answered and waiting for their turn
        self.wait_s: dict[str, float] = {}  # by system call; "ready": for a turn
        self.left_at = began  # when its last step ended, or inf once a call was answered since
        self.status: ExitStatus | None = None  # None until DONE
        self.dying = False
        self.cpu_s = 0.0
        self.children_cpu_s = 0.0  # of those that have ended
        self.n_syscalls = 0
        self.trace: Trace | None = None  # while somebody records it

        self._unborn: tuple[Coroutine[Any, Any, Any], Context] | None = None  # until the first thread begins
        self._threads: dict[asyncio.Task[Any], None] = {}  # oldest first
        self._watch: asyncio.TimerHandle | None = None
        self._handles: dict[Fd, Handle] = {}
        self._next_fd = 3  # 0 to 2 stay free, as they mean something to everybody
        self._code, self._error, self._traceback = 0, "", ""
        self._result = b""
        self._exit_waiters: list[asyncio.Future[ExitStatus]] = []

    @cached_property
    def dice(self) -> random.Random:
        """The program's own chance. Made when it is asked for: a generator takes 2.5 KB."""
        return random.Random(self._seed)

    # --- life ---

    def start(self, main: Coroutine[Any, Any, Any], context: Context) -> None:
        """Run `main` as the first thread when the ready queue says so. `context` carries the door."""
        context.run(current.set, self)
        self._unborn = main, context
        self._ready.put(WakeUp(self, None))
        self.watch_limits()

    def begin(self) -> None:
        """The ready queue's word: the first thread may run."""
        assert self._unborn is not None
        (main, context), self._unborn = self._unborn, None
        self.left_at = INF
        stepper, name = Stepper(self, main), f"lip-{self.pid}"
        task: asyncio.Task[Any] = asyncio.Task(stepper, loop=self._loop, context=context, name=name)
        self.adopt(task)
        task.add_done_callback(self._main_done)

    def adopt(self, task: "asyncio.Task[Any]") -> None:
        self._threads[task] = None
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
        for future in list(self.waiting):  # of coroutines that no thread awaits
            future.cancel()
        if not self._threads:
            if self._unborn is not None:
                self._unborn[0].close()
            self._reap()

    async def wait_exit(self) -> ExitStatus:
        """Wait until the process is DONE."""
        if self.status is not None:
            return self.status
        waiter: asyncio.Future[ExitStatus] = self._loop.create_future()
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
        del self._threads[task]
        if self.dying and not self._threads:
            self._reap()

    def _reap(self) -> None:
        if self.status is not None:
            return
        if self._watch is not None:
            self._watch.cancel()
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

    def handles(self) -> list[tuple[Fd, Handle]]:
        """All that are open, oldest first."""
        return list(self._handles.items())

    def close(self, fd: Fd) -> None:
        """Raises BadFile."""
        handle = self.handle(fd)
        del self._handles[fd]
        handle.close()

    def forget(self, fd: Fd) -> None:
        """Close a handle that the program was never told of, if that was not done yet."""
        handle = self._handles.pop(fd, None)
        if handle is not None:
            handle.close()

    # --- children ---

    def child_ended(self, status: ExitStatus) -> None:
        """Tell the first thread that waits for this child, or keep its status for one that will."""
        for entry in self.child_waiters:
            pid, future = entry
            if pid in (None, status.pid) and not future.done():
                self.child_waiters.remove(entry)
                self.complete(future, status, self.child_ended)
                return
        self.unwaited[Pid(status.pid)] = status

    # --- waiting ---

    def park(
        self,
        call: str,
        undo: Callable[[], None],
        about: str | Callable[[], str] = "",
        *,
        until: float | None = None,
    ) -> "asyncio.Future[Any]":
        """A future for a call that must wait: for `about`, as `ps` shows it, and not beyond the time `until`.

        Whoever blocks hands over the undo: it runs if the caller goes away. The answer goes to `complete` or `fail`."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.waiting[future] = Wait(call, undo, about, self._ready.now(), until)
        future.add_done_callback(self._unparked)
        return future

    def complete(
        self, future: "asyncio.Future[Any]", result: Any, give_back: Callable[[Any], None] | None = None
    ) -> None:
        """Answer a parked call. `give_back` takes the result again if the caller goes away before it has it."""
        if self.trace is not None:
            self.trace.ready(future, self.clock())
        self._ready.put(WakeUp(self, future, result, None, give_back))

    def fail(self, future: "asyncio.Future[Any]", error: SyscallError) -> None:
        """Answer a parked call with an error."""
        if self.trace is not None:
            self.trace.ready(future, self.clock())
        self._ready.put(WakeUp(self, future, None, error))

    def _unparked(self, future: "asyncio.Future[Any]") -> None:
        wait = self.waiting.pop(future)
        seconds = self._ready.now() - wait.since
        self.wait_s[wait.call] = self.wait_s.get(wait.call, 0.0) + seconds
        self.left_at = INF
        if future.cancelled():
            wait.undo()
            return
        future.exception()  # looked at, so that asyncio does not report an error that nobody was left to take
        if seconds >= LONG_S and wait.call not in MODEL_CALLS:
            self._history.learn(self.name, wait.call, seconds)

    def returned(self, coroutine: Coroutine[Any, Any, Any], now: float) -> None:
        """A thread goes on that awaited something outside of the kernel, after nobody of the process had run for
        longer than a moment. `coroutine` is about to be resumed."""
        if not self.dying:
            self._history.learn(self.name, awaits_at(coroutine), now - self.left_at)

    # --- limits ---

    def watch_limits(self) -> None:
        """End the process when its time is up: look again at the earliest moment at which that may be."""
        limits = self.account.limits
        self.bill.allowed = allowed(limits.files, None, limits.kv_byte_s)
        if self._watch is not None:
            self._watch.cancel()
        left = self.limits_left()
        for name, seconds in (("wall_s", left.wall_s), ("cpu_s", left.cpu_s)):
            if seconds is not None and seconds <= 0.0:
                kind = "" if name == "wall_s" else " of processor time"
                self.end(KILLED, f"its limit of {getattr(self.account.limits, name):g} s{kind} is reached")
                return
        seconds = min((s for s in (left.wall_s, left.cpu_s) if s is not None), default=None)
        if seconds is not None:
            self._watch = self._loop.call_later(max(seconds, WATCH_S), self.watch_limits)

    def limits_left(self) -> Limits:
        """What its limits leave it, and would leave a child; 0.0 or less of a time that is over."""
        limits = self.account.limits
        now = self._ready.now()
        return Limits(
            tokens=self.account.n_left,
            pages=limits.pages,
            cpu_s=None if limits.cpu_s is None else limits.cpu_s - self.tree_cpu_s,
            wall_s=None if limits.wall_s is None else limits.wall_s - (now - self.began),
            files=limits.files,
            kv_byte_s=None if limits.kv_byte_s is None else limits.kv_byte_s - self.bill.kv_byte_s,
        )

    @property
    def tree_cpu_s(self) -> float:
        """Processor time, with that of its children."""
        return self.cpu_s + self.children_cpu_s + sum(child.tree_cpu_s for child in self.children.values())

    # --- recording ---

    def record(self, trace: Trace, now: float) -> None:
        """Tell this trace what happens from now on."""
        self.trace = trace
        trace.process(self.pid, self.name)
        for task in self._threads:
            thread: Any = task.get_coro()
            awaited = task._fut_waiter  # type: ignore[attr-defined]
            trace.waiting(thread, self.pid, now, self._spelled(thread, awaited), awaited)

    def stepped(self, thread: Stepper[Any], began: float, awaited: Any) -> None:
        """A step of a thread is over, which awaits something now. Called while there is a trace."""
        assert self.trace is not None
        if not isinstance(awaited, asyncio.Future):
            awaited = None
        self.trace.stepped(thread, self.pid, began, self.left_at, self._spelled(thread, awaited), awaited)
        if getattr(thread.coroutine, "cr_frame", None) is None:
            self.trace.ended(thread)

    def _spelled(self, thread: Stepper[Any], awaited: "asyncio.Future[Any] | None") -> str:
        """What a thread waits for."""
        if awaited is None:
            return "ready"
        wait = self.waiting.get(awaited)
        if wait is None:
            return f"await {awaits_at(thread.coroutine)}"
        return wait.call if wait.call in MODEL_CALLS else str(wait)

    # --- looking ---

    @property
    def age(self) -> tuple[float, ...]:
        """Smaller is older: priority class, then when its program began."""
        return self.account.age

    @property
    def state(self) -> ProcessState:
        if self.status is not None:
            return ProcessState.DONE
        if self._unborn is not None:
            return ProcessState.READY
        if any(_is_runnable(task) for task in self._threads):
            return ProcessState.RUNNING
        return ProcessState.READY if self.n_ready else ProcessState.BLOCKED

    def returns_at(self, now: float) -> float | None:
        """When it should be back from what it waits for outside of the model; None while it is not away."""
        waits = self.waiting.values()
        if self.state is not ProcessState.BLOCKED or any(w.call in MODEL_CALLS for w in waits):
            return None
        if waits:
            return min(self._history.returns_at(self.name, w, now) for w in waits)
        lines = {awaits_at(_coroutine(task)) for task in self._threads}
        return min(self._history.ends_at(self.name, line, min(now, self.left_at), now) for line in lines)

    def waits_for(self) -> str:
        """What a blocked process waits for: its oldest parked call, or the line of its first thread's `await`."""
        if self.waiting:
            more = f" (+{len(self.waiting) - 1})" if len(self.waiting) > 1 else ""
            return f"{next(iter(self.waiting.values()))}{more}"
        return f"await {awaits_at(_coroutine(next(iter(self._threads))))}"

    @property
    def usage(self) -> Usage:
        a = self.account
        return Usage(
            self.cpu_s,
            self.n_syscalls,
            a.n_prompt_tokens,
            a.n_generated_tokens,
            device_s=a.device_s,
            service=a.service,
            n_pages=self.n_pages,
            n_swapped_tokens=a.n_swapped_tokens,
            n_recomputed_tokens=a.n_recomputed_tokens,
            wait_s=dict(self.wait_s),
            kv_byte_s=self.bill.kv_byte_s,
        )

    @property
    def is_running(self) -> bool:
        return self.status is None

    @property
    def n_pages(self) -> int:
        """KV pages that its open files have."""
        return len({page for handle in self._handles.values() for page in handle.pages()})

    def info(self, now: float) -> ProcessInfo:
        state = self.state
        return ProcessInfo(
            self.pid,
            self.parent.pid if self.parent is not None else 0,
            self.name,
            state,
            self.waits_for() if state is ProcessState.BLOCKED else "",
            now - self.began,
            len(self._threads),
            len(self._handles),
            self.usage,
            priority=self.account.priority,
            tenant=self.account.tenant.name,
        )


def _is_runnable(task: "asyncio.Task[Any]") -> bool:
    """Whether a thread is in a step, or on the event loop's list."""
    awaited = task._fut_waiter  # type: ignore[attr-defined]  # asyncio has no public word for it
    return awaited is None or awaited.done()


def _coroutine(task: "asyncio.Task[Any]") -> Any:
    """A thread's own coroutine."""
    stepper: Any = task.get_coro()
    return stepper.coroutine
