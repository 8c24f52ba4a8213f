"""One kernel as its supervisor sees it: a process, its heartbeat, and the stack it prints when it is asked.

`kernel/supervisor.py` makes one after the other, and decides. Imports nothing of the kernel.
"""

import contextlib
import math
import os
import re
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kernel.frames import Kind, kind
from kernel.heart import ENDING, PATIENCE_S

STACK_SIGNAL = signal.SIGUSR2
STACK_S = (0.2, 0.03)  # for the stack to begin, and between its pieces
STACK_LINES_MAX = 60  # that are shown
RUNNER = f"asyncio{os.sep}runners.py"  # what is further out says only how the kernel was started
FRAME = re.compile(r'  File "(.+)", line (\d+) in (.+)')


class Child:
    """Starts with its `with` and is gone after it."""

    def __init__(self, command: Sequence[str]) -> None:
        """`command` starts a kernel; the options for its pipes are added."""
        self.command = command
        self.hangs = False  # and was killed for it
        self.is_deaf = False  # it has closed its end of the heartbeat
        self._state = b""  # of kernel/heart.py; nothing before it serves
        self._heard = 0.0
        self._delay_s = 0.0  # that it had waited for a processor by then

    def __enter__(self) -> Self:
        self.beats, beats = os.pipe()
        self._stacks, stacks = os.pipe()
        os.set_blocking(self.beats, False)
        os.set_blocking(self._stacks, False)
        try:
            self._process = subprocess.Popen(
                [*self.command, "--beat-fd", str(beats), "--stack-fd", str(stacks)],
                pass_fds=(beats, stacks),
                stdin=subprocess.DEVNULL,
                process_group=0,  # a Ctrl-C is for the supervisor, which hands it on once
            )
        finally:
            os.close(beats)
            os.close(stacks)
        self.pid = self._process.pid
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.send(signal.SIGKILL)
        self._process.returncode = 0  # the supervisor has reaped it
        os.close(self.beats)
        os.close(self._stacks)

    def send(self, number: int) -> None:
        """A signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    # --- the heartbeat ---

    def listen(self, now: float) -> None:
        """Take the beats that have come."""
        try:
            beats = os.read(self.beats, 4096)
        except BlockingIOError:
            return
        if beats:
            self._hear(beats[-1:], now)
        else:
            self.is_deaf = True

    def told(self, now: float) -> None:
        """It has been asked to end."""
        if self._state != ENDING:
            self._hear(ENDING, now)

    def _hear(self, state: bytes, now: float) -> None:
        self._state, self._heard, self._delay_s = state, now, run_delay_s(self.pid)

    def silence_s(self, now: float) -> float:
        """For how long it has been silent although it could have run."""
        return now - self._heard - (run_delay_s(self.pid) - self._delay_s)

    def patience_s(self, timeout_s: float) -> float:
        """How long it may be silent, in what it does; `timeout_s` while it serves."""
        if not self._state:
            return math.inf
        return max(timeout_s, PATIENCE_S.get(self._state, 0.0))

    # --- the stack ---

    def ask_stack(self) -> list[str]:
        """Have it print where it is, and read that. Empty if it cannot."""
        self.send(STACK_SIGNAL)
        return self.stack(*STACK_S)

    def stack(self, first_s: float = 0.0, next_s: float = 0.0) -> list[str]:
        """Lines that it has printed; waits for the first ones, and for others to follow."""
        text, wait_s = b"", first_s
        while select.select([self._stacks], [], [], wait_s)[0] and (piece := os.read(self._stacks, 65536)):
            text, wait_s = text + piece, next_s
        lines = text.decode(errors="replace").splitlines()[:STACK_LINES_MAX]
        outside = next((i for i, line in enumerate(lines) if RUNNER in line), len(lines))
        return lines[:outside]


def run_delay_s(pid: int) -> float:
    """Seconds that the main thread of a process was ready to run, and others ran. 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def culprit(stack: Sequence[str]) -> str:
    """Who held the kernel, for the end of a sentence: the innermost frame of a program, else the innermost of all.

    Threads beside the one that was asked count only if nobody else can have been it."""
    begin = next((i for i, line in enumerate(stack) if line.startswith("Current thread")), 0)
    frames = [found for line in (*stack[begin:], *stack[:begin]) if (found := FRAME.match(line))]
    if not frames:
        return ""
    own = next((found for found in frames if kind(found[1]) is Kind.OWN), None)
    file, line, function = (own or frames[0]).groups()
    return f": {'held by' if own else 'it was at'} {file}:{line} (in {function})"
