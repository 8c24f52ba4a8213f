"""How fast is the bare worker? Decode steps and prompts through `Engine.run`, against the machine's roofline.

No kernel and no socket: this is what everything above can at best reach. A decode step has 200 tokens of context in
each row and draws one greedy token for each; it is the same step again and again, so all samples are of equal work.
"""

from functools import partial

import torch

from gpuworker import device as devices
from gpuworker.options import DEFAULT_MODEL
from perf.bare import TOKEN, Bare, start
from perf.harness import Findings, times
from perf.roofline import IN_MEMORY, config_of, product_rates, read_rates, step_of

BATCHES = (1, 4, 8, 16, 32)
PROMPTS = (128, 512, 1500)
CONTEXT = 200
N_PAGES = 1024


def measure(quick: bool = False, model: str = DEFAULT_MODEL, dtype: str = "auto") -> Findings:
    found = Findings()
    engine = start(model, dtype, N_PAGES)
    kind = getattr(torch, engine.info().model.dtype)
    device = devices.choose_device("auto")
    config, n = config_of(model), 3 if quick else 9
    reads = read_rates(device, IN_MEMORY // (8 if quick else 1), n)
    found.add("read from memory", "GB/s", reads)
    rates = product_rates(config, kind, device, n)
    found.add("best product", "GFLOP/s", rates)
    step = step_of(config, kind, device)

    batches = (1, 8) if quick else BATCHES
    bare = Bare(engine, max(batches), CONTEXT + 1)
    bare.prefill(max(batches), CONTEXT)
    for b in batches:
        floor = f"decode floor, batch {b}"
        found.add(floor, "ms", step.floor_ms(max(reads), max(rates), b, 1, CONTEXT))
        spent = times(partial(bare.run, CONTEXT, [[TOKEN]] * b), 5 if quick else 50, n_warm=3)
        found.add(f"decode step, batch {b}", "ms", [1e3 * s for s in spent], against=floor)
        found.add(f"decode, batch {b}", "tok/s", [b / s for s in spent])

    for n_prompt in PROMPTS[:1] if quick else PROMPTS:
        floor = f"prefill floor, {n_prompt} tokens"
        found.add(floor, "ms", step.floor_ms(max(reads), max(rates), 1, n_prompt, 0))
        alone = Bare(engine, 1, n_prompt)
        spent = times(partial(alone.run, 0, [[TOKEN] * n_prompt]), 2 if quick else 9)
        found.add(f"prefill step, {n_prompt} tokens", "ms", [1e3 * s for s in spent], against=floor)
        found.add(f"prefill, {n_prompt} tokens", "tok/s", [n_prompt / s for s in spent])
    found.note(f"{engine.info().model.name} in {engine.info().model.dtype} on {engine.info().device}")
    return found
