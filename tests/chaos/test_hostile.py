"""Every kind of misbehaving program, again and again, in a real kernel among programs that behave.

`make hostile` runs each kind 50 times among 50 good programs; here it is a few. What it costs the good ones is
measured by `python -m perf guard`.
"""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kernel.guard import XCPU
from perf.hostile import KINDS
from sdk.client import Client, NoKernel

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

HOUSE = Path(__file__).resolve().parents[2]
HOSTILE = HOUSE / "perf" / "hostile.py"
TIMES = int(os.environ.get("HOSTILE_TIMES", "2"))  # of each kind
GOOD = int(os.environ.get("HOSTILE_GOOD", "10"))  # programs that behave, all the time
AT_ONCE = 8  # hostile ones
OTHERWISE = {"exits": 3, "breeds": 1}  # kinds that end in a way of their own

SPEAK = """
from sdk import kv

async def main(n: int):
    async with await kv.prompt(f"a program that behaves, number {n}") as file:
        return await file.text(max_tokens=16)
"""


@pytest.fixture
def kernel(tmp_path):
    """A kernel with its supervisor: (socket, what it has said)."""
    path = tmp_path / "run" / "kernel.sock"
    command = [sys.executable, "-m", "kernel", "--backend", "null", "--no-http", "--socket", str(path)]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=HOUSE, stdin=subprocess.DEVNULL, stderr=log)
        try:
            yield path, tmp_path / "log"
        finally:
            process.terminate()
            assert process.wait(60) == 0


async def ready(client):
    while True:
        try:
            return await client.ps()
        except NoKernel:
            await asyncio.sleep(0.05)


async def end(client, file, **args):
    """Run a program; how it ended."""
    async for event in client.run(file=file, args=args):
        last = event
    return last.exit


async def test_hostile_programs_end_and_good_ones_do_not_notice(kernel, tmp_path):
    path, log = kernel
    speak = tmp_path / "speak.py"
    speak.write_text(SPEAK)
    turns, over, ended = asyncio.Semaphore(AT_ONCE), asyncio.Event(), []
    async with Client(path) as client:
        await ready(client)
        expected = [(await end(client, speak, n=n)).result for n in range(GOOD)]

        async def good(n):
            n_right = 0
            while not over.is_set():
                assert (await end(client, speak, n=n)).result == expected[n]
                n_right += 1
            return n_right

        async def hostile(kind):
            async with turns:
                ended.append((kind, (await end(client, HOSTILE, kind=kind)).code))

        goods = [asyncio.create_task(good(n)) for n in range(GOOD)]
        await asyncio.gather(*(hostile(kind) for _ in range(TIMES) for kind in KINDS))
        over.set()
        n_right = await asyncio.gather(*goods)
        assert await client.ps() == []
        assert await client.last_end() is None
    said = log.read_text()
    assert Counter(ended) == {(kind, OTHERWISE.get(kind, XCPU)): TIMES for kind in KINDS}
    assert min(n_right) > 0
    assert "supervisor" not in said
    assert "panic" not in said
    assert "library" not in said  # nothing was interrupted where it may have held a lock
