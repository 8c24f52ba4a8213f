"""What the supervisor makes of a process: its beats, its silence, its stack."""

import math
import queue
import signal
import sys
import time

import pytest

from kernel import batcher
from kernel.child import Child, culprit
from kernel.heart import PATIENCE_S

HEADER = "Current thread 0x00007f1d9bdc9b80 (most recent call first):"
OTHER = "Thread 0x00007f1d9bdc9b80 (most recent call first):"
OWN = '  File "/home/me/hog.py", line 4 in main'
LIBRARY = f'  File "{queue.__file__}", line 8 in get'
KERNEL = f'  File "{batcher.__file__}", line 12 in plan'


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        ([], ""),
        (["Fatal Python error: Aborted"], ""),
        ([HEADER, OWN], ": held by /home/me/hog.py:4 (in main)"),
        ([HEADER, LIBRARY, OWN], ": held by /home/me/hog.py:4 (in main)"),
        ([HEADER, KERNEL, OWN], ": held by /home/me/hog.py:4 (in main)"),  # one of its calls does not end
        ([HEADER, KERNEL], f": it was at {batcher.__file__}:12 (in plan)"),
        ([OTHER, OWN.replace("hog", "side"), HEADER, OWN], ": held by /home/me/hog.py:4 (in main)"),
        ([OTHER, OWN.replace("hog", "side"), HEADER, KERNEL], ": held by /home/me/side.py:4 (in main)"),
    ],
)
def test_culprit(stack, expected):
    assert culprit(stack) == expected


REGISTER = "faulthandler.register(signal.SIGUSR2, stack)\nos.write(beat, b'.')\n"


def script(tmp_path, text):
    """A kernel: is given --beat-fd N --stack-fd N."""
    path = tmp_path / "kernel.py"
    path.write_text(f"import faulthandler, os, signal, sys\nbeat, stack = int(sys.argv[2]), int(sys.argv[4])\n{text}")
    return [sys.executable, str(path)]


def until(child, state):
    while child.patience_s(1.0) != state:
        child.listen(time.monotonic())


def test_patience(tmp_path):
    text = "for b in (b'.', b'L', b'E'):\n    os.write(beat, b); signal.sigwait([signal.SIGUSR1])\n"
    with Child(script(tmp_path, "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n" + text)) as child:
        assert child.patience_s(1.0) == math.inf  # it boots
        until(child, 1.0)
        assert child.silence_s(time.monotonic()) < 1e6
        child.send(signal.SIGUSR1)
        until(child, PATIENCE_S[b"L"])
        child.send(signal.SIGUSR1)
        until(child, PATIENCE_S[b"E"])
        child.send(signal.SIGKILL)


def test_its_stack(tmp_path):
    text = f"{REGISTER}def hold():\n    while True: pass\nhold()\n"
    with Child(script(tmp_path, text)) as child:
        until(child, 1.0)
        stack = child.ask_stack()
        child.send(signal.SIGKILL)
    assert culprit(stack) == f": held by {tmp_path / 'kernel.py'}:6 (in hold)"


def test_a_stopped_process_has_no_stack(tmp_path):
    text = f"{REGISTER}signal.pause()\n"
    with Child(script(tmp_path, text)) as child:
        until(child, 1.0)
        child.send(signal.SIGSTOP)
        assert child.ask_stack() == []
        child.send(signal.SIGKILL)


def test_its_end_is_heard(tmp_path):
    with Child(script(tmp_path, "os.write(beat, b'.')\n")) as child:
        while not child.is_deaf:
            child.listen(time.monotonic())
