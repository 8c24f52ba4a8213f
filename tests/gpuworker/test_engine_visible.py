"""Visible runs through the engine, against one plain pass with the whole mask; and the real model against transformers
with a 4-D attention mask."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gpuworker.engine import Engine
from gpuworker.wire import Ask, Draw
from sdk.abi.values import Sampling
from sdk.abi.visible import Runs
from tests.gpuworker.world import File, Job, Kernel, assert_close, contiguous, engine, every, mask_of, words

SINKS: Runs = [(0, 4), (-20, None)]


@pytest.mark.parametrize("step", [1, 7, 33, 100])
@pytest.mark.parametrize("runs", [SINKS, [(-1, None)], [(5, 9), (-30, -10)]])
def test_in_chunks(tiny: Engine, step: int, runs: Runs) -> None:
    tokens, file, kernel = words(3, 100), File(), Kernel(tiny)
    got = []
    for i in range(0, 100, step):
        chunk = tokens[i : i + step]
        got.append(kernel.logits(Job(file, chunk, every(chunk), visible=runs))[0])
    assert_close(torch.cat(got), contiguous(tiny, tokens, mask=mask_of(100, (0, runs))))


def test_masks_of_several_calls_and_rows(tiny: Engine) -> None:
    """Each call has its own; what was computed under one stays so, also for a fork that sees all of it."""
    tokens, kernel = words(5, 90), Kernel(tiny)
    file, plain = File(), File()
    kernel.run(Job(file, tokens[:40]), Job(plain, tokens[:40]))
    kernel.run(Job(file, tokens[40:60], visible=SINKS), Job(plain, tokens[40:60]))
    fork = kernel.fork(file)
    asks = every(tokens[60:])
    got, of_fork, of_plain = kernel.logits(
        Job(file, tokens[60:], asks, visible=[(-2, None)]), Job(fork, tokens[60:], asks), Job(plain, tokens[60:], asks)
    )
    assert_close(got, contiguous(tiny, tokens, mask=mask_of(90, (40, SINKS), (60, [(-2, None)])))[60:])
    assert_close(of_fork, contiguous(tiny, tokens, mask=mask_of(90, (40, SINKS), (60, ())))[60:])
    assert_close(of_plain, contiguous(tiny, tokens)[60:])


def test_a_chained_row_is_masked_too(tiny: Engine) -> None:
    tokens, file, kernel = words(7, 50), File(), Kernel(tiny)
    draw = Draw(Sampling(), 0, 50)
    (first,) = kernel.run(Job(file, tokens, [Ask(49, draw)], visible=SINKS))
    token = first[0].sample
    assert token is not None
    (got,) = kernel.logits(Job(file, [0], [Ask(0)], chained=True, visible=SINKS))
    assert_close(got, contiguous(tiny, [*tokens, token], mask=mask_of(51, (0, SINKS)))[-1:])


@pytest.mark.model
def test_the_real_model_agrees_with_transformers(hf_model: Any, smollm2_gguf: Path) -> None:
    kernel = Kernel(engine(smollm2_gguf, load_format="auto"))
    tokens, runs = words(2, 200), [(0, 4), (-64, None)]
    mask = mask_of(200, (120, runs))
    file = File()
    kernel.run(Job(file, tokens[:120]))
    (prompt,) = kernel.logits(Job(file, tokens[120:180], every(tokens[120:180]), visible=runs))
    steps = [kernel.logits(Job(file, [token], [Ask(0)], visible=runs))[0] for token in tokens[180:]]
    with torch.inference_mode():
        added = torch.zeros(1, 1, 200, 200).masked_fill(~mask, torch.finfo(torch.float32).min)
        want = hf_model(torch.tensor([tokens]), attention_mask=added).logits[0]
        unmasked = hf_model(torch.tensor([tokens])).logits[0]
    got = torch.cat([prompt, *steps])
    assert (got - want[120:]).abs().max() < 1e-3
    assert (got - unmasked[120:]).abs().max() > 0.1, "the mask matters"
