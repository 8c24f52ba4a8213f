"""Floors follow from the sizes of the model."""

import pytest
import torch

from gpuworker.models.config import ModelConfig
from gpuworker.models.llama import Llama
from perf.roofline import Step, step_of

CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    max_position_embeddings=64,
    tie_word_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
    bos_token=None,
    eos_tokens=(),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_of_a_step_are_the_models_matrices(dtype):
    shapes = Llama.tensor_shapes(CONFIG)
    matrices = {name: a[0] * a[1] for name, a in shapes.items() if len(a) == 2}
    head = matrices.pop("model.embed_tokens.weight")
    step = step_of(CONFIG, dtype, torch.device("cpu"))
    assert (step.layer_weights, step.head_weights) == (sum(matrices.values()), head)

    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    model = Llama(CONFIG, tensors, dtype, "cpu")
    assert step.weight_bytes == sum(matrices.values()) * dtype.itemsize + head * model.head_dtype.itemsize
    assert step.kv_bytes == 2 * 2 * 2 * 8 * dtype.itemsize  # K and V, layers, KV heads, head_dim


def test_a_floor_is_of_what_takes_longer():
    step = Step(layer_weights=10**6, head_weights=10**6, weight_bytes=4 * 10**6, kv_bytes=1000)
    assert step.floor_ms(1.0, 1e9, n_rows=1, n_new=1, n_before=0) == pytest.approx(4.0)  # 4 MB at 1 GB/s
    assert step.floor_ms(1.0, 1e9, n_rows=2, n_new=1, n_before=500) == pytest.approx(5.0)  # and 1 MB of KV
    assert step.floor_ms(1e9, 1.0, n_rows=2, n_new=3, n_before=0) == pytest.approx(16.0)  # 16 M operations at 1 G/s
