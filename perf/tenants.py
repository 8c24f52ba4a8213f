"""What does a greedy tenant cost a modest one? One program beside 64 of another tenant, against beside one of it.

On the real model, through a kernel and a worker process. The modest tenant's program and the other's all read a
prompt and generate; the other's go on until the modest one has ended, so that it is never alone. The promise is that
beside 64 it takes at most 1.3 times as long as beside one.
"""

import asyncio
import time

from gpuworker.options import DEFAULT_MODEL
from kernel.config import Config
from perf.harness import Findings
from perf.inside import Inside, inside
from sdk import Sampling, kv

GREEDY = 64
PROMISE = 1.3
PROMPT = 64
TOKEN = 1000  # what prompts are made of


def measure(quick: bool = False, model: str = DEFAULT_MODEL, dtype: str = "auto") -> Findings:
    n_tokens, rounds, greedy = (8, 1, 4) if quick else (64, 5, GREEDY)

    async def beside(house: Inside, n_others: int) -> float:
        others = [house.start(forever, tenant="greedy", seed=i) for i in range(n_others)]
        while any(not p.account.n_generated_tokens for p in others):  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0.05)
        process = house.start(once, tenant="modest", n_tokens=n_tokens)
        seconds = float(await house.end(process))
        for other in others:
            house.kernel.kill(other.pid, "the measurement is over")
        await asyncio.gather(*(other.wait_exit() for other in others))
        return seconds

    async def body(house: Inside) -> tuple[list[float], list[float]]:
        await beside(house, 1)
        one, many = [], []
        for _ in range(rounds):
            one.append(await beside(house, 1))
            many.append(await beside(house, greedy))
        return one, many

    one, many = inside(Config(http=False, model=model, dtype=dtype), body)
    found = Findings()
    found.add("beside one program", "s", one)
    found.add(f"beside {greedy} programs of one tenant", "s", many, against="beside one program")
    ratio = found.add("cost of the greedy tenant", "x", [b / a for a, b in zip(one, many, strict=True)])
    found.note(f"a prompt of {PROMPT} tokens and {n_tokens} generated")
    found.expect(ratio <= PROMISE, f"beside {greedy} programs it takes {ratio:.2f} times as long, not {PROMISE}")
    return found


async def once(n_tokens: int) -> float:
    """Seconds for a prompt and a generation."""
    began = time.perf_counter()
    async with await kv.create() as file:
        await file.generate([TOKEN] * PROMPT, max_tokens=n_tokens, ignore_eos=True)
    return time.perf_counter() - began


async def forever(seed: int) -> None:
    """The same again and again."""
    prompt, sampling = [TOKEN + 1 + seed] * PROMPT, Sampling(temperature=0.8, seed=seed)
    while True:
        async with await kv.create() as file:
            await file.generate(prompt, sampling, max_tokens=256, ignore_eos=True)
