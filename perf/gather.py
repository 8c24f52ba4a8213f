"""Do branches of one program run together? Eight by asyncio.gather against eight one after the other.

Forks of one prompt, on the real model, through a kernel and a worker process. Both ways compute the same number of
tokens; the promise is that gather takes at most 1 / 2.5 of the time.
"""

import asyncio
import time

from gpuworker.options import DEFAULT_MODEL
from kernel.config import Config
from perf.harness import Findings
from perf.inside import Inside, inside
from sdk import Sampling, kv

N_BRANCHES = 8
PROMISE = 2.5
ROUNDS = 5


def measure(quick: bool = False, model: str = DEFAULT_MODEL, dtype: str = "auto") -> Findings:
    n_tokens, rounds = (8, 1) if quick else (48, ROUNDS)

    async def body(house: Inside) -> list[list[float]]:
        await house.value(both, n_tokens=4)
        return [await house.value(both, n_tokens=n_tokens) for _ in range(rounds)]

    taken = inside(Config(http=False, model=model, dtype=dtype), body)
    found = Findings()
    found.add("gather", "s", [together for together, _ in taken])
    found.add("one after the other", "s", [apart for _, apart in taken], against="gather")
    gain = found.add("gain of gather", "x", [apart / together for together, apart in taken])
    found.note(f"{N_BRANCHES} branches of {n_tokens} tokens")
    found.expect(gain >= PROMISE, f"gather is {gain:.2f} times as fast as one after the other, not {PROMISE}")
    return found


async def both(n_tokens: int) -> list[float]:
    """Seconds of the branches together, and one after the other."""
    async with await kv.chat([("user", "Name a colour, and say what it reminds you of.")]) as base:
        began = time.perf_counter()
        await asyncio.gather(*(branch(base, i, n_tokens) for i in range(N_BRANCHES)))
        between = time.perf_counter()
        for i in range(N_BRANCHES):
            await branch(base, i, n_tokens)
        return [between - began, time.perf_counter() - between]


async def branch(base: kv.KVFile, i: int, n_tokens: int) -> None:
    async with await base.fork() as fork:
        await fork.generate(sampling=Sampling(temperature=0.8, seed=i), max_tokens=n_tokens, ignore_eos=True)
