"""GGUF files to configuration, tensors and tokenizer; whatever is broken is a WeightsError of one line."""

import contextlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpuworker.models.llama import Llama
from gpuworker.weights import checkpoint
from gpuworker.weights.errors import WeightsError

HF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "blk.1.attn_norm.weight": "model.layers.1.input_layernorm.weight",
    "blk.1.ffn_norm.weight": "model.layers.1.post_attention_layernorm.weight",
    "blk.1.attn_q.weight": "model.layers.1.self_attn.q_proj.weight",
    "blk.0.attn_k.weight": "model.layers.0.self_attn.k_proj.weight",
    "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    "blk.1.attn_output.weight": "model.layers.1.self_attn.o_proj.weight",
    "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
    "blk.0.ffn_up.weight": "model.layers.0.mlp.up_proj.weight",
    "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
}


def load(path: Path, dtype: torch.dtype = torch.float32) -> checkpoint.Checkpoint:
    return checkpoint.load(str(path), load_format="auto", dtype=dtype)


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_tensors_are_those_that_were_written(
    write_gguf: Any, tiny_tensors: dict[str, np.ndarray], tmp_path: Path, quantization: str
) -> None:
    opened = load(write_gguf(tmp_path / "m.gguf", quantization))
    kind = GGMLQuantizationType[quantization]
    for name, hf_name in HF_NAMES.items():
        w = tiny_tensors[name]
        expected = w if w.ndim == 1 else dequantize(quantize(w, kind), kind)
        assert np.array_equal(opened.tensors[hf_name].numpy(), expected), name


def test_configuration(tiny_gguf: Path) -> None:
    config = load(tiny_gguf).config
    assert (config.architecture, config.vocab_size, config.hidden_size, config.head_dim) == ("llama", 272, 32, 8)
    assert (config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers) == (4, 2, 2)
    assert (config.rms_norm_eps, config.rope_theta, config.rope_scaling) == (1e-5, 10000.0, None)
    assert (config.tie_word_embeddings, config.attention_bias, config.max_position_embeddings) == (True, False, 128)


def test_the_turns_end_is_an_eos_whatever_the_metadata_says(tiny_gguf: Path) -> None:
    opened = load(tiny_gguf)
    assert opened.config.eos_tokens == opened.assets.eos_tokens == (0, 2)  # <|endoftext|> by metadata, then <|im_end|>
    assert (opened.assets.bos_token, opened.assets.bos_text, opened.assets.add_bos) == (1, "<|im_start|>", False)
    assert opened.assets.chat_template == "{{ messages }}"


def test_an_untied_head_and_biases(write_gguf: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    extra = {"output.weight": rng.normal(size=(272, 32)).astype(np.float32)}
    for layer in range(2):
        for name, size in {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32}.items():
            extra[f"blk.{layer}.{name}.bias"] = rng.normal(size=size).astype(np.float32)
    opened = load(write_gguf(tmp_path / "m.gguf", tensors=extra))
    assert (opened.config.tie_word_embeddings, opened.config.attention_bias) == (False, True)
    assert np.array_equal(opened.tensors["lm_head.weight"].numpy(), extra["output.weight"])
    assert np.array_equal(opened.tensors["model.layers.1.self_attn.q_proj.bias"].numpy(), extra["blk.1.attn_q.bias"])


def test_rope_scaling(write_gguf: Any, tmp_path: Path) -> None:
    factors = np.array([1, 2, 4, 8], dtype=np.float32)
    opened = load(write_gguf(tmp_path / "a.gguf", tensors={"rope_freqs.weight": factors}))
    assert opened.config.rope_scaling == {"rope_type": "factors", "factors": [1.0, 2.0, 4.0, 8.0]}
    assert "rope_freqs.weight" not in opened.tensors
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    opened = load(write_gguf(tmp_path / "b.gguf", metadata=linear))
    assert opened.config.rope_scaling == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"metadata": {"general.architecture": "mamba"}}, "'mamba' is not supported"),
        ({"metadata": {"llama.block_count": 3}}, "'model.layers.2.input_layernorm.weight' is missing"),
        ({"metadata": {"llama.block_count": 1}}, "has no place in a llama model"),
        ({"metadata": {"llama.embedding_length": 64}}, r"is \[272, 32\] and must be \[272, 64\]"),
        ({"metadata": {"llama.embedding_length": None}}, "embedding_length"),
        ({"metadata": {"llama.attention.head_count": 0}}, "head_count"),
        ({"metadata": {"llama.attention.head_count": 33}}, "head"),
        ({"metadata": {"llama.attention.layer_norm_rms_epsilon": float("nan")}}, "layer_norm_rms_epsilon"),
        ({"metadata": {"llama.rope.dimension_count": 4}}, "partial rotary"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "'yarn' is not supported"),
        ({"metadata": {"llama.expert_count": 8}}, "mixtures of experts"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 272}}, "outside the vocabulary"),
        ({"metadata": {"tokenizer.ggml.pre": "tekken"}}, "'tekken' is not supported .*--tokenizer"),
        ({"metadata": {"tokenizer.ggml.model": "llama"}}, "'llama' is not supported .*--tokenizer"),
        ({"metadata": {"tokenizer.ggml.merges": ["t", "h e"]}}, "merge of unknown tokens: 't'"),
        ({"metadata": {"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}}, "twice|outside"),
        ({"metadata": {"tokenizer.ggml.token_type": [1, 1]}}, "token types"),
        ({"without": "token_embd.weight"}, "'token_embd.weight' is missing"),
        ({"without": "blk.1.ffn_up.weight"}, "'model.layers.1.mlp.up_proj.weight' is missing"),
        ({"tensors": {"blk.1.ffn_up.weight": np.zeros((64, 64), np.float32)}}, "must be"),
        ({"tensors": {"blk.0.attn_k.bias": np.zeros(16, np.float32)}}, "no place"),
        ({"tensors": {"rope_freqs.weight": np.zeros(4, np.float32)}}, "positive factor"),
    ],
)
def test_a_model_that_does_not_fit_together(
    write_gguf: Any, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", **change)
    with pytest.raises(WeightsError, match=complaint) as caught:
        load(path)
    assert "\n" not in str(caught.value)


EXTREMES = [0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 0x7FF8000000000000]
MUTATIONS = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("byte"), st.floats(0, 1), st.integers(0, 255)),
    st.tuples(st.just("word"), st.floats(0, 1), st.sampled_from(EXTREMES)),
    st.tuples(st.just("drop"), st.floats(0, 1), st.integers(1, 9)),
    st.tuples(st.just("zeros"), st.floats(0, 1), st.integers(1, 64)),
)


def mutate(data: bytearray, n_header: int, kind: str, place: float, value: int) -> bytearray:
    """One corruption, in the header nine times of ten."""
    at = int(place * len(data)) if place > 0.9 else int(place / 0.9 * n_header)
    if kind == "cut":
        return data[:at]
    if kind == "byte":
        data[at : at + 1] = bytes([value])
    elif kind == "word":
        data[at : at + 8] = struct.pack("<Q", value)
    elif kind == "drop":
        del data[at : at + value]
    else:
        data[at : at + value] = bytes(value)
    return data


@pytest.fixture(scope="module")
def small_file(write_gguf: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int, Path]:
    """A quantized file's bytes, the length of its header, and a path to write mutants to."""
    folder = tmp_path_factory.mktemp("fuzz")
    data = write_gguf(folder / "good.gguf", "Q8_0", tensors={"rope_freqs.weight": np.ones(4, np.float32)}).read_bytes()
    return data, data.index(b"blk.1.ffn_down.weight") + 64, folder / "bad.gguf"


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=st.lists(MUTATIONS, min_size=1, max_size=3))
@example(mutations=[("cut", 0.0, 0)])
@example(mutations=[("byte", 0.0, 0)])
def test_a_corrupt_file_is_refused_or_runs(small_file: tuple[bytes, int, Path], mutations: list[Any]) -> None:
    data, n_header, path = small_file
    mutant = bytearray(data)
    for mutation in mutations:
        mutant = mutate(mutant, n_header, *mutation)
    path.unlink(missing_ok=True)
    path.write_bytes(mutant)
    with contextlib.suppress(WeightsError):
        opened = load(path)
        model = Llama(opened.config, opened.tensors, torch.float32, "cpu")
        assert len(model.layers) == opened.config.num_hidden_layers


@pytest.mark.model
def test_the_real_file(smollm2_gguf: Path) -> None:
    opened = load(smollm2_gguf)
    assert opened.n_parameters == 134_515_008
    assert opened.assets.eos_tokens == (2,)
    assert (opened.assets.bos_text, opened.assets.eos_text) == ("<|im_start|>", "<|im_end|>")
    assert opened.assets.add_bos is False
    assert "<|im_start|>" in (opened.assets.chat_template or "")
    assert opened.assets.n_tokens == opened.config.vocab_size == 49152
