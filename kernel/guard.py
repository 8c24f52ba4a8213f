"""The guard: no program may hold the kernel for longer than its budget.

Programs run inside the kernel's event loop, so one that computes, sleeps or blocks without awaiting holds up all
others. `kernel/stepper.py` notes when a step (one `send` or `throw` of a program's coroutine) begins and ends; a
timer signal looks in at the moment when the budget of the running step is spent. The first time the process is
ended, with a line that says where it was, and `Overrun` is raised in the program; if that does not end the step
within `PATIENCE_S`, `kernel/storm.py` does. Many threads of one program, none of them over its budget, hold the kernel
as well: together they have until the hard deadline before the loop must come round.

What is never done: raising in a frame of the kernel's, or when one lies between the program and its step. Time that
the kernel itself takes on a program's stack is not the program's. Before the hard deadline nothing is raised between
two lines of a library, which may hold a lock that everybody needs: only in the program's own code, or in a call into
C that has not moved for several looks. After it, libraries are interrupted too, and the log says so.

Time in which other processes ran does not count, where the system tells it. And since not all of it is told, least by
a virtual machine that was itself kept waiting, no step is over its budget at one look: it must be so at the next, too.

Callbacks that a program has left with the event loop are no steps, and nobody announces them. One that two looks find
at work, half a budget apart, is ended the same way, but without a storm: there would be nobody to end that.

This protects against mistakes, not against malice, and it cannot interrupt C code that does not look for signals:
that is `kernel/supervisor.py`'s. While a debugger traces, nothing is interrupted.
"""

import asyncio
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextvars import Context
from types import FrameType
from typing import Any, Protocol

from kernel import storm
from kernel.frames import Kind, kind
from kernel.storm import Calm, Overrun

log = logging.getLogger(__name__)

XCPU = 152  # exit code of a process that overran, as a shell reports SIGXCPU
LOOK_S = 0.0005  # between looks at a program that is over its budget but not in its own code
STILL = 4  # looks that find it at the same instruction: it is inside of a C call
PATIENCE_S = 0.002  # for a program to clean up, and between later attempts
TURN_S = 0.005  # a program that makes one call after the other, all answered at once, is no hog: others go between
DOUBT_S = 0.001  # for a step to end by itself, once its budget is as good as spent
REST_S = 0.25  # between looks when there are no steps: at callbacks, which nobody announces

clock = time.perf_counter


class Owner(Protocol):
    """A process, as the guard sees it."""

    pid: Any
    name: str
    program: Any  # its `path` is the program's own, even where libraries are
    dying: bool

    def end(self, code: int, error: str) -> None:
        """Begin to die."""


class Guard:
    """There is one, `guard`: signals are the whole process's. The stepper writes the public ones."""

    __slots__ = (
        *("owner", "began", "asleep", "over"),
        *("_callback", "_delay_s", "_hard_s", "_hook", "_loop", "_on_turn", "_pass_noted", "_pass_owner"),
        *("_pass_since", "_schedstat", "_seen", "_since", "_soft_s", "_still", "_suspect", "_turn_s", "_who"),
    )

    def __init__(self) -> None:
        self.owner: Owner | None = None  # whose step is on the stack
        self.began = 0.0  # when it began, on `clock`
        self.asleep = False  # the timer is slow, and must be told of a step
        self.over = False  # it is over its budget: there may be a storm
        self._turn_s = math.inf
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        soft_s: float,
        hard_s: float,
        *,
        who: Callable[[], Owner | None],
        on_turn: Callable[[], None],
    ) -> None:
        """Begin to watch the steps of `loop`, on the main thread. `who` says whose context is current; `on_turn` is
        called now and then while programs get their turns, even if the loop does not come round."""
        self._loop, self._soft_s, self._hard_s, self._who, self._on_turn = loop, soft_s, hard_s, who, on_turn
        self._turn_s = TURN_S
        self._schedstat = open_schedstat()
        self._delay_s = self._read_delay()
        self._seen = self._since = self._suspect = 0.0
        self._still: tuple[FrameType | None, int, int] = (None, 0, 0)
        self._callback: FrameType | None = None
        self._pass_owner: Owner | None = None
        self._pass_since, self._pass_noted = 0.0, False
        loop.set_exception_handler(complain)
        signal.signal(signal.SIGALRM, self._look)
        self._again(REST_S)
        self.asleep = True

    def stop(self) -> None:
        """Watch no more. Safe to call twice, and without a start."""
        loop, self._loop = self._loop, None  # first: a look that is due would set the timer again, for no handler
        if loop is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            loop.set_exception_handler(None)
            if self._schedstat >= 0:
                os.close(self._schedstat)
            self._turn_s = math.inf
            self.asleep, self._callback, self._still = False, None, (None, 0, 0)

    def wake(self) -> None:
        """A step has begun after a rest."""
        self.asleep = False
        self._again(self._soft_s)

    def has_had_its_turn(self) -> bool:
        """Whether the running step has taken so long that its next system call should let others go first."""
        return self.owner is not None and clock() - self.began > self._turn_s

    def calm(self) -> None:
        """The step that was over its budget has ended; called after `storm.end`, which comes before anything else."""
        self.over = False
        sys.unraisablehook = self._hook

    # --- the timer ---

    def _again(self, after_s: float) -> None:
        """Look again. The interval is for a look that a storm has swallowed."""
        signal.setitimer(signal.ITIMER_REAL, max(after_s, LOOK_S), self._soft_s)

    def _look(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signal: runs between two instructions of whatever was interrupted, at `frame`."""
        if self._loop is None:
            return
        delay_s, self._delay_s = self._delay_s, self._read_delay()
        now = clock() - self._delay_s
        owner = self.owner
        if owner is None:
            self._look_at_callback(now, frame)
            return
        self._callback = None
        if self.began != self._seen:
            self._seen, self._since = self.began, self.began - delay_s
            self._on_turn()
        self._note_pass(owner, now)
        if storm.is_debugged():
            self._since = self._pass_since = now
        pass_left_s = self._pass_since + self._hard_s - now
        left_s = min(self._since + self._soft_s - DOUBT_S - now, pass_left_s)
        if left_s > 0:
            self._still = (None, 0, 0)
            self._again(left_s)
            return
        assert frame is not None
        if frame.f_code in STEPS or frame.f_code.co_filename in OURS:  # at the edge of a step, or in an earlier look
            self._again(LOOK_S)
            return
        place = first_outside(frame)
        if place is None or place.f_code not in STEPS:
            self._since = self._pass_since = now  # the kernel is at work for it
            self._again(self._soft_s)
            return
        if self._suspect != self.began and pass_left_s > 0:
            self._suspect = self.began
            self._again(DOUBT_S)
            return
        self._over(owner, frame, now - (self._since if pass_left_s > 0 else self._pass_since))

    def _note_pass(self, owner: Owner, now: float) -> None:
        """Whose steps are all that one pass of the event loop has shown so far, and since when."""
        if owner is not self._pass_owner:
            self._pass_owner, self._pass_since = owner, now
        if not self._pass_noted:
            self._pass_noted = True
            assert self._loop is not None
            self._loop.call_soon(self._end_pass, context=Context())

    def _end_pass(self) -> None:
        self._pass_owner, self._pass_noted = None, False

    def _read_delay(self) -> float:
        """Seconds in which this thread was ready to run, and others ran. 0 where the system does not say."""
        try:
            return int(os.pread(self._schedstat, 64, 0).split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0

    def _look_at_callback(self, now: float, frame: FrameType | None) -> None:
        """No step is on the stack. Perhaps a callback of a program is."""
        owner = self._who()
        bottom = callback_of(frame, owner) if owner is not None and frame is not None else None
        if owner is None or bottom is None:
            self._callback = None
            self._still = (None, 0, 0)
            self.asleep = self.began == self._seen  # no step since the last look
            self._seen = self.began
            self._again(REST_S if self.asleep else self._soft_s)
            return
        if bottom is not self._callback:
            self._callback, self._since = bottom, now
        left_s = self._since + self._soft_s / 2 - now
        if left_s > 0 and not owner.dying:
            self._again(left_s)
            return
        assert frame is not None
        self._over(owner, frame, now - self._since)

    # --- over the budget ---

    def _over(self, owner: Owner, frame: FrameType, held_s: float) -> None:
        """Raise in the program, if this is a moment for it."""
        own = str(owner.program.path)
        is_own = is_of(frame, own)
        is_hard = held_s >= self._hard_s and kind(frame.f_code.co_filename) is not Kind.LOOP
        if not is_own and not is_hard and not self._is_still(frame):
            self._again(LOOK_S)
            return
        self._still = (None, 0, 0)
        is_step = self.owner is not None
        self._again(PATIENCE_S if is_step else LOOK_S)
        if is_step and not self.over:
            self.over = True
            self._hook, sys.unraisablehook = sys.unraisablehook, bool  # one in Python would use a storm up
        if owner.dying:
            if is_step:
                kinds = (Kind.OWN, Kind.LIBRARY) if is_hard else (Kind.OWN,)
                storm.begin(frame, lambda name: name == own or kind(name) in kinds)
            raise Overrun
        error = (
            f"{owner.name} held the kernel for {1e3 * held_s:.0f} ms at {where(frame, own)}: "
            "await something, or move the work to a thread or a process of its own"
        )
        owner.end(XCPU, error)
        self._say("process %s is ended: %s", owner.pid, error)
        if not is_own and is_hard:
            self._say("it was interrupted inside a library, which may have left a lock behind: restart when you can")
        raise Overrun(error)

    def _is_still(self, frame: FrameType) -> bool:
        """Whether several looks in a row have found this very frame at this very instruction."""
        seen, at, n = self._still
        n = n + 1 if seen is frame and at == frame.f_lasti else 1
        self._still = (frame, frame.f_lasti, n)
        return n >= STILL

    def _say(self, *message: Any) -> None:
        """Log, but not from inside of whatever was interrupted."""
        assert self._loop is not None
        self._loop.call_soon(lambda: log.warning(*message), context=Context())  # not the program's


guard = Guard()


def complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the event loop says of errors that nobody takes, but for those that we have spoken of ourselves."""
    if not isinstance(context.get("exception"), Overrun):
        loop.default_exception_handler(context)


# --- reading the stack ------------------------------------------------------------------------------------------------

OURS = (__file__, storm.__file__)
STEPS: set[Any] = set()  # code objects that drive programs; filled by kernel/stepper.py


def open_schedstat() -> int:
    """A descriptor of what Linux knows of this thread's time; -1 elsewhere."""
    try:
        return os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
    except OSError:
        return -1


def first_outside(frame: FrameType | None) -> FrameType | None:
    """From the innermost frame outwards, the first that is the kernel's."""
    while frame is not None and kind(frame.f_code.co_filename) is not Kind.KERNEL:
        frame = frame.f_back
    return frame


def callback_of(frame: FrameType, owner: Owner) -> FrameType | None:
    """The function of the program's own that the event loop has called, if all is the program's from there on.

    Libraries and the kernel leave callbacks in a program's context too; what those do is not the program's fault."""
    bottom: FrameType | None = None
    inner: FrameType | None = frame
    while inner is not None:
        found = kind(inner.f_code.co_filename)
        if found is Kind.KERNEL:
            return None
        if found is Kind.LOOP:
            return bottom if bottom is not None and is_of(bottom, str(owner.program.path)) else None
        bottom, inner = inner, inner.f_back
    return None


def is_of(frame: FrameType, own: str) -> bool:
    """Whether a frame is the program's own; `own` is the file of its `main`."""
    name = frame.f_code.co_filename
    return name == own or kind(name) is Kind.OWN


def where(frame: FrameType, own: str) -> str:
    """`file:line` of the innermost frame that is the program's own."""
    inner: FrameType | None = frame
    while inner is not None and not is_of(inner, own):
        inner = inner.f_back
    at = inner or frame
    return f"{at.f_code.co_filename}:{at.f_lineno}"


__all__ = ["STEPS", "Calm", "Guard", "Overrun", "guard"]
