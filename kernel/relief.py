"""Relief: what a plan of memory asks for. Data.

Made by `kernel/memory.py`, filled by it, by `kernel/demotion.py` and `kernel/returns.py`, done by `kernel/batcher.py`.
"""

from kernel.jobs import Job
from kvfs.moves import Move
from kvfs.pins import Wish
from sdk.abi.errors import SyscallError


class Relief:
    """What is to be done."""

    def __init__(self) -> None:
        self.moves: list[Move] = []
        self.failed: list[tuple[Job, SyscallError]] = []
        self.killed: list[tuple[int, str]] = []  # processes, with the reason
        self.freed = False  # pages are free at once: it is worth to plan again
        self.restore: list[Wish] = []  # files to be computed again although no call asks
