"""What does the kernel cost a generation? The same tokens by a bare engine, by `generate`, and by a `pred` loop.

Each way begins with a prompt that is computed already, draws n greedy tokens and feeds every one of them, which
takes n + 1 steps. The bare engine is in this process and has no kernel; the other two go through a kernel and a
worker process of its own. The three take turns, so that what else the machine does falls on all of them alike, and
are compared turn by turn: the speed of a machine drifts by more than the tax. The promise is that `generate` costs at
most 3 % and a `pred` loop at most 10 %.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from gpuworker.options import DEFAULT_MODEL
from kernel.config import Config
from perf.bare import GREEDY, TOKEN, Bare, start
from perf.harness import Findings
from perf.inside import Inside, inside
from sdk import kv

N_PAGES = 1024
PROMPT = 64
BATCHES = (1, 8, 32)
BARE, GENERATE, PRED = "bare engine", "generate", "pred loop"
PROMISES = {GENERATE: 1.03, PRED: 1.10}


def measure(quick: bool = False, model: str = DEFAULT_MODEL, dtype: str = "auto") -> Findings:
    n_tokens, rounds = (8, 1) if quick else (32, 9)
    spent: dict[tuple[str, int], list[float]] = {}

    def prepare() -> Bare:
        bare = Bare(start(model, dtype, N_PAGES), max(BATCHES), PROMPT + n_tokens)
        bare.prefill(max(BATCHES), PROMPT)
        return bare

    def run_bare(bare: Bare, b: int) -> float:
        began = time.perf_counter()
        bare.generate(b, PROMPT, n_tokens)
        return time.perf_counter() - began

    async def body(house: Inside) -> None:
        loop = asyncio.get_running_loop()
        for turn in range(rounds + 1):
            for b in BATCHES:
                taken = {
                    BARE: await loop.run_in_executor(thread, run_bare, bare, b),
                    GENERATE: await house.value(generate, n_files=b, n_tokens=n_tokens),
                    PRED: await house.value(pred_loop, n_files=b, n_tokens=n_tokens),
                }
                if turn:  # the first warms up
                    for way, s in taken.items():
                        spent.setdefault((way, b), []).append(s)

    with ThreadPoolExecutor(1) as thread:  # the only one that ever computes here, as in a worker: see perf/LOG.md
        bare = thread.submit(prepare).result()
        inside(Config(http=False, model=model, dtype=dtype, num_pages=N_PAGES), body)
    return findings(spent, n_tokens)


def findings(spent: dict[tuple[str, int], list[float]], n_tokens: int) -> Findings:
    """Seconds of each way at each batch, as time and tax of a step."""
    found = Findings()
    for b in BATCHES:
        base = spent[BARE, b]
        for way in (BARE, GENERATE, PRED):
            name = f"{way}, batch {b}"
            steps = [1e3 * s / (n_tokens + 1) for s in spent[way, b]]
            found.add(name, "ms", steps, against=None if way == BARE else f"{BARE}, batch {b}")
        for way, promise in PROMISES.items():
            pairs = list(zip(spent[way, b], base, strict=True))
            ratio = found.add(f"{way} over {BARE}, batch {b}", "x", [s / t for s, t in pairs])
            found.add(f"tax of {way}, batch {b}", "us", [1e6 * (s - t) / (n_tokens + 1) for s, t in pairs])
            found.expect(ratio <= promise, f"{way} takes {ratio:.3f} times as long at batch {b}, not {promise}")
    found.note(f"times and taxes are of a step. {n_tokens} tokens after a prompt of {PROMPT}")
    return found


# --- programs ---------------------------------------------------------------------------------------------------


async def generate(n_files: int, n_tokens: int) -> float:
    """Seconds that `generate` takes on that many files at once."""

    async def one(file: kv.KVFile) -> None:
        await file.generate(max_tokens=n_tokens, ignore_eos=True)

    files = await prompts(n_files)
    began = time.perf_counter()
    await asyncio.gather(*map(one, files))
    return time.perf_counter() - began


async def pred_loop(n_files: int, n_tokens: int) -> float:
    """The same, token by token, by the program."""

    async def one(file: kv.KVFile) -> None:
        token = (await file.next(sample=GREEDY, top_k=0)).sample
        for i in range(n_tokens):
            assert token is not None
            if i < n_tokens - 1:
                token = (await file.pred([token], sample=GREEDY, top_k=0)).sample
            else:
                await file.append([token])

    files = await prompts(n_files)
    began = time.perf_counter()
    await asyncio.gather(*map(one, files))
    return time.perf_counter() - began


async def prompts(n_files: int) -> list[kv.KVFile]:
    files = [await kv.create() for _ in range(n_files)]
    for i, file in enumerate(files):
        await file.append([TOKEN + i] * PROMPT)
    return files
