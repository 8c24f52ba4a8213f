"""Of a program's stack, what its author wants to see: in a traceback, and where a thread awaits.

Called by `kernel/process.py`. Whose a frame is says `kernel/frames.py`.
"""

import os
import traceback
from typing import Any

from kernel.frames import ASYNCIO, HOUSE, KERNEL_ROOMS, Kind, kind
from sdk.abi.errors import SyscallError

SDK = HOUSE + "sdk" + os.sep


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
    others = (*KERNEL_ROOMS, ASYNCIO)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(others)]
    return "".join(traceback.format_list(frames))


def awaits_at(coroutine: Any) -> str:
    """`file.py:line` of the innermost `await` that the author wrote, of a coroutine that is suspended; or nothing."""
    found = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is not None:
            name = frame.f_code.co_filename
            if kind(name) is Kind.OWN and not name.startswith(SDK):
                found = f"{os.path.basename(name)}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return found
