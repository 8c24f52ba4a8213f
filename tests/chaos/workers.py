"""kill -9, SIGSTOP, attach and drain of real worker processes under load: what `make chaos` runs.

A kernel with two workers, and clients that run programs all the time. Every program's answer, and every token that it
streams, must be that of an undisturbed run; none may fail.

    python -m tests.chaos.workers --kills 200                  # null workers
    python -m tests.chaos.workers --kills 20 --backend torch   # the default model in fp32
"""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sdk.client import Client
from tests.e2e.conftest import Kernel, Running, free_port

LOAD = Path(__file__).with_name("load.py")
N_TASKS = 12
N_CLIENTS = 6


class Worker:
    """A worker that is started again at the same address as often as it is killed."""

    def __init__(self, options: list[str]) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.options = options
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "gpuworker", "--listen", self.address, *self.options]
        self.running = Running(command, None)  # type: ignore[arg-type]

    def kill(self) -> None:
        self.running.end(signal.SIGKILL)
        self.start()


class Load:
    """Clients that run programs until they are told to stop, and compare."""

    def __init__(self, client: Client, n_tokens: int) -> None:
        self.client, self.n_tokens = client, n_tokens
        self.expected: dict[int, Any] = {}
        self.n_done = 0
        self.wrong: list[str] = []
        self.stop = False
        self.longest_s = 0.0

    async def once(self, task: int) -> Any:
        emitted: list[int] = []
        async for event in self.client.run(file=LOAD, args={"task": task, "n": self.n_tokens}):
            if isinstance(event.emit, list):
                emitted += event.emit
            if event.exit is not None:
                if event.exit.code != 0:
                    return f"task {task} failed: {event.exit.error}"
                return [event.exit.result, emitted]
        return f"task {task} has no end"

    async def calm(self) -> None:
        """What the answers are when nothing happens."""
        for task, answer in enumerate(await asyncio.gather(*(self.once(t) for t in range(N_TASKS)))):
            if isinstance(answer, str):
                raise SystemExit(answer)
            assert answer[0][1] == answer[1], "the stream is what was returned of it"
            self.expected[task] = answer

    async def forever(self, first: int) -> None:
        task = first
        while not self.stop:
            began = time.monotonic()
            answer = await self.once(task)
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            if answer != self.expected[task]:
                self.wrong.append(
                    answer
                    if isinstance(answer, str)
                    else f"task {task} differs: {differs(answer, self.expected[task])}"
                )
            self.n_done += 1
            task = (task + 1) % N_TASKS


def differs(got: Any, wanted: Any) -> str:
    return next(
        f"{g!r:.120} instead of {w!r:.120}"
        for g, w in zip([*got[0], got[1]], [*wanted[0], wanted[1]], strict=True)
        if g != w
    )


def metric(kernel: Kernel, name: str) -> float:
    for line in kernel.http.get("/metrics").text.splitlines():
        if line.startswith(f"symphony_{name} "):
            return float(line.split()[1])
    raise KeyError(name)


async def until(what: Any, timeout_s: float, why: str) -> None:
    """Wait for a condition of another process."""
    deadline = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {timeout_s:g} s for {why}")
        await asyncio.sleep(0.01)


async def run(n_kills: int, n_stops: int, n_drains: int, options: list[str], n_tokens: int, seed: int) -> int:
    dice = random.Random(seed)
    workers = [Worker(options), Worker(options)]
    with tempfile.TemporaryDirectory(prefix="symphony-chaos-") as directory:
        attach = [part for w in workers for part in ("--worker", w.address)]
        for w in workers:
            w.running.wait_for("ready on", 120)
        kernel = Kernel(Path(directory), "--no-local-worker", *attach)
        try:
            async with Client(kernel.socket) as client:
                load = Load(client, n_tokens)
                await load.calm()
                clients = [asyncio.ensure_future(load.forever(i)) for i in range(N_CLIENTS)]
                began = time.monotonic()
                for i in range(n_kills):
                    victim = dice.choice(workers)
                    await under_load(load, clients, dice)
                    victim.kill()
                    await until(lambda i=i: metric(kernel, "workers_lost_total") >= i + 1, 10, "the loss to be noticed")
                    await until(lambda: metric(kernel, 'workers{state="ready"}') == 2, 60, "the worker to be back")
                    print(
                        f"\rkill {i + 1} of {n_kills}: {load.n_done} programs, {len(load.wrong)} wrong",
                        end="",
                        flush=True,
                    )
                lost = n_kills
                noticed = []
                for i in range(n_stops):
                    victim = dice.choice(workers)
                    await under_load(load, clients, dice)
                    victim.running.process.send_signal(signal.SIGSTOP)
                    stopped = time.monotonic()
                    lost += 1
                    await until(
                        lambda lost=lost: metric(kernel, "workers_lost_total") >= lost, 10, "a stop to be noticed"
                    )
                    noticed.append(time.monotonic() - stopped)
                    n = load.n_done
                    await until(lambda n=n: load.n_done > n + N_CLIENTS, 60, "programs to go on")
                    victim.running.process.send_signal(signal.SIGCONT)
                    await until(lambda: metric(kernel, 'workers{state="ready"}') == 2, 60, "the worker to be back")
                    print(f"\rstop {i + 1} of {n_stops}: noticed after {noticed[-1]:.2f} s", end="", flush=True)
                for i in range(n_drains):
                    victim = dice.choice(workers)
                    await under_load(load, clients, dice)
                    done = await asyncio.to_thread(kernel.lip, "worker", "detach", "--drain", victim.address)
                    if done.returncode:
                        load.wrong.append(f"drain: {done.stderr.strip()}")
                    n = load.n_done
                    await until(lambda n=n: load.n_done > n + N_CLIENTS, 60, "programs to go on")
                    done = await asyncio.to_thread(kernel.lip, "worker", "attach", victim.address)
                    if done.returncode:
                        load.wrong.append(f"attach: {done.stderr.strip()}")
                    print(
                        f"\rdrain {i + 1} of {n_drains}: {load.n_done} programs, {len(load.wrong)} wrong",
                        end="",
                        flush=True,
                    )
                load.stop = True
                await asyncio.gather(*clients)
            seconds = time.monotonic() - began
            figures = {
                n: metric(kernel, n) for n in ("recomputed_tokens_total", 'kv_pages_moved_total{how="migrated"}')
            }
            free = metric(kernel, "kv_cache_usage_perc")
        finally:
            status = kernel.end()
            for w in workers:
                w.running.end(signal.SIGKILL)
    print(
        f"\n{n_kills} kills, {n_stops} stops, {n_drains} drains in {seconds:.0f} s: {load.n_done} programs, "
        f"{len(load.wrong)} wrong, the longest took {load.longest_s:.2f} s; {figures}; "
        f"stops noticed within {max(noticed, default=0.0):.2f} s; kernel ended with {status}, pages in use {free:g}"
    )
    for line in load.wrong[:10]:
        print("  " + line)
    return bool(load.wrong) or status != 0 or free != 0 or max(noticed, default=0.0) > 1.0


async def under_load(load: Load, clients: list[Any], dice: random.Random) -> None:
    """Wait until programs have been running for a moment of random length."""
    for c in clients:
        if c.done():
            c.result()
    n = load.n_done
    await until(lambda: load.n_done > n, 120, "programs to run")
    await asyncio.sleep(dice.random() * 0.1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.workers")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=3)
    parser.add_argument("--drains", type=int, default=5)
    parser.add_argument("--backend", choices=["null", "torch"], default="null")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.backend == "null":
        options, n_tokens = ["--backend", "null", "--step-time-us", "1000"], 24
    else:
        options, n_tokens = ["--dtype", "float32", "--threads", "1", "--num-pages", "512"], 16
    return asyncio.run(run(args.kills, args.stops, args.drains, options, n_tokens, args.seed))


if __name__ == "__main__":
    raise SystemExit(main())
