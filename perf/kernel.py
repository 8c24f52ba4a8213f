"""What can the kernel do when the model costs nothing? Calls, batches, spawns and memory, on a null worker.

The kernel is in this process, the null worker in one of its own. The parts of a batch are timed apart from all that,
on a batcher that is driven by hand: `plan` and the encoding before it is sent, the decoding and `done` after.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import psutil

import sdk
from gpuworker import nulltext
from gpuworker.wire import Answer, Batch, BatchDone, BatchDoneHead, RowDone, decode_to_kernel, encode
from kernel.batcher import Batcher
from kernel.boot import calm_collector
from kernel.config import Config
from kernel.costs import StepCosts
from kernel.counters import Counters
from kernel.generate import GenerateJob
from kernel.language import Language
from kernel.memory import Memory
from kernel.pacing import firing
from kvfs.access import KERNEL
from kvfs.fs import Kvfs
from perf.harness import Failed, Findings
from perf.inside import Inside, Main, inside
from sdk import kv
from sdk.abi.errors import SyscallError
from sdk.abi.values import Decoding

VOCAB = 512  # of the null model
MANY = (64, 256)  # programs
ROWS = (1, 16, 64, 256)  # of a batch
TOKEN = 65


class Load(NamedTuple):
    """How much of everything."""

    rounds: int
    n_calls: int
    n_preds: int
    n_generated: int
    n_spawns: int
    n_steps: int
    n_idle: int


FULL = Load(rounds=7, n_calls=100_000, n_preds=2000, n_generated=64, n_spawns=2000, n_steps=200, n_idle=10_000)
QUICK = Load(rounds=1, n_calls=5000, n_preds=128, n_generated=8, n_spawns=200, n_steps=20, n_idle=200)


def measure(quick: bool = False) -> Findings:
    found, load = Findings(), QUICK if quick else FULL
    calm_collector()  # as the kernel does
    for n_rows in ROWS:
        batches(found, n_rows, load.n_steps)

    async def body(house: Inside) -> None:
        await idle(found, house, load)  # first, while no memory has been freed that it could take
        await rates(found, house, load)

    inside(Config(http=False, backend="null"), body)
    return found


# --- a batch ----------------------------------------------------------------------------------------------------


def batches(found: Findings, n_rows: int, n_steps: int) -> None:
    """Steps of so many generations under way."""
    batcher = generating(n_rows, n_steps + 8)
    parts: dict[str, list[float]] = {"plan": [], "encode": [], "decode": [], "done": [], "all": []}
    for step in range(n_steps + 3):
        t0 = time.perf_counter()
        batch = batcher.plan(0.0)
        t1 = time.perf_counter()
        assert batch is not None
        encode(batch)
        t2 = time.perf_counter()
        answer = encode(answered(batch))
        t3 = time.perf_counter()
        done = decode_to_kernel(answer)
        t4 = time.perf_counter()
        assert isinstance(done, BatchDone)
        batcher.done(done, 0.0)
        batcher.take_ended()
        batcher.deliver()
        t5 = time.perf_counter()
        if step >= 3:  # the prompts, and the first steps of all
            spent = (t1 - t0, t2 - t1, t4 - t3, t5 - t4, t2 - t0 + t5 - t3)
            for samples, s in zip(parts.values(), spent, strict=True):
                samples.append(1e6 * s)
    for part, samples in parts.items():
        found.add(f"batch of {n_rows}: {part}", "us", samples)
    found.add(f"batch of {n_rows}: all, of a row", "us", [us / n_rows for us in parts["all"]])


def generating(n_rows: int, n_tokens: int) -> Batcher:
    """A batcher with that many generations, on a device that nobody else uses."""
    fs = Kvfs()
    fs.add_device("perf", n_pages=n_rows * (1 + n_tokens // 8), page_size=16)
    costs, counters = StepCosts(), Counters()
    batcher = Batcher(
        fs,
        max_rows=n_rows,
        max_tokens=2048,
        vocab_size=VOCAB,
        memory=Memory(fs, "perf", costs, counters, lambda pid: None, mode="auto", shares={}, hold_s=600.0),
        costs=costs,
        firing=firing("eager", 1, 1.0),
        order=lambda jobs, now: jobs,
        counters=counters,
    )
    language = Language(nulltext.assets(VOCAB))
    for _ in range(n_rows):
        file = fs.create(None, who=KERNEL, now=0.0, device="perf")
        job = GenerateJob(
            file,
            [TOKEN] * 16,
            Decoding(max_tokens=n_tokens, ignore_eos=True),
            language=language,
            eos_tokens=frozenset(),
            n_room=n_tokens,
            next_position=0,
            last_token=0,
            seed=0,
            history=list,
            on_done=lambda generation: None,
            on_fail=failed,
        )
        job.claim = fs.claim(file)
        batcher.submit(job, 0.0)
    return batcher


def answered(batch: Batch) -> BatchDone:
    """What a worker would answer."""
    rows = [RowDone(row.job, [Answer(sample=TOKEN) for _ in row.asks]) for row in batch.head.rows]
    return BatchDone(BatchDoneHead(batch.head.seq, rows, len(batch.tokens), 0.0))


def failed(error: SyscallError) -> None:
    raise Failed(f"a generation failed: {error}")


# --- a running kernel -------------------------------------------------------------------------------------------


async def idle(found: Findings, house: Inside, load: Load) -> None:
    """What programs cost that do nothing but wait: memory, the time to start them, and what it takes to wake some."""
    await asyncio.gather(*(house.value(nothing) for _ in range(100)))
    gc.collect()
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    processes = [house.start(waits) for _ in range(load.n_idle)]
    while not all(process.waiting for process in processes):  # noqa: ASYNC110  (nobody would set an event)
        await asyncio.sleep(0.001)
    found.add("idle programs started", "1/s", [load.n_idle / (time.perf_counter() - began)])
    n_bytes = psutil.Process().memory_info().rss - before
    if load is FULL:  # a few fit into memory that the process has already
        found.add(f"memory of {load.n_idle} idle programs", "MiB", [n_bytes / 2**20])
    late = [sorted(await beside_a_hog(house)) for _ in range(load.rounds)]
    found.add("late when woken beside a hog, p99 of 100", "ms", [1e3 * times[98] for times in late])
    for process in processes:
        house.kernel.kill(process.pid, "it was measured")
    await asyncio.gather(*(process.wait_exit() for process in processes))


async def beside_a_hog(house: Inside) -> list[float]:
    """Seconds by which 100 programs wake too late that want to wake while another holds the kernel for its budget."""
    wake_at = house.kernel.now() + 0.2
    hog = house.start(hogs, at=wake_at - 0.005)
    late: list[float] = await asyncio.gather(*(house.value(naps, until=wake_at) for _ in range(100)))
    await hog.wait_exit()
    return late


async def rates(found: Findings, house: Inside, load: Load) -> None:
    """What programs can do in a second."""

    async def seconds(run: Callable[[], Awaitable[object]]) -> list[float]:
        taken = []
        for turn in range(load.rounds + 1):
            began = time.perf_counter()
            await run()
            if turn:  # the first warms up
                taken.append(time.perf_counter() - began)
        return taken

    async def rate(name: str, main: Main, n_programs: int, n: int) -> None:
        """`n` things in each of the programs."""

        async def run() -> None:
            await asyncio.gather(*(house.value(main, n=n) for _ in range(n_programs)))

        found.add(name, "1/s", [n_programs * n / s for s in await seconds(run)])

    await rate("getpid", getpids, 1, load.n_calls)
    await rate("tokens of a file of 200", tokens, 1, load.n_calls // 10)
    await rate("pred of a token, 1 program", preds, 1, load.n_preds)
    for n in MANY:
        await rate(f"pred of a token, {n} programs", preds, n, 2 * load.n_preds // n)
    await rate("generated tokens, 1 program", generates, 1, 8 * load.n_generated)
    for n in MANY:
        await rate(f"generated tokens, {n} programs", generates, n, load.n_generated)

    async def spawn() -> None:
        await asyncio.gather(*(house.value(nothing) for _ in range(load.n_spawns)))

    found.add("spawn to exit", "1/s", [load.n_spawns / s for s in await seconds(spawn)])


# --- programs ---------------------------------------------------------------------------------------------------


async def nothing() -> None:
    """The shortest program."""


async def waits() -> None:
    await sdk.process.sleep(3600.0)


async def naps(until: float) -> float:
    """Seconds too late."""
    await sdk.process.sleep(max(0.0, until - await sdk.process.now()))
    return await sdk.process.now() - until


async def hogs(at: float) -> None:
    """Holds the kernel until it is stopped."""
    await sdk.process.sleep(max(0.0, at - await sdk.process.now()))
    while True:
        pass


async def getpids(n: int) -> None:
    for _ in range(n):
        await sdk.getpid()


async def tokens(n: int) -> None:
    async with await kv.create() as file:
        await file.append([TOKEN] * 200)
        for _ in range(n):
            await file.tokens()


async def preds(n: int) -> None:
    async with await kv.create() as file:
        for _ in range(n):
            await file.pred([TOKEN], top_k=1)


async def generates(n: int) -> None:
    async with await kv.create() as file:
        await file.generate([TOKEN], max_tokens=n, ignore_eos=True)
