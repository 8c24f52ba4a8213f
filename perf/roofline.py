"""How fast can this machine run the model at all? Memory bandwidth, its matrix products, and the floors they set.

A decode step reads every weight once and multiplies each with every row: it takes no less than the bytes over the
bandwidth, nor than the operations over the rate of the best product (Williams et al., 2009, "Roofline").
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from gpuworker import device
from gpuworker.models.config import ModelConfig
from gpuworker.models.linear import Linear, linear
from gpuworker.models.llama import Llama
from gpuworker.models.registry import model_class
from gpuworker.options import DEFAULT_MODEL
from gpuworker.weights import checkpoint
from gpuworker.weights.errors import WeightsError
from perf.harness import Failed, Findings, times

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS = (1, 8, 64, 512)
MIB = 1 << 20
LARGE = 1024 * MIB  # more than any cache


class Product(NamedTuple):
    """One kind of matrix product of a step: [m, k] by each of `weights` [n, k]."""

    name: str
    k: int
    n: int
    dtype: torch.dtype
    weights: list[Linear]

    @property
    def n_weights(self) -> int:
        return self.k * self.n * len(self.weights)


class Step(NamedTuple):
    """What one step of a model costs at least."""

    weight_bytes: int
    kv_bytes: int  # of one token
    layer_weights: int  # multiplied with every token
    head_weights: int  # multiplied with every token that is asked for

    def bytes_read(self, n_rows: int, n_context: int) -> int:
        return self.weight_bytes + n_rows * n_context * self.kv_bytes

    def operations(self, n_tokens: int, n_asked: int) -> int:
        return 2 * (n_tokens * self.layer_weights + n_asked * self.head_weights)


def measure(quick: bool = False, model: str = DEFAULT_MODEL) -> Findings:
    """Bandwidth first, then all products of a step as the model makes them, each on weights of its own."""
    found = Findings()
    device.set_threads(None)
    config = config_of(model)
    bandwidth = 0.0
    for size in (64 * MIB, LARGE // (8 if quick else 1)):
        for name, rates in bandwidths(size, n=3 if quick else 9).items():
            bandwidth = found.add(f"{name} {size // MIB} MiB", "GB/s", rates)
            found.note("") if False else None
    return found
