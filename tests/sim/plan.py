"""What happens in one run, all of it drawn from the seed before the run begins.

A plan is plain data, so a failing run can be shown, and replayed from its seed and options alone. Never add here
anything that looks at a running kernel.
"""

import random
from typing import Literal

from msgspec import Struct

from gpuworker.stepcost import StepCost
from tests.sim import company, keepers, lockers, programs  # noqa: F401  (fills the registry)
from tests.sim.material import KINDS
from tests.sim.transport import Weather
from tests.sim.worker import Cost

N_VARIANTS = 80  # of each kind of program; what each returns when it is alone is computed once and kept
N_TOKENS_AMPLE = 3000  # on each worker
N_TOKENS_LEAST = 260  # the longest file of any program, and a little
VOCAB_SIZE = 272

PAGES = ("any", "ample", "tight", "4x")  # room for KV; 4x: four times as much is wanted as there is

FAULTS = {  # by group: what the plan may do, drawn with these weights
    "kill": {"kill": 3, "disconnect": 3},
    "slow": {"slow": 2, "storm": 1},
    "net": {"partition": 2},
    "stop": {"stop": 2},
    "refuse": {"short": 3, "glitch": 1, "balk": 3},
    "loss": {"crash": 4, "power": 2, "cut": 3, "half-open": 1, "hang": 3, "isolate": 2, "leave": 1, "coma": 1},
    "fleet": {"attach": 2, "detach": 2, "drain": 3},
    "pause": {"pause": 1},
}


class Options(Struct, frozen=True):
    """What the caller wants of a run."""

    faults: tuple[str, ...] = tuple(FAULTS)  # groups
    pages: str = "any"  # one of PAGES
    strict: bool = False  # check after every pass

    def words(self) -> str:
        """As on the command line."""
        faults = "all" if set(self.faults) == set(FAULTS) else ",".join(self.faults) or "none"
        return f"--faults {faults} --pages {self.pages}" + (" --strict" if self.strict else "")


class Start(Struct, frozen=True):
    """A program begins."""

    at_s: float
    kind: str
    variant: int
    tenant: str = "tester"
    priority: int = 0


class Fault(Struct, frozen=True):
    """Something breaks. `dice` decides the rest, when it is known what is there to be broken."""

    at_s: float
    name: str
    dice: int


class Plan(Struct, frozen=True):
    """One run."""

    seed: int
    options: Options
    n_workers: int
    demand: float | None  # of all programs together, over the pages of all workers; None: there is room for all
    max_pinned_share: float
    host_share: float  # pages of main memory, for each of the device
    page_size: int
    max_model_len: int  # of a file, in tokens
    verify: bool  # workers recompute each row from its slots
    max_rows: int
    max_tokens: int
    heartbeat_s: float
    suspect_s: float
    silence_s: float
    preemption_mode: str
    scheduling_policy: Literal["fcfs", "fair", "srpt"]
    pass_budget_ms: float  # 0.01 is room for one step
    slow_client_s: float  # between two looks of a client
    weather: Weather
    cost: Cost
    check_every: int  # passes of the loop
    starts: list[Start]
    faults: list[Fault]
    ends_s: float  # of the faults; from then on everything must come to an end


def demand_of(options: Options, dice: random.Random) -> float | None:
    """How much too little room there is."""
    tight = dice.choice([1.2, 2.0, 4.0])
    match options.pages:
        case "ample":
            return None
        case "tight":
            return tight
        case "4x":
            return 4.0
    return tight if dice.random() < 0.5 else None


def draw(seed: int, options: Options) -> Plan:
    """The plan of a seed."""
    dice = random.Random(f"plan {seed}")
    kinds = sorted(KINDS)
    demand = demand_of(options, dice)
    host_share = dice.choice([0.0, 0.3, 1.0, 4.0])
    page_size = dice.choice([4, 4, 8, 16])
    n_starts = dice.randint(3, 9) if demand is None else dice.randint(6, 16)
    ends_s = dice.uniform(0.3, 1.2)
    tenants = dice.choice([["one"], ["one"], ["one", "one", "another", "a third"]])
    names = {name: weight for group in options.faults for name, weight in FAULTS[group].items()}
    trouble = random.Random(f"faults {seed}")
    n_faults = trouble.choice([0, 1, 1, 2, 2, 3, 4, 6]) if names else 0
    drawn = trouble.choices(list(names), list(names.values()), k=n_faults) if names else []
    return Plan(
        seed=seed,
        options=options,
        n_workers=dice.choice([1, 1, 2, 2, 3]),
        demand=demand,
        max_pinned_share=dice.choice([0.0, 0.0, 0.1, 0.25, 0.5]),
        host_share=host_share if demand is not None else host_share / 20,  # nobody needs it, and fsck reads it all
        page_size=page_size,
        max_model_len=512,
        verify=True,
        max_rows=dice.choice([2, 4, 16, 64]),
        max_tokens=dice.choice([4, 16, 64, 256]),
        heartbeat_s=dice.choice([0.1, 0.2, 0.5]),
        suspect_s=dice.choice([0.5, 1.0]),
        silence_s=dice.choice([1.5, 3.0]),
        preemption_mode=dice.choice(["auto", "auto", "swap", "recompute"]),
        scheduling_policy=dice.choice(["fair", "fair", "fcfs", "srpt"]),
        pass_budget_ms=dice.choice([5.0, 0.01, 0.03]),
        slow_client_s=dice.choice([0.0, 0.0, 0.01, 0.1]),
        weather=Weather(dice.choice([0.00005, 0.0002, 0.002]), dice.choice([0.0, 0.0004, 0.004])),
        cost=Cost(
            StepCost(dice.choice([0.0002, 0.002, 0.01]), 0.00005, 0.00005, 0.000001),
            page_s=dice.choice([0.0001, 0.003, 0.01]),
        ),
        check_every=1 if options.strict else dice.randint(10, 100),
        starts=sorted(
            (
                Start(
                    dice.choice([0.0, dice.uniform(0.0, 0.4)]),
                    dice.choice(kinds),
                    dice.randrange(N_VARIANTS),
                    dice.choice(tenants),
                    dice.choice([0, 0, 0, -1, 5]),
                )
                for _ in range(n_starts)
            ),
            key=lambda start: start.at_s,
        ),
        faults=sorted(
            (Fault(trouble.uniform(0.005, ends_s), name, trouble.getrandbits(32)) for name in drawn),
            key=lambda fault: fault.at_s,
        ),
        ends_s=ends_s,
    )
