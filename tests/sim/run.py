"""One run from beginning to end: `simulate`.

Two phases. In the first, programs start and things go wrong. Then everything is healed, and every program must end
within `LIMIT_S` of virtual time, or it hangs. What they returned is held against what they return alone, and when
nothing runs any more nothing may be held. `checks.always` is looked at all the while.
"""

import asyncio
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec import Struct

from kernel.stepper import Stepper
from tests.sim import checks, faults, reference
from tests.sim.loop import Deadlock, SimLoop, Spinning, deterministic
from tests.sim.plan import N_TOKENS_AMPLE, N_TOKENS_LEAST, Options, Plan, draw
from tests.sim.reference import Reference
from tests.sim.world import Run, World

LIMIT_S = 300.0  # virtual, for all programs to end; their tools take a few seconds
REST_S = 60.0  # for everything else to end after them
LOOK_S = 0.05
LEAVE_NAMES = ("holder", "keeper", "sharer")  # programs whose files stay when they end
N_PASSES_TO_WAKE = 5
STUCK_S = 120  # of real time, for one seed

GLITCH = r"a glitch of the device|TaskGroup"  # a step that fails by itself, in a batch of its own, is an error
# Where nothing may be dropped and main memory is full, the youngest has to go, or finds no room: it is told why.
OUT_OF_MEMORY = r"out of memory: |ENOSPC: \d+ pages more cannot be had: "


class Broken(Exception):
    """The run is over: something happened that must not."""


class Report(Struct, frozen=True):
    """What became of a run."""

    seed: int
    options: Options
    broken: list[str]
    digest: str
    virtual_s: float
    n_passes: int
    sometimes: dict[str, int]
    story: list[str]

    @property
    def command(self) -> str:
        return f"python -m tests.sim --seed {self.seed} --runs 1 {self.options.words()}"


def run_one(seed: int, options: Options) -> Report:
    """`simulate`, with an error at the line that is running where a seed takes far too long."""
    before = signal.signal(signal.SIGALRM, partial(stuck, seed))
    signal.alarm(STUCK_S)
    try:
        return simulate(seed, options)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def stuck(seed: int, *_: Any) -> None:
    raise TimeoutError(f"seed {seed} has run for {STUCK_S} s")


def simulate(seed: int, options: Options, *, keeps_story: bool = False) -> Report:
    """Run the plan of a seed. Never raises for what the kernel does."""
    return play(draw(seed, options), keeps_story=keeps_story)


def play(plan: Plan, *, keeps_story: bool = False) -> Report:
    """Run a plan."""
    expected = dict(enumerate(reference.of([(start.kind, start.variant) for start in plan.starts])))
    with deterministic():
        loop = SimLoop()
        world: World | None = None

        async def story() -> None:
            nonlocal world
            world = World(loop, plan, n_tokens=room(plan, expected), keeps_story=keeps_story)
            loop.set_exception_handler(partial(heard, world))
            await Stage(world, expected).run()

        try:
            loop.run_until_complete(story())
        except (Broken, Deadlock, Spinning) as e:
            assert world is not None
            if not isinstance(e, Broken):
                world.complain(f"{type(e).__name__}: {e}")
                world.broken.extend(checks.who_waits(world))
        finally:
            loop.after_pass = None
            loop.set_exception_handler(lambda loop, context: None)
            if world is not None and world.broken:
                clear_away(loop, world)
            loop.close()
    assert world is not None
    return Report(
        seed=plan.seed,
        options=plan.options,
        broken=world.broken,
        digest=world.trace.digest,
        virtual_s=loop.time(),
        n_passes=loop.n_passes,
        sometimes=dict(sorted(world.sometimes.items())),
        story=world.trace.lines or [],
    )


async def until(holds: Callable[[], bool], deadline: float) -> bool:
    """Look now and then until something holds, or the deadline is there; whether it holds."""
    loop = asyncio.get_running_loop()
    while not (held := holds()) and loop.time() < deadline:  # noqa: ASYNC110 (nobody could set an event)
        await asyncio.sleep(LOOK_S)
    return held


def room(plan: Plan, expected: dict[int, Reference]) -> int:
    """Tokens that each worker has room for; as much at least that the longest file fits into a tenant's share, beside
    what may be pinned."""
    if plan.demand is None:
        return N_TOKENS_AMPLE
    wanted = sum(alone.n_tokens for alone in expected.values())
    n_tenants = len({start.tenant for start in plan.starts})
    kept = sum(expected[i].n_tokens for i, start in enumerate(plan.starts) if start.kind in LEAVE_NAMES)
    least = min(N_TOKENS_LEAST * n_tenants, N_TOKENS_LEAST + kept * (n_tenants > 1)) / (1.0 - plan.max_pinned_share)
    return max(int(wanted / plan.demand / plan.n_workers), int(least))


def clear_away(loop: SimLoop, world: World) -> None:
    """After a failure: let every program unwind, so that none of them does when it is collected."""
    world.closing = True  # nobody attaches what is let go now
    with suppress(BaseException):
        loop.run_until_complete(asyncio.wait_for(world.kernel.stop(1.0), 5.0))
    for task in asyncio.all_tasks(loop):
        task.cancel()
    with suppress(BaseException):
        loop.run_until_complete(asyncio.sleep(0.01))


class Stage:
    """The course of one run."""

    def __init__(self, world: World, expected: dict[int, Reference]) -> None:
        self.world = world
        self.expected = expected
        self._suspects: dict[tuple[Any, str], int] = {}  # since which pass

    async def run(self) -> None:
        world, plan, loop = self.world, self.world.plan, self.world.loop
        await world.attach_all()
        loop.after_pass = self._after_pass
        world.watch_over()
        for i, start in enumerate(plan.starts):
            loop.call_later(start.at_s, world.start, i, start)
        faults.schedule(world, plan.faults)
        await asyncio.sleep(plan.ends_s)
        world.trace.event("healed")
        faults.heal(world)
        await self._all_end()
        self._judge()
        await self._come_to_rest()
        self._check(checks.at_rest(world))
        await world.kernel.stop(5.0)
        self._check(checks.at_rest(world))
        world.observer.at_end()

    def _after_pass(self) -> None:
        if self.world.broken:
            raise Broken
        self.world.observer.after_pass()
        if self.world.loop.n_passes % self.world.plan.check_every == 0:
            self._check(checks.always(self.world, self.expected))

        if self.world.loop.n_passes % self.world.plan.check_every == 0:
            self._look_at_waiters()

    def _look_at_waiters(self) -> None:
        """A waiter may be on its way to be woken for a few passes; not for many."""
        now = self.world.loop.n_passes
        since = self._suspects
        self._suspects = {found: since.get(found, now) for found in checks.waiters(self.world)}
        asleep = [line for (_, line), n in self._suspects.items() if now - n > N_PASSES_TO_WAKE]
        if asleep:
            self._check(iter([*asleep, *checks.who_waits(self.world)]))

    def _check(self, breaches: Iterator[str]) -> None:
        for line in breaches:
            self.world.complain(line)
        if self.world.broken:
            raise Broken

    async def _all_end(self) -> None:
        world = self.world
        deadline = world.loop.time() + LIMIT_S
        if not await until(lambda: self._have_ended(), deadline):
            late = f"not every program has ended {LIMIT_S:g} s after everything was healed"
            self._check(iter([late, *checks.who_waits(world)]))

    def _have_ended(self) -> bool:
        runs = self.world.runs
        return len(runs) == len(self.world.plan.starts) and all(run.client.task.done() for run in runs)

    async def _come_to_rest(self) -> None:
        """The last workers are attached, the last answers come in, and names that programs have left are removed."""
        world = self.world
        world.closing = True
        world.remove_names()
        await until(lambda: not (world.tasks or any(checks.at_rest(world))), world.loop.time() + REST_S)

    def _judge(self) -> None:
        excuse = excuses(self.world)
        for run in self.world.runs:
            wrong = judge(run, self.expected[run.index])
            if wrong and not (excuse and excuse.search(wrong)):
                self.world.complain(wrong)
        self._check(iter(()))


def judge(run: Run, alone: Reference) -> str:
    """How a program's end differs from the one it has alone; empty when it does not."""
    status = run.process.status
    assert status is not None
    if run.killed and (status.code, status.error) == (137, run.killed):
        return ""
    found = (status.code, status.result, status.error, run.client.streams if not run.killed else alone.streams)
    wanted = (alone.code, alone.result, alone.error, alone.streams)
    if found == wanted:
        return ""
    who = f"{run.kind} {run.variant} (process {status.pid})"
    return f"{who} ended as {found}, alone it ends as {wanted}\n{status.traceback}"


def excuses(world: World) -> "re.Pattern[str] | None":
    """What programs may fail with in this world."""
    patterns = []
    if any(f.name == "glitch" for f in world.plan.faults):
        patterns.append(GLITCH)
    if world.plan.preemption_mode == "swap" and world.plan.demand is not None:
        patterns.append(OUT_OF_MEMORY)
    return re.compile("|".join(patterns)) if patterns else None


def heard(world: World, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler. What a program's own thread fails with is the program's affair."""
    future = context.get("future") or context.get("task")
    if isinstance(future, asyncio.Task) and isinstance(future.get_coro(), Stepper):
        return
    world.complain(f"{context.get('message')}: {context.get('exception')!r} {context.get('handle') or future or ''}")
