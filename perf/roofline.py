"""How fast can this machine run the model at all? Memory bandwidth, its matrix products, and the floors they set.

A decode step reads every weight once and multiplies each with every row: it takes no less than its bytes over the
bandwidth, nor than its operations over the rate of the best product (Williams et al., 2009, "Roofline"). Products
are timed as the model makes them, on its own shapes, each on weights of its own, so that no cache serves twice.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpuworker import device as devices
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
IN_CACHE, IN_MEMORY = 64 * MIB, 1024 * MIB  # the latter is more than any cache holds


class Step(NamedTuple):
    """What a step of a model cannot do without."""

    layer_weights: int  # multiplied with every token
    head_weights: int  # multiplied with every token that is asked for
    weight_bytes: int
    kv_bytes: int  # of a token of context

    def floor_ms(self, read_gbs: float, gflops: float, n_rows: int, n_new: int, n_before: int) -> float:
        """The least time of `n_rows` rows of `n_new` tokens after `n_before`, each asked once: what must be read at
        `read_gbs` GB/s, or what must be multiplied at `gflops` GFLOP/s, whichever takes longer."""
        n_bytes = self.weight_bytes + n_rows * n_before * self.kv_bytes
        operations = 2 * n_rows * (n_new * self.layer_weights + self.head_weights)
        return max(n_bytes / read_gbs, operations / gflops) / 1e6


def measure(quick: bool = False, model: str = DEFAULT_MODEL) -> Findings:
    found = Findings()
    devices.set_threads(None)
    device = devices.choose_device("auto")
    n = 3 if quick else 9
    for size in (IN_CACHE, IN_MEMORY // 8 if quick else IN_MEMORY):
        rates = read_rates(device, size, n)
        found.add(f"read {size // MIB} MiB", "GB/s", rates)
        found.add(f"copy {size // MIB} MiB", "GB/s", copy_rates(device, size, n))
    config = config_of(model)  # the last size read is that of the floors, and the best of its rates
    for name, dtype in DTYPES.items():
        if quick and dtype is torch.float32:
            continue
        step = step_of(config, dtype, device)
        floor = found.add(f"{name}: decode floor, 1 row, weights alone", "ms", step.weight_bytes / max(rates) / 1e6)
        found.note(
            f"{name}: {step.weight_bytes / 1e6:.0f} MB of weights a step, at most {1e3 / floor:.0f} tokens/s a row"
        )
        products(found, name, built(model, dtype, device), ROWS[::2] if quick else ROWS, n)
    return found


def products(found: Findings, name: str, model: Llama, rows: tuple[int, ...], n: int) -> None:
    """Rates of each kind of product of a step, and the time of all of them."""
    c, layers = model.config, model.layers
    inner, hidden = c.intermediate_size, c.hidden_size
    kinds: list[tuple[str, int, int, list[Linear], torch.dtype]] = [
        ("qkv", hidden, qkv_size(c), [layer.qkv for layer in layers], layers[0].dtype),
        ("o", c.num_attention_heads * c.head_dim, hidden, [layer.o for layer in layers], layers[0].dtype),
        ("gate_up", hidden, 2 * inner, [layer.gate_up for layer in layers], layers[0].dtype),
        ("down", inner, hidden, [layer.down for layer in layers], layers[0].dtype),
        ("head", hidden, c.vocab_size, [model.head], model.head_dtype),
    ]
    device = model.embedding.device
    for m in rows:
        total = [0.0] * n
        for kind, k, width, weights, dtype in kinds:
            x = torch.ones(m, k, dtype=dtype, device=device)
            spent = timed(partial(multiply, x, weights), device, n)
            total = [a + b for a, b in zip(total, spent, strict=True)]
            operations = 2 * m * k * width * len(weights)
            shape = f"{name}: {kind} [{m}, {k}] x [{k}, {width}]"
            found.add(shape, "GFLOP/s", [operations / s / 1e9 for s in spent])
        found.add(f"{name}: all products of a step, m = {m}", "ms", [1e3 * s for s in total])


def multiply(x: Tensor, weights: list[Linear]) -> None:
    for weight in weights:
        weight(x)


# --- what decode.py takes from here -----------------------------------------------------------------------------


def config_of(model: str) -> ModelConfig:
    """Raises Failed."""
    try:
        return checkpoint.open_reader(model, "dummy", weights=False)[1].config
    except WeightsError as e:
        raise Failed(str(e)) from None


def step_of(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Step:
    """On a CPU the head is fp32 whatever the rest is: see gpuworker/models/llama.py."""
    c = config
    of_layer = c.hidden_size * (qkv_size(c) + c.num_attention_heads * c.head_dim + 3 * c.intermediate_size)
    layers, head = c.num_hidden_layers * of_layer, c.vocab_size * c.hidden_size
    head_size = 4 if device.type == "cpu" else dtype.itemsize
    kv = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * dtype.itemsize
    return Step(layers, head, layers * dtype.itemsize + head * head_size, kv)


def qkv_size(c: ModelConfig) -> int:
    return (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim


def read_rates(device: torch.device, n_bytes: int, n: int) -> list[float]:
    """GB/s of reading everything once, as a sum of floats."""
    x = torch.ones(n_bytes // 4, device=device)
    return [n_bytes / s / 1e9 for s in timed(x.sum, device, n)]


def copy_rates(device: torch.device, n_bytes: int, n: int) -> list[float]:
    """GB/s of a copy of half of them to the other half: all of them pass once."""
    x = torch.ones(n_bytes // 4, device=device)
    half = len(x) // 2
    return [n_bytes / s / 1e9 for s in timed(lambda: x[:half].copy_(x[half:]), device, n)]


def product_rates(config: ModelConfig, dtype: torch.dtype, device: torch.device, n: int) -> list[float]:
    """GFLOP/s of the model's largest product in a layer over many rows: about the best it can reach here."""
    m, k, width = ROWS[-1], config.hidden_size, 2 * config.intermediate_size
    with torch.inference_mode():
        weight = linear(torch.ones(width, k, dtype=dtype, device=device))
    x = torch.ones(m, k, dtype=dtype, device=device)
    return [2 * m * k * width / s / 1e9 for s in timed(lambda: weight(x), device, n)]


def built(model: str, dtype: torch.dtype, device: torch.device) -> Llama:
    """The model with random weights: the work is the same. Raises Failed."""
    try:
        found = checkpoint.load(model, load_format="dummy", dtype=dtype)
    except WeightsError as e:
        raise Failed(str(e)) from None
    with torch.inference_mode():
        made = model_class(found.config.architecture)(found.config, found.tensors, dtype, device)
    if not isinstance(made, Llama):
        raise Failed(f"{model} is a {found.config.architecture}: its products are not known here")
    return made


def timed(run: Callable[[], Any], device: torch.device, n: int) -> list[float]:
    """`times` of work on a device, which is waited for."""

    def whole() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        return times(whole, n)
