"""The kernel's own worker: started, taken over by the next kernel, ended."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel.local import Adopted, LocalWorker, WorkerFailed, adopt
from kernel.rundir import RunDirectory, WorkerRecord

NULL = ("--backend", "null", "--num-pages", "16")
ADDRESS = "ipc:///tmp/somewhere/worker-0"


@pytest.fixture
def idler():
    """A process that a record may name, without being a worker."""
    command = [sys.executable, "-c", "print(flush=True); input()", ADDRESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


async def test_the_next_kernel_takes_it_over(tmp_path: Path):
    first = await LocalWorker.start(tmp_path, NULL)
    second = await LocalWorker.start(tmp_path, NULL, 1)
    assert (second.process.pid, second.address) == (first.process.pid, first.address)
    await second.end()
    assert await first.process.wait() is not None
    assert second.process.returncode == Adopted.UNKNOWN
    third = await LocalWorker.start(tmp_path, NULL, 1)
    assert third.process.pid != first.process.pid
    assert third.address == f"ipc://{tmp_path}/worker-1"
    await third.kill()
    await third.end()  # twice is no error


async def test_one_that_does_not_start(tmp_path: Path):
    with pytest.raises(WorkerFailed, match="status 2"):
        await LocalWorker.start(tmp_path, ("--backend", "null", "--num-pages", "0"))


async def test_its_parent_is_the_owner_of_the_directory(tmp_path: Path):
    run = RunDirectory.create()
    worker = await LocalWorker.start(run.path, NULL)
    words = Path(f"/proc/{worker.process.pid}/cmdline").read_text().split("\0")
    assert words[words.index("--parent") + 1] == str(os.getpid())
    await worker.end()
    run.remove()


async def test_a_process_that_is_gone_is_not_adopted(idler):
    idler.kill()
    idler.wait()
    assert adopt(WorkerRecord(idler.pid, ADDRESS)) is None


async def test_a_process_that_is_another_is_not_adopted(idler):
    assert adopt(WorkerRecord(idler.pid, "ipc:///tmp/elsewhere/worker-0")) is None


async def test_the_end_of_an_adopted_process(idler):
    adopted = adopt(WorkerRecord(idler.pid, ADDRESS))
    waiter = asyncio.ensure_future(adopted.wait())
    await asyncio.sleep(0)
    assert adopted.returncode is None
    adopted.kill()
    assert await waiter == adopted.returncode == Adopted.UNKNOWN
    adopted.kill()  # it is gone: no error, and nobody else is hit
