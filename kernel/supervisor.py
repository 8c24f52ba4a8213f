"""`python -m kernel`: a small process that starts the kernel, and starts it again when it hangs or dies.

The guard (`kernel/guard.py`) ends programs that hold the kernel, but not C code that never looks for signals: that
ends with the kernel. The supervisor hears the kernel's heartbeat (`kernel/heart.py`). After `supervisor_timeout_s`
without a beat it has the kernel print its stack, says which program and line that is, kills it, and starts the next
one. Time for which the kernel was ready to run and was not given a processor does not count; a kernel that is stopped,
by SIGSTOP or a debugger, hangs.

What outlives a kernel lies in the run directory (`kernel/rundir.py`), which is the supervisor's: the local worker with
its weights, the port, the list of attached workers. Running programs end with their kernel.

    exit status 0, 2 (it could not start), 130     the supervisor ends with it
    anything else, a signal, or no heartbeat       another kernel, but no more than RESTARTS

Small, one thread, no event loop: what watches the kernel must not have its faults. Never import the kernel here.
"""

import collections
import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import Self

from kernel.child import Child, culprit
from kernel.config import Config
from kernel.rundir import LastEnd, RunDirectory, WorkerRecord

RESTARTS = (3, 60.0)  # so many in so many seconds; one more, and it gives up
FINAL = (0, 2, 130)  # statuses of a kernel that is not started again
FAILED = 70  # our own when we give up (sysexits.h: internal software error)
LOOK_S = 0.1  # how often the heartbeat is looked at
END_S = 5.0  # for a worker that a kernel has left behind
TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # to end
PR_SET_CHILD_SUBREAPER = 36

Say = Callable[[str], None]


def supervise(config: Config, command: Sequence[str], say: Say) -> int:
    """Run kernels, started by `command`, until one ends in order. Returns the exit status."""
    become_subreaper()
    directory = RunDirectory.create()
    try:
        with Signals() as signals:
            return Supervisor(config, command, directory, signals, say).run()
    finally:
        end_worker(directory)
        directory.remove()


class Supervisor:
    """Of one kernel after the other."""

    def __init__(
        self, config: Config, command: Sequence[str], directory: RunDirectory, signals: "Signals", say: Say
    ) -> None:
        self.config = config
        self.directory = directory
        self.signals = signals
        self.say = say
        self.told = False  # to end
        name = config.kernel_name or directory.path.name
        self._command = [
            *command,
            *("--no-supervisor", "--parent", str(os.getpid())),
            *("--kernel-name", name, "--run-directory", str(directory.path)),
        ]
        self._restarts: collections.deque[float] = collections.deque()

    def run(self) -> int:
        """Until a kernel ends that is not to be followed by another. Returns the exit status."""
        while True:
            with Child(self._command) as child:
                status = self._watch(child)
                if self.told or status in FINAL:
                    return status if status >= 0 else 128 - status  # as a shell reports a signal
                if not child.hangs:
                    self._report(f"it {ending(status)}", child.stack())
            if not self._may_restart(time.monotonic()):
                n_max, period_s = RESTARTS
                self.say(f"supervisor: the kernel was restarted {n_max} times in {period_s:g} s: it is given up")
                return FAILED

    def _watch(self, child: Child) -> int:
        """Until the kernel has ended. Returns its exit status, negative for a signal."""
        while (status := reap(child.pid)) is None:
            ears = [self.signals.fd] if child.is_deaf else [self.signals.fd, child.beats]
            select.select(ears, [], [], LOOK_S)
            child.listen(time.monotonic())
            for number in self.signals.take():
                if number in TOLD:
                    self._end(child, number)
            if self.config.parent is not None and os.getppid() != self.config.parent and not self.told:
                self._end(child, signal.SIGTERM)
            silence_s = child.silence_s(time.monotonic())
            if silence_s > child.patience_s(self.config.supervisor_timeout_s) and not child.hangs:
                child.hangs = True
                self._report(f"it did not answer for {silence_s:.1f} s", child.ask_stack())
                child.send(signal.SIGKILL)
        return status

    def _end(self, child: Child, number: int) -> None:
        self.told = True
        child.told(time.monotonic())
        child.send(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    def _report(self, what: str, stack: list[str]) -> None:
        reason = f"{what}{culprit(stack)}"
        self.directory.keep(LastEnd(reason))
        self.say(f"supervisor: the kernel is restarted: {reason}")
        for line in stack:
            self.say(line)

    def _may_restart(self, now: float) -> bool:
        n_max, period_s = RESTARTS
        while self._restarts and now - self._restarts[0] > period_s:
            self._restarts.popleft()
        self._restarts.append(now)
        return len(self._restarts) <= n_max


class Signals:
    """Signals of this process, as something to wait for."""

    def __enter__(self) -> Self:
        self.fd, self._w = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._w, False)
        signal.set_wakeup_fd(self._w)
        self._before = {number: signal.signal(number, lambda *_: None) for number in (*TOLD, signal.SIGCHLD)}
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._w)

    def take(self) -> bytes:
        """The numbers of those that have come since the last call."""
        try:
            return os.read(self.fd, 4096)
        except BlockingIOError:
            return b""


def become_subreaper() -> None:
    """A worker whose kernel is gone becomes our child, so that it does not stay behind as a zombie. Linux only."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def reap(pid: int) -> int | None:
    """Exit status of that child if it has ended, as `Popen.returncode` has it. Reaps whatever else has ended, too."""
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if ended == pid:
            return os.waitstatus_to_exitcode(status)
        if ended == 0:
            return None


def end_worker(directory: RunDirectory) -> None:
    """End the worker that no kernel has ended."""
    record = directory.kept(WorkerRecord)
    for number, patience_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
        until = time.monotonic() + patience_s
        if record is None or not record.is_running():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)
        while reap(record.pid) is None and record.is_running() and time.monotonic() < until:
            time.sleep(0.01)


def ending(status: int) -> str:
    """How a process has ended, from its exit status."""
    return f"ended with status {status}" if status >= 0 else f"died of {signal.Signals(-status).name}"
