"""Directories that outlive kernels, and those that are left over."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kernel.rundir import LOCK, PREFIX, RunDirectory, Standing, WorkerRecord


@pytest.fixture(autouse=True)
def tmp(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_one_is_private_and_knows_its_owner():
    run = RunDirectory.create()
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert run.owner == os.getpid()
    assert RunDirectory(run.path).owner == os.getpid()
    run.remove()
    assert not run.path.exists()


def test_a_directory_that_nobody_has_claimed_is_ours(tmp):
    assert RunDirectory(tmp).owner == os.getpid()


def test_those_of_dead_owners_are_removed_and_no_others(tmp):
    code = "import os; from kernel.rundir import *; print(RunDirectory.create().path, flush=True); os._exit(9)"
    environ = {**os.environ, "TMPDIR": str(tmp)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    dead = Path(done.stdout.strip())
    assert (dead / LOCK).exists()
    (tmp / f"{PREFIX}0").mkdir()  # of a socket, not of a kernel
    first = RunDirectory.create()
    assert not dead.exists()
    second = RunDirectory.create()
    assert first.path.exists()
    assert (tmp / f"{PREFIX}0").exists()
    first.remove()
    second.remove()


def test_records():
    run = RunDirectory.create()
    assert run.kept(Standing) is None
    run.keep(Standing(8000, ["tcp://a:1"]))
    run.keep(Standing(8001, ["tcp://a:1", "tcp://b:1"]))
    assert RunDirectory(run.path).kept(Standing) == Standing(8001, ["tcp://a:1", "tcp://b:1"])
    (run.path / "Standing").write_bytes(b'{"port": 80')
    assert run.kept(Standing) is None
    run.remove()


def test_workers_come_and_go():
    run = RunDirectory.create()
    run.attached("tcp://a:1")  # the kernel does not serve yet
    assert run.kept(Standing) is None
    run.keep(Standing(0, ["tcp://a:1"]))
    run.attached("tcp://b:1")
    run.detached("tcp://a:1")
    run.detached("tcp://c:1")
    assert run.kept(Standing) == Standing(0, ["tcp://b:1"])
    run.remove()


def test_a_worker_is_known_by_its_address_too():
    """Pids come again."""
    assert not WorkerRecord(os.getpid(), "ipc:///tmp/somewhere/worker-0").is_running()
    with subprocess.Popen([sys.executable, "-c", "input()", "ipc:///x"], stdin=subprocess.PIPE) as process:
        while not WorkerRecord(process.pid, "ipc:///x").is_running():  # it is still to be exec'ed
            pass
        process.kill()
        process.wait()
        assert not WorkerRecord(process.pid, "ipc:///x").is_running()
