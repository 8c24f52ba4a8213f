"""kill -9 while files are saved: what `make chaos-store` runs.

Most kills hit a small process that runs the store alone (kvfs/store on the real disk of kernel/disk.py, under a random
workload), because it starts in milliseconds; the others a whole kernel with a null worker, that runs a program which
saves, renames and removes files (saver.py). After each kill the next process, on the same directory, must find all that
was acknowledged, and of what was under way all or nothing.

    python -m tests.chaos.store --kills 1000 --kernels 1000

A killed process leaves the page cache behind: what a power failure does is `make crashes`.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kernel.disk import RealDisk
from kvfs.store.format import Damaged
from kvfs.store.store import Store
from tests.e2e.conftest import HOUSE, Running, free_port
from tests.kvfs.store.workload import Workload, found

SAVER = Path(__file__).with_name("saver.py")
LONGEST_S = 0.06  # that a small process lives; a whole kernel lives for up to five times that from its first save on


# --- the store alone ---


def resume(seed: int, directory: Path) -> Workload:
    """A workload that goes on with what is on disk."""
    disk = RealDisk(directory)
    store = Store(disk)
    workload = Workload(seed, store)
    workload.state = found(store)
    paths = {1: ""}
    for parent, name, ino in store.tree.walk():
        paths[ino] = f"{paths[parent]}/{name}"
        workload.inos[paths[ino]] = ino
        workload.last_ino = max(workload.last_ino, ino)
    workload.possible = [workload.state]
    return workload


def saves_for_ever(seed: int, directory: Path, said: int) -> None:
    """The process to be killed: one byte for each operation that was acknowledged."""
    workload = resume(seed, directory)
    os.write(said, b"!")
    while True:
        before = workload.acknowledged
        workload.step()
        if workload.acknowledged > before:
            os.write(said, b".")


def kill_store(seed: int, directory: Path, dice: random.Random) -> int:
    """One process, killed; how many operations it had acknowledged. Raises AssertionError when some of it is lost."""
    replay = resume(seed, directory)
    replay.store.disk.end()  # type: ignore[attr-defined]
    listen, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(listen)
        try:
            saves_for_ever(seed, directory, say)
        finally:
            os._exit(1)
    os.close(say)
    os.read(listen, 1)
    time.sleep(dice.random() * LONGEST_S)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    n_done = 0
    while part := os.read(listen, 65536):
        n_done += len(part)
    os.close(listen)
    replay.store = Store(MemoryOnly())
    while replay.acknowledged < n_done:
        replay.step()
    acknowledged = replay.state
    while len(replay.possible) == 1 and replay.acknowledged == n_done:
        replay.step()
    after = resume(seed, directory)
    after.store.disk.end()  # type: ignore[attr-defined]
    assert after.state in (acknowledged, replay.state), f"kill {seed}: {n_done} operations in, something is lost"
    return n_done


class MemoryOnly:
    """A disk for replaying what a workload did: it says yes to all, and keeps nothing."""

    def open(self, name: str) -> int:
        raise FileNotFoundError(name)

    def listdir(self) -> list[str]:
        return []

    def __getattr__(self, name: str) -> object:
        return lambda *args: 0


# --- a whole kernel ---


class Saver:
    """Kernels on one directory, one after the other, and what they have said."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = f"tcp://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "gpuworker", "--listen", self.address, "--backend", "null"]
        self.worker = Running(command, dict(os.environ))
        self.state: dict[str, int] = {}  # name → number, as acknowledged
        self.doubt: dict[str, int] = {}  # the same, with what was under way
        self.number = 0

    def kill(self, seed: int, dice: random.Random) -> int:
        """One kernel; how many calls it had acknowledged. Raises AssertionError."""
        options = ["--kv-dir", str(self.directory / "kv"), "--kernel-name", "chaos", "--no-local-worker"]
        options += ["--worker", self.address, "--no-http", "--socket", str(self.directory / "k.sock")]
        command = [sys.executable, "-m", "kernel", *options, "run", str(SAVER)]
        command += ["--first", str(self.number), "--seed", str(seed)]
        child = subprocess.Popen(
            command, cwd=HOUSE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            self._check(child)
            time.sleep(dice.random() * 5 * LONGEST_S)
        finally:
            child.kill()
        said = child.stdout.read()
        child.stderr.read()
        child.wait()
        child.stdout.close()
        child.stderr.close()
        return self._follow(said)

    def _check(self, child: "subprocess.Popen[str]") -> None:
        seen: dict[str, int | str] = {}
        assert child.stdout is not None
        assert child.stderr is not None
        while line := child.stdout.readline():
            word, *rest = line.split()
            if word == "looked":
                break
            if word == "found":
                seen[rest[0]] = int(rest[1]) if rest[1].isdecimal() else rest[1]
        else:
            raise AssertionError(f"a kernel did not start: {child.stderr.read()}")
        assert seen in (self.state, self.doubt), f"found {seen}, and {self.state} or {self.doubt} was to be there"
        self.state = self.doubt = dict(seen)  # type: ignore[arg-type]

    def _follow(self, said: str) -> int:
        """What the program did, as far as it said so."""
        n_done = 0
        for line in said.splitlines():
            match line.split():
                case ["begin", "save", name, number]:
                    self.number = int(number) + 1
                    self.doubt = {**self.state, name: int(number)}
                case ["begin", "rename", name, other]:
                    moved = {k: v for k, v in self.state.items() if k != name}
                    self.doubt = {**moved, other: self.state[name]}
                case ["begin", "unlink", name]:
                    self.doubt = {k: v for k, v in self.state.items() if k != name}
                case ["done"]:
                    self.state = self.doubt
                    n_done += 1
        return n_done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="of a process that runs the store alone")
    parser.add_argument("--kernels", type=int, default=1000, help="kills of a whole kernel")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dice = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as path:
        try:
            began, n_done = time.perf_counter(), 0
            for i in range(given.kills):
                n_done += kill_store(given.seed + i, Path(path) / "store", dice)
            seconds = time.perf_counter() - began
            print(f"{given.kills} kills of the store, {n_done} operations acknowledged, 0 lost; {seconds:.1f} s")
            saver = Saver(Path(path))
            try:
                saver.worker.wait_for("ready", 30)
                began, n_done = time.perf_counter(), 0
                for i in range(given.kernels):
                    n_done += saver.kill(given.seed + i, dice)
                seconds = time.perf_counter() - began
            finally:
                saver.worker.end(signal.SIGKILL)
            print(f"{given.kernels} kills of a kernel, {n_done} calls acknowledged, 0 lost; {seconds:.1f} s")
        except (AssertionError, Damaged) as e:
            print(f"lost or torn: {e}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
