"""Forks of a long prompt whose prefix is read once for all of them: the real model says the same as without."""

from pathlib import Path

import pytest
import torch

from gpuworker.engine import Engine
from gpuworker.wire import Ask
from tests.gpuworker.world import File, Job, Kernel, engine, words

N_FORKS, N_PROMPT = 12, 600


def decoded(engine: Engine) -> torch.Tensor:
    """Logits after each of four tokens of each fork, one step a token: [4 * forks, vocab]."""
    kernel, base, got = Kernel(engine), File(), []
    kernel.run(Job(base, words(3, N_PROMPT)))
    forks = [kernel.fork(base) for _ in range(N_FORKS)]
    for step in range(4):
        got += kernel.logits(*[Job(fork, [100 * step + i], [Ask(0)]) for i, fork in enumerate(forks)])
    return torch.cat(got)


@pytest.mark.model
def test_a_shared_prefix_read_once_changes_nothing_but_rounding(smollm2_gguf: Path) -> None:
    grouped, apart = (
        decoded(engine(smollm2_gguf, load_format="auto", num_pages=128, group_prefixes=flag)) for flag in (True, False)
    )
    assert not torch.equal(grouped, apart), "there was a group"
    assert (grouped - apart).abs().max() < 1e-3
    assert torch.equal(grouped.argmax(-1), apart.argmax(-1))
