"""Whole situations in virtual time that return figures, for tests to judge and for `perf` to print.

Each takes what can be varied as arguments, and options of the kernel's as `settings`; its programs do fixed work, so
the figures are the scheduler's doing and nothing else. Device time follows the plan's cost model: by default that of a
model of eight billion parameters on one large accelerator, some 6 ms a step.

    exhaustion      programs that want several times the pages there are
    fairness        equal programs that compete for rows
    greedy_tenant   one tenant with many programs beside one with a single program
    tool_waits      agents that wait for tools while their KV does not fit
    isolation       one tenant that takes the time of its own calls while another's cache is hit, or is not
"""

import asyncio
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from gpuworker.stepcost import StepCost
from kernel.process import Process
from sdk import KVFile, Sampling, kv, process
from sdk.abi.errors import FileNotFound, SyscallError
from tests.sim.loop import SimLoop, deterministic
from tests.sim.material import Main
from tests.sim.plan import Options, Plan
from tests.sim.reference import ALONE
from tests.sim.run import Report, simulate, until
from tests.sim.transport import Weather
from tests.sim.worker import Cost
from tests.sim.world import World, program_of

LARGE_MODEL = Cost(StepCost(step_s=0.006, row_s=0.00002, token_s=0.00003, context_s=0.00000002), page_s=0.00002)
BASE = msgspec.structs.replace(
    ALONE,
    page_size=16,
    max_model_len=4096,
    verify=False,
    max_rows=256,
    max_tokens=2048,
    heartbeat_s=0.5,
    weather=Weather(),
    cost=LARGE_MODEL,
)
LIMIT_S = 3600.0
N_FOUND = 16  # tokens that a tool finds
REST, BURST = 4, 6  # a prober looks every so many periods; its neighbour uses so many documents in each


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all shares are equal, 1/n when one has all (Jain, Chiu and Hawe, 1984)."""
    squares = sum(x * x for x in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def smirnov(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The two-sample Kolmogorov-Smirnov statistic, and how likely one as large is if both are drawn alike: the series
    of Kolmogorov's distribution at the argument of Stephens (1970)."""
    both = sorted({*a, *b})
    a, b = sorted(a), sorted(b)
    d = max(abs(bisect_right(a, x) / len(a) - bisect_right(b, x) / len(b)) for x in both)
    root = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    at = (root + 0.12 + 0.11 / root) * d
    if at < 0.2:  # where the series is slow, it is 1 for all that can be said
        return d, 1.0
    return d, min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * at) ** 2) for k in range(1, 101)))


# --- programs ---------------------------------------------------------------------------------------------------


async def writer(seed: int, n_prompt: int, n_tokens: int) -> str:
    """One prompt, one answer of a fixed length."""
    async with await kv.create() as file:
        await file.append(prompt(seed, n_prompt))
        return await file.text(Sampling(temperature=1.0, seed=seed), max_tokens=n_tokens, ignore_eos=True)


async def tool_user(seed: int, n_prompt: int, n_tokens: int, n_turns: int, wait_s: float) -> str:
    """An agent: writes, waits for its tool, reads what it found."""
    async with await kv.create() as file:
        await file.append(prompt(seed, n_prompt))
        for turn in range(n_turns):
            await file.generate(None, Sampling(temperature=1.0, seed=seed + turn), max_tokens=n_tokens, ignore_eos=True)
            await process.sleep(wait_s)
            await file.append(prompt(seed + turn, N_FOUND))
        return await file.read_text()


def prompt(seed: int, n_tokens: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randint(97, 122) for _ in range(n_tokens)]


async def document(seed: int, n_prompt: int) -> KVFile:
    """A document that is kept by name; it is computed if it is not there."""
    try:
        return await kv.open(f"/doc-{seed}", "r")
    except FileNotFound:
        file = await kv.create(f"/doc-{seed}")
        await file.append(prompt(seed, n_prompt))
        return file


async def prober(n_docs: int, n_prompt: int, n_probes: int, period_s: float, held: bool) -> tuple[Any, list[str]]:
    """Takes the time of its own documents, of prompts that are the same as somebody else's, and of names that somebody
    else has. `held`: it keeps its documents open. Returns the seconds of each, and all that it was told."""
    kept = [await document(i, n_prompt) for i in range(n_docs)]
    if not held:
        for doc in kept:
            await doc.close()
    found: list[list[float]] = [[], [], []]
    told: list[str] = []
    for i in range(n_probes):
        await process.sleep(REST * period_s - await process.now() % period_s)
        began = await process.now()
        async with await document(i % n_docs, n_prompt) as doc, await doc.fork() as file:
            await file.pred([100])
        found[0].append(await process.now() - began)
        began = await process.now()
        async with await kv.create() as file:
            await file.pred(prompt(1000 + i % n_docs, n_prompt))
        found[1].append(await process.now() - began)
        began = await process.now()
        told.append(await tries_names(f"doc-{1000 + i % n_docs}"))
        found[2].append(await process.now() - began)
        told.append(await looks_around(f"/doc-{i % n_docs}"))
    return found, told


async def tries_names(name: str) -> str:
    """What a tenant is told of a name that another has, by each call that could know it."""
    told: list[Any] = []
    for path in (f"/{name}", f"/tenants/bob/{name}", f"/home/bob/{name}", f"/shared/{name}"):
        for call in (kv.stat(path), kv.open(path, "r"), kv.readdir(path), kv.rename(path, "/mine"), kv.unlink(path)):
            try:
                told.append(await call)
            except SyscallError as e:
                told.append(str(e))
    await (await kv.create(f"/{name}")).close()  # not EEXIST
    await kv.unlink(f"/{name}")
    return str(told)


async def looks_around(path: str) -> str:
    """All that a tenant can ask for, but for times."""
    stat, quota = await kv.stat(path), await kv.quota()
    stat = msgspec.structs.replace(stat, created_s=0.0, modified_s=0.0, used_s=0.0)
    return str([stat, await kv.readdir("/"), msgspec.structs.replace(quota, kv_byte_s=0.0), await kv.df()])


async def neighbour(first: int, n_docs: int, n_prompt: int, n_rounds: int, period_s: float, held: bool) -> None:
    """Uses documents of its own between the probes, `n_docs` of them in turn. `held`: it keeps them all open."""
    kept: list[KVFile] = []
    for i in range(n_rounds):
        await process.sleep(1.25 * period_s - await process.now() % period_s)
        for j in range(BURST):
            doc = await document(first + (BURST * i + j) % n_docs, n_prompt)
            async with await doc.fork() as file:
                await file.pred([100])
            if held and len(kept) < n_docs:
                kept.append(doc)
            else:
                await doc.close()


class Job(Struct):
    """A program to run, and what became of it."""

    main: Main
    args: dict[str, Any]
    owner: str = "tester"
    at_s: float = 0.0
    process: Process | None = None
    seconds: float = 0.0  # from its start to its end
    result: bytes = b""


def perform(
    jobs: list[Job],
    plan: Plan,
    *,
    n_tokens: int,
    beside: Callable[[World], Coroutine[Any, Any, None]] | None = None,
    **settings: Any,
) -> tuple[World, float]:
    """Run programs on one worker with room for so many tokens: the world after it, and the seconds it took."""
    with deterministic():
        loop = SimLoop()
        try:
            return loop.run_until_complete(_perform(loop, jobs, plan, n_tokens, beside, settings)), loop.time()
        finally:
            loop.close()


async def _perform(
    loop: SimLoop,
    jobs: list[Job],
    plan: Plan,
    n_tokens: int,
    beside: Callable[[World], Coroutine[Any, Any, None]] | None,
    settings: dict[str, Any],
) -> World:
    world = World(loop, plan, n_tokens=n_tokens, **settings)
    await world.attach_all()
    began = loop.time()
    observer = loop.create_task(beside(world)) if beside is not None else None
    await asyncio.gather(*(_run(world, job, began) for job in jobs))
    if observer is not None:
        await observer
    await world.kernel.stop(1.0)
    if world.broken or world.kernel.panicked.done():
        raise AssertionError(f"{world.broken} {world.kernel.panicked}")
    return world


async def _run(world: World, job: Job, began: float) -> None:
    await asyncio.sleep(began + job.at_s - world.loop.time())
    started = world.loop.time()
    job.process = world.kernel.spawn(program_of(job.main), job.args, owner=job.owner, client=None)
    status = await job.process.wait_exit()
    if status.code:
        raise AssertionError(f"{job.main.__name__} of {job.owner} failed: {status.error}\n{status.traceback}")
    job.seconds, job.result = world.loop.time() - started, status.result


def n_held(world: World, job: Job) -> int:
    """Tokens in the files that a program has open."""
    pid = job.process.pid if job.process is not None else None
    return sum(len(file.inode.tokens) for file in world.kernel.fs.open_files if file.pid == pid)


# --- situations -------------------------------------------------------------------------------------------------


class Exhaustion(Struct, frozen=True):
    """What became of programs that want more pages than there are."""

    n_seeds: int
    broken: list[Report]  # any that did not end as they do with room for all


def exhaustion(seeds: range, *, pages: str = "4x", faults: tuple[str, ...] = ()) -> Exhaustion:
    """Random programs that together want four times the pages. None may wait for ever, all must end as ever."""
    options = Options(faults=faults, pages=pages)
    reports = [simulate(seed, options) for seed in seeds]
    return Exhaustion(len(reports), [report for report in reports if report.broken])


class Fairness(Struct, frozen=True):
    """How evenly equal programs were served."""

    jain_service: float  # of tokens computed, half way
    jain_completion: float  # of the times they took
    seconds: list[float]  # those


def fairness(
    *, n_programs: int = 32, n_prompt: int = 64, n_tokens: int = 64, max_rows: int = 8, **settings: Any
) -> Fairness:
    """Equal programs, four times as many as a batch has rows."""
    jobs = [
        Job(writer, {"seed": i, "n_prompt": n_prompt, "n_tokens": n_tokens}, owner=f"tenant-{i}")
        for i in range(n_programs)
    ]
    shares: list[float] = []

    async def half_way(world: World) -> None:
        def served() -> list[float]:
            return [float(n_prompt + n_tokens if job.result else n_held(world, job)) for job in jobs]

        await until(lambda: sum(served()) >= n_programs * (n_prompt + n_tokens) / 2, LIMIT_S)
        shares.extend(served())

    plan = msgspec.structs.replace(BASE, max_rows=max_rows)
    perform(jobs, plan, n_tokens=n_programs * (n_prompt + n_tokens) * 2, beside=half_way, **settings)
    seconds = [job.seconds for job in jobs]
    return Fairness(jain(shares), jain(seconds), seconds)


class GreedyTenant(Struct, frozen=True):
    """What a modest tenant pays for a greedy one."""

    alone_s: float  # its program's time
    beside_one_s: float  # and beside one equal competitor
    beside_many_s: float

    @property
    def ratio(self) -> float:
        return self.beside_many_s / self.beside_one_s


def greedy_tenant(
    *, n_greedy: int = 64, n_prompt: int = 256, n_tokens: int = 128, max_rows: int = 64, **settings: Any
) -> GreedyTenant:
    """A tenant with one program, beside a tenant with one and beside a tenant with many that were there first."""

    def seconds(n: int) -> float:
        args = {"n_prompt": n_prompt, "n_tokens": n_tokens}
        greedy = [Job(writer, {"seed": 1 + i, **args}, owner="greedy") for i in range(n)]
        modest = Job(writer, {"seed": 0, **args}, owner="modest", at_s=0.05)
        plan = msgspec.structs.replace(BASE, max_rows=max_rows)
        perform([*greedy, modest], plan, n_tokens=(n + 1) * (n_prompt + n_tokens) * 2, **settings)
        return modest.seconds

    return GreedyTenant(alone_s=seconds(0), beside_one_s=seconds(1), beside_many_s=seconds(n_greedy))


class ToolWaits(Struct, frozen=True):
    """What memory pressure cost agents that wait for tools."""

    n_tokens: int  # that would have been computed with room for all
    n_recomputed: int
    seconds: float  # until the last agent had ended
    ample_seconds: float  # with room for all
    same_results: bool

    @property
    def recomputed_share(self) -> float:
        return self.n_recomputed / self.n_tokens


def tool_waits(
    *,
    n_agents: int = 16,
    n_prompt: int = 256,
    n_tokens: int = 48,
    n_turns: int = 4,
    wait_s: float = 2.0,
    room: float = 0.5,
    host_share: float = 4.0,
    **settings: Any,
) -> ToolWaits:
    """Agents of which only the share `room` fits on the device at once."""

    each = n_prompt + n_turns * (n_tokens + N_FOUND)

    def run(share: float) -> tuple[list[Job], World, float]:
        args = {"n_prompt": n_prompt, "n_tokens": n_tokens, "n_turns": n_turns, "wait_s": wait_s}
        jobs = [Job(tool_user, {"seed": 100 * i, **args}, at_s=0.1 * i) for i in range(n_agents)]
        plan = msgspec.structs.replace(BASE, host_share=host_share)
        world, seconds = perform(jobs, plan, n_tokens=int(n_agents * each * share), **settings)
        return jobs, world, seconds

    ample, _, ample_seconds = run(2.0)
    tight, world, seconds = run(room)
    return ToolWaits(
        n_tokens=n_agents * each,
        n_recomputed=world.kernel.counters.n_recomputed_tokens,
        seconds=seconds,
        ample_seconds=ample_seconds,
        same_results=[job.result for job in tight] == [job.result for job in ample],
    )


class Isolation(Struct, frozen=True):
    """What a tenant could learn of another from the time that its own calls take."""

    p_documents: float  # that its own documents come as fast while the other hits its cache as while it misses it
    p_prompts: float  # likewise its prompts, the same as the other's documents or others
    p_names: float  # and answers about names, the same as the other's or others
    told: list[list[str]]  # all other answers that it got, in either case
    n_pages: list[int]  # of its documents that are there at the end, in either case
    n_pages_all: int  # of all of them
    n_evicted: int  # files of the other that made room, where it missed


def isolation(
    *,
    n_docs: int = 4,
    n_prompt: int = 128,
    n_probes: int = 80,
    period_s: float = 0.5,
    held: bool = False,
    **settings: Any,
) -> Isolation:
    """Two tenants, equal unless `settings` say otherwise. One keeps documents that take a quarter of the device, and
    looks at the clock. The other has as many, which are all in its cache; or so many that half of them are not, and
    that they fill the device. In the first case its documents are those that the prober tries as prompts, and as
    names. `held`: both keep theirs open, so that nothing is a cache and all of it somebody's idle work."""
    n_tokens = 4 * n_docs * n_prompt
    n_pages: list[int] = []

    def run(first: int, n_others: int) -> tuple[list[list[float]], list[str], World]:
        args = {"n_prompt": n_prompt, "period_s": period_s, "held": held}
        probe = Job(prober, args | {"n_docs": n_docs, "n_probes": n_probes}, owner="ann")
        other = args | {"first": first, "n_docs": n_others, "n_rounds": REST * n_probes}
        plan = msgspec.structs.replace(BASE, weather=Weather(0.0002, 0.0004))
        jobs = [probe, Job(neighbour, other, owner="bob")]
        world, _ = perform(jobs, plan, n_tokens=n_tokens, beside=lambda world: count(world, probe), **settings)
        found, told = msgspec.json.decode(probe.result)
        return found, told, world

    async def count(world: World, probe: Job) -> None:
        await until(lambda: bool(probe.result), LIMIT_S)
        files = [inode for inode in world.kernel.fs.files.values() if inode.tenant == "ann" and inode.n_links]
        n_pages.append(sum(len(inode.table) for inode in files))

    hits, told_hits, _ = run(1000, n_docs)
    misses, told_misses, world = run(2000, 8 * n_docs)
    return Isolation(
        p_documents=smirnov(hits[0], misses[0])[1],
        p_prompts=smirnov(hits[1], misses[1])[1],
        p_names=smirnov(hits[2], misses[2])[1],
        told=[told_hits, told_misses],
        n_pages=n_pages,
        n_pages_all=n_docs * n_prompt // BASE.page_size,
        n_evicted=sum(getattr(world.kernel.counters, f"n_evicted_{kind}") for kind in ("cached", "away", "idle")),
    )
