"""Rotary embeddings against their definition as complex multiplication."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpuworker.models import rope
from gpuworker.models.config import ModelConfig

CONFIG = {
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 32,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def turn(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return rope.rotate(x, *rope.gather(rope.table(ModelConfig.from_hf(CONFIG), "cpu"), positions))


@given(st.lists(st.integers(0, 63), min_size=1, max_size=6), st.integers(0, 2**31))
def test_rotation_is_complex_multiplication(positions: list[int], seed: int) -> None:
    x = torch.randn(len(positions), 3, 8, generator=torch.Generator().manual_seed(seed))
    numbers = torch.complex(x[..., :4].double(), x[..., 4:].double())
    angles = torch.tensor([[p * 10000.0 ** (-2 * i / 8) for i in range(4)] for p in positions], dtype=torch.float64)
    expected = numbers * torch.polar(torch.ones_like(angles), angles)[:, None]
    expected = torch.cat([expected.real, expected.imag], -1).float()
    torch.testing.assert_close(turn(x, torch.tensor(positions)), expected, atol=2e-5, rtol=1e-5)


def test_a_view_of_fused_heads_is_left_as_it_was() -> None:
    fused = torch.randn(5, 6, 8)
    before = fused.clone()
    turned = turn(fused[:, :4], torch.arange(5))
    torch.testing.assert_close(turned, turn(before[:, :4].contiguous(), torch.arange(5)))
    assert torch.equal(fused, before)


def test_half_precision_is_rotated_in_fp32() -> None:
    x = torch.randn(40, 2, 8, dtype=torch.bfloat16)
    positions = torch.arange(24, 64)
    assert torch.equal(turn(x, positions), turn(x.float(), positions).bfloat16())


def test_factors_say_what_llama3_does() -> None:
    """GGUF stores llama3's scaling as one divisor a frequency; both must give the same frequencies."""
    scaling = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    scaled = ModelConfig.from_hf(CONFIG | {"rope_scaling": scaling})
    plain = rope.frequencies(ModelConfig.from_hf(CONFIG))
    ratio = (plain / rope.frequencies(scaled)).tolist()
    assert ratio[0] == pytest.approx(1)
    assert ratio[-1] == pytest.approx(4)
    waves = [2 * math.pi / frequency for frequency in plain.tolist()]
    assert [ratio[i] for i, wave in enumerate(waves) if wave < 16] == pytest.approx([1.0] * sum(w < 16 for w in waves))
