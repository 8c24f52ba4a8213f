"""Rotary position embeddings (Su et al., 2021), in Hugging Face's half-split layout, computed in fp32.

Element i of a head turns with element i + D/2 by the angle position * frequency_i. Owns the frequencies with their
scaling and the table of cosines and sines. Called by the models. Nothing here depends on the length of a sequence, so
a K that was stored once stays valid; and since turns add up, a stored K can be turned on to another position.
"""

import math

import torch
from torch import Tensor

from gpuworker.models.config import ModelConfig


def frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each pair of elements: fp32 [head_dim / 2]."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    base: Tensor = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return base
    if scaling["rope_type"] == "linear":
        return base / float(scaling["factor"])
    if scaling["rope_type"] == "factors":
        return base / torch.tensor(scaling["factors"], dtype=torch.float32)
    return llama3(base, scaling)


def llama3(base: Tensor, scaling: dict[str, float]) -> Tensor:
    """Llama 3.1's scaling: long waves are divided by `factor`, short ones kept, those between interpolated."""
    context = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = context * base / (2 * math.pi)  # of each pair over the original context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return base * keep + base / scaling["factor"] * (1 - keep)


def table(config: ModelConfig, device: torch.device | str) -> Tensor:
    """Cosines, then sines, of every position: fp32 [max_position_embeddings, head_dim]."""
    positions = torch.arange(config.max_position_embeddings, dtype=torch.float32)
    angles = torch.outer(positions, frequencies(config))
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(device)


def gather(rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `positions` [T], each [T, 1, head_dim / 2], from the table: once per step."""
    cos, sin = rows[positions].unsqueeze(1).chunk(2, dim=-1)
    return cos, sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the heads of x [T, H, D] by `cos` and `sin` (fp32 [T, 1, D/2]); returns a new tensor of x's dtype."""
    tokens, heads, dim = x.shape
    halves = x.view(tokens, heads, 2, dim // 2)
    turned = halves * cos.unsqueeze(1)  # fp32, whatever x is
    a, b = halves.unbind(2)
    turned[:, :, 0].addcmul_(b, sin, value=-1)
    turned[:, :, 1].addcmul_(a, sin)
    return turned.view(tokens, heads, dim).to(x.dtype)


def turn(rows: Tensor, keys: Tensor, deltas: Tensor) -> Tensor:
    """Stored keys [T, H, D] as they would be `deltas` [T] (int64, negative for back) positions further: R(p + d) is
    R(d) R(p) (Su et al., 2021, eq. 16). In fp32, whatever the keys are; returns a new tensor of their dtype."""
    cos, sin = gather(rows, deltas.abs())
    return rotate(keys.float(), cos, sin * deltas.sign().view(-1, 1, 1)).to(keys.dtype)
