"""How do we compare with other servers? Seven workloads over HTTP, with the same client for everyone.

    W1  a single stream           W4  questions to documents, Zipf     W7  best of n
    W2  independent requests      W5  agents with tools
    W3  a long prompt             W6  tree of thought

`--base URL` measures any server. Without it a kernel of ours is started, with the words of `--kernel` as its options;
W4 has one to itself whose pages hold 8192 tokens, as the peers had: fewer than are asked about. `--only W1,W2` takes
some of them; W2 is short for W2.c1, W2.c4, W2.c8 and W2.c16, after the number of requests at a time.
"""

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from tokenizers import Tokenizer

from gpuworker.options import DEFAULT_MODEL
from gpuworker.weights.checkpoint import load_assets
from perf import compare
from perf.client import Api, model_of, open_http
from perf.harness import Failed, Findings
from perf.machine import this_machine
from perf.workloads import (
    QUICK,
    SEED,
    SEED_STEP,
    UNITS,
    WARM_UP,
    WARM_UP_QUICK,
    WORKLOADS,
    Outcome,
    Workload,
    warm_up,
)
from sdk.client import KernelError
from sdk.launch import private_kernel

PAGE = 16  # tokens, of a worker on a CPU
SMALL = {"W4": ("--num-pages", str(8192 // PAGE))}  # workloads that need a kernel of their own
LISTENS = "  listens  http"  # of the kernel's banner


class Plan(NamedTuple):
    """What is to be measured, and how."""

    workloads: dict[str, Workload]
    small: Mapping[str, tuple[str, ...]]
    shapes: Sequence[tuple[int, int]]  # to warm up with
    repeats: int


def measure(quick: bool = False, base: str = "", only: str = "", repeats: int = 3, kernel: str = "") -> Findings:
    found = Findings()
    if quick:
        plan = Plan(choose(QUICK, only), {}, WARM_UP_QUICK, 1)
    else:
        plan = Plan(choose(WORKLOADS, only), SMALL, WARM_UP, repeats)
    asyncio.run(measure_all(found, plan, base, shlex.split(kernel)))
    peers = compare.load_peers()
    if peers is not None and not quick and not base:
        found.ratios = compare.ratios(found.figures, peers)
        found.note(compare.caveat(peers, this_machine()))
    if base:
        found.note(f"of the server at {base}, which counts among the other processes")
    return found


def choose(workloads: dict[str, Workload], only: str) -> dict[str, Workload]:
    """Those named. Raises Failed for a name that is none."""
    wanted = [word.strip() for word in only.split(",") if word.strip()]
    for word in wanted:
        if not any(word in (name, name.split(".")[0]) for name in workloads):
            raise Failed(f"there is no workload {word!r}; there are {', '.join(workloads)}")
    return {n: w for n, w in workloads.items() if not wanted or n in wanted or n.split(".")[0] in wanted}


async def measure_all(found: Findings, plan: Plan, base: str, options: Sequence[str]) -> None:
    """Each workload on the server that it belongs to."""
    if base:
        await measure_at(found, base, plan, plan.workloads)
        return
    alone = [name for name in plan.workloads if name in plan.small]
    ordinary = [name for name in plan.workloads if name not in alone]
    for names, own in [(ordinary, ()), *(([name], plan.small[name]) for name in alone)]:
        if names:
            async with our_server((*options, *own)) as address:
                await measure_at(found, address, plan, names)


async def measure_at(found: Findings, base: str, plan: Plan, names: Iterable[str]) -> None:
    """All repeats of some of the workloads at one server. Raises Failed."""
    tokenizer = Tokenizer.from_str(load_assets(DEFAULT_MODEL).tokenizer_json)

    def encode(text: str) -> list[int]:
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    async with open_http(base) as http:
        api = Api(http, await model_of(http), encode)
        await warm_up(api, plan.shapes)
        for name in names:
            workload = plan.workloads[name]
            say(f"{name} {workload}")
            outcomes = [await run(api, name, workload, SEED + SEED_STEP * i) for i in range(plan.repeats)]
            for value in outcomes[0].values:
                found.add(f"{name} {value}", UNITS[value], [o.values[value] for o in outcomes if value in o.values])


async def run(api: Api, name: str, workload: Workload, seed: int) -> Outcome:
    """One repeat. Raises Failed when the server did other work than it was asked to."""
    outcome = await workload.run(api, name.lower(), seed)
    if outcome.n_out != workload.n_out_total:
        raise Failed(
            f"{name}: the server gave {outcome.n_out} tokens and {workload.n_out_total} were asked for: "
            "it must know `ignore_eos` and count them in `usage`"
        )
    return outcome


@asynccontextmanager
async def our_server(options: Sequence[str]) -> AsyncIterator[str]:
    """A kernel with a port, for as long as the block lasts; its base URL. Raises Failed."""
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_line(line: str) -> None:
        say(line)
        if line.startswith(LISTENS) and not address.done():
            address.set_result(line.split()[-1])

    try:
        async with private_kernel(["--http", "--port", "0", *options], on_line):
            yield await asyncio.wait_for(address, 10)
    except KernelError as e:
        raise Failed(str(e)) from None


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
