"""Whole situations in virtual time that return figures, for tests to judge and for `perf` to print.

Each takes what can be varied as arguments, and options of the kernel's as `settings`; its programs do fixed work, so
the figures are the scheduler's doing and nothing else. Device time follows the plan's cost model: by default that of a
model of eight billion parameters on one large accelerator, some 6 ms a step.

    exhaustion      programs that want several times the pages there are
    fairness        equal programs that compete for rows
    greedy_tenant   one tenant with many programs beside one with a single program
    tool_waits      agents that wait for tools while their KV does not fit
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from gpuworker.stepcost import StepCost
from kernel.process import Process
from sdk import Sampling, kv, process
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


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all shares are equal, 1/n when one has all (Jain, Chiu and Hawe, 1984)."""
    squares = sum(x * x for x in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


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
