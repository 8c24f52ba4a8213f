"""How do we compare with other servers? Seven workloads over HTTP, with the same client for everyone.

    W1  a single stream           W4  questions to documents, Zipf     W7  best of n
    W2  independent requests      W5  agents with tools
    W3  a long prompt             W6  tree of thought

Without `--base` a kernel of our own is started for it, with the words of `--kernel` as its options. W4 has one of its own
whose pages hold 8192 tokens, because the peers had so many: what is asked about is more than that. `--only` takes
workloads separated by commas; W2 means all of W2.c1, W2.c4, W2.c8 and W2.c16.
"""

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tokenizers import Tokenizer

from gpuworker.options import DEFAULT_MODEL
from gpuworker.weights.checkpoint import load_assets
from perf import compare
from perf.client import Api, model_of, open_http
from perf.harness import Failed, Findings
from perf.machine import this_machine
from perf.workloads import QUICK, SEED, SEED_STEP, UNITS, WORKLOADS, Outcome, Workload, warm_up
from sdk.client import KernelError
from sdk.launch import private_kernel

PAGE = 16  # tokens, of a worker on a CPU
SMALL = {"W4": ("--num-pages", str(8192 // PAGE))}  # workloads that need a kernel of their own
LISTENS = "  listens  http"  # of the kernel's banner


def measure(quick: bool = False, base: str = "", only: str = "", repeats: int = 3, kernel: str = "") -> Findings:
    chosen = choose(QUICK if quick else WORKLOADS, only)
    found = Findings()
    asyncio.run(measure_all(found, chosen, base, shlex.split(kernel), 1 if quick else repeats))
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


async def measure_all(
    found: Findings, chosen: dict[str, Workload], base: str, options: Sequence[str], repeats: int
) -> None:
    """Each workload on the server that it belongs to."""
    if base:
        await measure_at(found, base, chosen, repeats)
        return
    ordinary = {name: w for name, w in chosen.items() if name not in SMALL}
    groups = [(ordinary, ())] + [({name: chosen[name]}, own) for name, own in SMALL.items() if name in chosen]
    for workloads, own in groups:
        if workloads:
            async with our_server((*options, *own)) as address:
                await measure_at(found, address, workloads, repeats)


async def measure_at(found: Findings, base: str, workloads: dict[str, Workload], repeats: int) -> None:
    """All repeats of some workloads at one server. Raises Failed."""
    tokenizer = Tokenizer.from_str(load_assets(DEFAULT_MODEL).tokenizer_json)

    def encode(text: str) -> list[int]:
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    async with open_http(base) as http:
        api = Api(http, await model_of(http), encode)
        await warm_up(api)
        for name, workload in workloads.items():
            say(f"{name} {workload}")
            outcomes = [await run(api, name, workload, SEED + SEED_STEP * i) for i in range(repeats)]
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
