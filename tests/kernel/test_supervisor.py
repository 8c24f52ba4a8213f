"""Kernels that hang, die and end, played by small scripts. With real kernels: tests/e2e/test_supervisor.py."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from kernel.config import Config
from kernel.rundir import LastEnd, RunDirectory, WorkerRecord
from kernel.supervisor import FAILED, RESTARTS, Supervisor, end_worker, reap

PRELUDE = """
import faulthandler, os, signal, sys, time
option = lambda name: sys.argv[sys.argv.index("--" + name) + 1]
beat, stack, run = int(option("beat-fd")), int(option("stack-fd")), option("run-directory")
faulthandler.enable(stack)
faulthandler.register(signal.SIGUSR2, stack)
life = len([name for name in os.listdir(run) if name.startswith("life")])
open(f"{run}/life{life}", "w").close()

def serve():
    os.write(beat, b".")

def ready():
    serve()
    open(f"{run}/ready", "w").close()

def hang():
    while True:
        signal.pause()
"""


class Told:
    """A signal that comes as soon as the kernel says that it is ready, in the place of this process's own."""

    def __init__(self, ready):
        self.number = None
        self._ready = ready
        self.fd, self._w = os.pipe()

    def take(self):
        if self.number is None or not self._ready.exists():
            return b""
        number, self.number = self.number, None
        return bytes([number])

    def close(self):
        os.close(self.fd)
        os.close(self._w)


@pytest.fixture
def directory():
    run = RunDirectory.create()
    yield run
    run.remove()


@pytest.fixture
def told(directory):
    signals = Told(directory.path / "ready")
    yield signals
    signals.close()


@pytest.fixture
def supervise(tmp_path, directory, told):
    """Run kernels made of `text`, which knows its number as `life`: (exit status, what was said, how many ran)."""

    def run(text, on_line=lambda line: None, **options):
        path = tmp_path / "kernel.py"
        path.write_text(PRELUDE + textwrap.dedent(text))
        said = []

        def say(line):
            said.append(line)
            on_line(line)

        config = Config(supervisor_timeout_s=0.2, **options)
        status = Supervisor(config, [sys.executable, str(path)], directory, told, say).run()
        return status, said, len(list(directory.path.glob("life*")))

    return run


@pytest.mark.parametrize("status", [0, 2, 130])
def test_an_end_in_order_is_the_end(supervise, status):
    assert supervise(f"serve(); sys.exit({status})") == (status, [], 1)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("sys.exit(70)", "it ended with status 70"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "it died of SIGKILL"),
        ("faulthandler._sigsegv()", "it died of SIGSEGV: held by"),
    ],
)
def test_a_kernel_that_dies_is_followed_by_another(supervise, directory, end, words):
    status, said, n = supervise(f"serve()\nif life == 0:\n    {end}")
    assert (status, n) == (0, 2)
    assert said[0].startswith(f"supervisor: the kernel is restarted: {words}")
    assert words in directory.kept(LastEnd).reason


def test_a_kernel_that_hangs(supervise, tmp_path):
    status, said, n = supervise("serve()\nif life == 0:\n    hang()")
    assert (status, n) == (0, 2)
    assert "it did not answer for 0." in said[0]
    assert f"held by {tmp_path / 'kernel.py'}:" in said[0]
    assert "(in hang)" in said[0]
    assert any("in hang" in line for line in said[1:])


def test_a_kernel_that_is_stopped_hangs_too(supervise):
    status, _, n = supervise("serve()\nif life == 0:\n    os.kill(os.getpid(), signal.SIGSTOP)")
    assert (status, n) == (0, 2)


def test_a_kernel_that_boots_has_all_the_time_it_needs(supervise):
    assert supervise("time.sleep(0.5); serve()") == (0, [], 1)


def test_a_kernel_that_loads_a_program_has_more(supervise):
    assert supervise("os.write(beat, b'L'); time.sleep(0.5); serve()") == (0, [], 1)


def test_it_is_given_up_in_the_end(supervise):
    status, said, n = supervise("serve(); sys.exit(1)")
    assert (status, n) == (FAILED, RESTARTS[0] + 1)
    assert "given up" in said[-1]


def test_a_signal_is_handed_on_and_nothing_follows(supervise, told):
    told.number = signal.SIGTERM
    status, said, n = supervise("ready(); hang()")
    assert (said, n) == ([], 1)
    assert status == 128 + signal.SIGTERM  # this kernel knows no better end than to die of it


def test_a_signal_for_a_kernel_that_ends_in_order(supervise, told):
    told.number = signal.SIGINT
    assert supervise("try:\n    ready(); hang()\nexcept KeyboardInterrupt:\n    pass") == (0, [], 1)


def test_the_options_of_a_kernel(supervise, directory, tmp_path):
    assert supervise(f"open({str(tmp_path / 'argv')!r}, 'w').write(' '.join(sys.argv)); serve()")[0] == 0
    words = (tmp_path / "argv").read_text()
    assert f"--no-supervisor --parent {os.getpid()} " in words
    assert f"--kernel-name {directory.path.name} --run-directory {directory.path} " in words


def test_the_name_of_a_kernel_may_be_given(supervise, tmp_path):
    text = f"open({str(tmp_path / 'argv')!r}, 'w').write(' '.join(sys.argv)); serve()"
    assert supervise(text, kernel_name="k")[0] == 0
    assert "--kernel-name k " in (tmp_path / "argv").read_text()


def test_it_ends_with_its_own_parent(supervise):
    status, said, _ = supervise("serve()\nsignal.pause()", parent=1 << 22)
    assert (status, said) == (128 + signal.SIGTERM, [])


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_worker_that_was_left_behind_is_ended(directory, stubborn):
    code = "import signal\n"
    if stubborn:
        code += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code += "print('ready', flush=True)\nwhile True: signal.pause()"
    command = [sys.executable, "-c", code, "ipc:///x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout.readline() == "ready\n"
        directory.keep(WorkerRecord(worker.pid, "ipc:///x"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kernel.supervisor.END_S", 0.2)
            end_worker(directory)
        worker.returncode = 0  # it was reaped
        assert not WorkerRecord(worker.pid, "ipc:///x").is_running()


def test_no_worker_was_left_behind(directory):
    end_worker(directory)


def test_it_starts_at_once_and_stays_small():
    """What the supervisor imports: not the kernel."""
    code = "import sys, kernel.__main__; print(sorted({'uvloop', 'starlette', 'tokenizers'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reaping_nobody():
    thread = threading.Thread(target=lambda: None)  # threads are no children
    thread.start()
    assert reap(1) is None
    thread.join()
