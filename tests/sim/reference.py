"""What each variant of a program returns when it is alone: the measure for all other runs.

A variant runs once in a kernel of its own with room for everything and nothing wrong, and what it returned, how it
ended and what it told its client is kept for the life of this process.
"""

from msgspec import Struct

from gpuworker.stepcost import StepCost
from tests.sim.loop import SimLoop, deterministic
from tests.sim.plan import N_TOKENS_AMPLE, Options, Plan, Start
from tests.sim.transport import Weather
from tests.sim.worker import Cost
from tests.sim.world import World

Variant = tuple[str, int]

ALONE = Plan(
    seed=0,
    options=Options(faults=()),
    n_workers=1,
    demand=None,
    max_pinned_share=0.5,
    host_share=0.0,
    page_size=4,
    max_model_len=512,
    verify=True,
    max_rows=64,
    max_tokens=256,
    heartbeat_s=100.0,
    suspect_s=500.0,
    silence_s=1000.0,
    preemption_mode="auto",
    scheduling_policy="fair",
    pass_budget_ms=5.0,
    slow_client_s=0.0,
    weather=Weather(0.0, 0.0),
    cost=Cost(StepCost(step_s=0.001), 0.0),
    check_every=0,
    starts=[],
    faults=[],
    ends_s=0.0,
)


class Reference(Struct, frozen=True):
    """How a program ends that nothing disturbs."""

    code: int
    result: bytes
    error: str
    streams: dict[str, str]
    n_tokens: int  # that it needs room for, at most


_known: dict[Variant, Reference] = {}


def of(variants: list[Variant]) -> list[Reference]:
    """The references of these variants."""
    missing = [v for v in dict.fromkeys(variants) if v not in _known]
    if missing:
        with deterministic():
            loop = SimLoop()
            try:
                loop.run_until_complete(_compute(loop, missing))
            finally:
                loop.close()
    return [_known[v] for v in variants]


async def _compute(loop: SimLoop, variants: list[Variant]) -> None:
    world = World(loop, ALONE, n_tokens=N_TOKENS_AMPLE)
    await world.attach_all()
    for i, (kind, variant) in enumerate(variants):
        peak = 0

        def measure() -> None:
            nonlocal peak
            pool = world.kernel.fs.pools[world.hosts[0].address]
            peak = max(peak, pool.n_pages - pool.n_free)

        loop.after_pass = measure
        run = world.start(i, Start(0.0, kind, variant))
        status = await run.process.wait_exit()
        await run.client.task
        _known[kind, variant] = Reference(
            status.code, status.result, status.error, run.client.streams, peak * ALONE.page_size
        )
        world.remove_names()
    loop.after_pass = None
    await world.kernel.stop(1.0)
    assert not world.broken, world.broken
