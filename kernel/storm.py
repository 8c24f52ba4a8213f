"""An exception that comes again wherever it is caught, until the program that catches it has run out of handlers.

`except BaseException: pass` in a loop eats one exception and goes on; so does a second one if it comes back into the
same `try`. What ends every finite nest of handlers is an exception that is there again as soon as a handler begins:
it leaves the `try` that caught the last one, and so on outwards. It comes in the program's own code only, so that
libraries can put down what they hold.

- From Python 3.12 on, `sys.monitoring` calls us at every line, and we raise in those of the program.
- In 3.11 there is `PyThreadState_SetAsyncExc`, with a class whose instances set the next one as they are made: CPython
  makes one when a handler is entered. That must not run Python code, which would meet the next one itself, so
  `__init__` is a C function with its arguments bound. From the first one on it comes to every Python function that is
  called, as it begins. A storm that finds a library at work begins when a trace function sees control come back.

Between `begin` and `end` nothing but the program may run on this thread, and `end` comes first after it
(`kernel/stepper.py`). In 3.11 `end` is C, for the reason given, and what it leaves is one `Calm`, raised at once; on
3.12 nothing is raised. Only `kernel/guard.py` begins a storm.
"""

import ctypes
import functools
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from sdk.abi.errors import Killed

Hits = Callable[[str], bool]  # whether code of a file may be interrupted


class Overrun(Killed):
    """Raised in a program that has held the kernel for too long."""


class Calm(BaseException):
    """What the end of a storm raises, at once, in the place of the next `Overrun`."""


if sys.version_info >= (3, 12):
    TOOL = 4  # of sys.monitoring's six, one that has no meaning of its own

    def begin(frame: FrameType, hits: Hits) -> None:
        """From now on every line that `hits` says yes to raises Overrun. Again: with other `hits`."""
        monitoring, thread = sys.monitoring, threading.get_ident()
        events = monitoring.events

        def on_event(code: CodeType, *_: Any) -> None:
            if threading.get_ident() == thread and hits(code.co_filename):
                raise Overrun

        if monitoring.get_tool(TOOL) is None:
            monitoring.use_tool_id(TOOL, "symphony")
        for event in (events.LINE, events.JUMP, events.PY_START, events.PY_RESUME):
            monitoring.register_callback(TOOL, event, on_event)
        monitoring.set_events(TOOL, events.LINE | events.JUMP | events.PY_START | events.PY_RESUME)

    def end() -> None:
        """No more."""
        if sys.monitoring.get_tool(TOOL) is not None:
            sys.monitoring.set_events(TOOL, 0)
            sys.monitoring.free_tool_id(TOOL)

    def is_debugged() -> bool:
        """Whether a debugger has this thread."""
        return sys.gettrace() is not None or sys.monitoring.get_tool(sys.monitoring.DEBUGGER_ID) is not None

else:

    class _Again(Overrun):
        """Sets the next one of its kind when it is made."""

    _set_exception = ctypes.PyDLL(None).PyThreadState_SetAsyncExc  # our own handle: `pythonapi`'s is everybody's
    _set_exception.argtypes = [ctypes.c_ulong, ctypes.py_object]
    _set_exception.restype = None  # as `__init__` must return None
    _set_again = functools.partial(_set_exception, threading.main_thread().ident, _Again)
    _Again.__init__ = _set_again  # type: ignore[method-assign]

    def begin(frame: FrameType, hits: Hits) -> None:
        """Raises Overrun again and again as soon as the running frame is one that `hits` says yes to: in the caller,
        if `frame` is. Again: if one was lost in C code that drops exceptions."""
        place: FrameType | None = frame
        while place is not None and not hits(place.f_code.co_filename):
            place = place.f_back
        if place is frame:
            _set_again()
        elif place is not None:
            place.f_trace = _on_return
            sys.settrace(_on_call)

    def _on_call(frame: FrameType, event: str, argument: Any) -> None:
        """Functions that begin now are not traced."""

    def _on_return(frame: FrameType, event: str, argument: Any) -> None:
        frame.f_trace = None
        sys.settrace(None)
        _set_again()

    end = functools.partial(_set_exception, threading.main_thread().ident, Calm)

    def is_debugged() -> bool:
        """Whether a debugger has this thread."""
        return sys.gettrace() not in (None, _on_call)
