"""Whose code a Python frame runs: the program's own, a library's, the event loop's or the kernel's.

`kernel/guard.py` asks before it interrupts anything, `kernel/supervisor.py` to name who held a kernel that hangs. Told
from the file's name alone, so that a stack that another process has printed can be read the same way. Imports
nothing of ours.
"""

import functools
import os
from enum import Enum

HOUSE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
KERNEL_ROOMS = tuple(HOUSE + room + os.sep for room in ("kernel", "kvfs", "gpuworker", f"sdk{os.sep}abi"))
PROGRAM_ROOMS = tuple(HOUSE + room + os.sep for room in ("sdk", "programs"))
STDLIB = os.path.dirname(os.__file__) + os.sep
ASYNCIO = STDLIB + "asyncio" + os.sep
PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


class Kind(Enum):
    """Whose a frame is."""

    OWN = "own"  # the program's, or the sdk's: it holds no lock that others wait for
    LIBRARY = "library"  # between any two of its lines it may hold one
    LOOP = "loop"  # asyncio's
    KERNEL = "kernel"


@functools.lru_cache(maxsize=4096)
def kind(filename: str) -> Kind:
    """Of a code object's `co_filename`."""
    if filename.startswith(KERNEL_ROOMS):
        return Kind.KERNEL
    if filename.startswith(PROGRAM_ROOMS):
        return Kind.OWN
    if filename.startswith(ASYNCIO):
        return Kind.LOOP
    if filename.startswith((STDLIB, "<")) or any(part in filename for part in PACKAGES):
        return Kind.LIBRARY
    return Kind.OWN
