"""config.json to ModelConfig, in both spellings, and nothing but ConfigError for garbage."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpuworker.models import rope
from gpuworker.models.config import ConfigError, ModelConfig

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_defaults_are_llamas() -> None:
    config = ModelConfig.from_hf(BASE)
    assert (config.num_key_value_heads, config.head_dim, config.rms_norm_eps) == (4, 16, 1e-6)
    assert (config.rope_theta, config.rope_scaling, config.max_position_embeddings) == (10000.0, None, 2048)
    assert (config.tie_word_embeddings, config.attention_bias, config.mlp_bias) == (False, False, False)
    assert (config.bos_token, config.eos_tokens) == (None, ())


def test_both_spellings_of_rope_agree() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    new = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}
    assert ModelConfig.from_hf(BASE | old) == ModelConfig.from_hf(BASE | new)
    oldest = ModelConfig.from_hf(BASE | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert oldest.rope_scaling == {"rope_type": "linear", "factor": 2.0}


def test_eos_tokens_of_both_files() -> None:
    config = ModelConfig.from_hf(BASE | {"eos_token_id": 7}, {"eos_token_id": [9, 7], "bos_token_id": 3})
    assert (config.bos_token, config.eos_tokens) == (3, (9, 7))


def test_canonical_ignores_the_order_of_keys() -> None:
    assert ModelConfig.from_hf(BASE).canonical() == ModelConfig.from_hf(dict(reversed(BASE.items()))).canonical()
    assert ModelConfig.from_hf(BASE).canonical() != ModelConfig.from_hf(BASE | {"rms_norm_eps": 1e-5}).canonical()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hidden_size": "64"}, "hidden_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"head_dim": 15}, "even"),
        ({"eos_token_id": 1000}, "outside the vocabulary"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "gptq"}}, "pre-quantized"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "larger"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, "rope_theta"),
    ],
)
def test_what_cannot_be_run_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        ModelConfig.from_hf(BASE | change)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match="num_attention_heads"):
        ModelConfig.from_hf({key: value for key, value in BASE.items() if key != "num_attention_heads"})


SIZES = ["vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps"]
OTHERS = ["rope_theta", "rope_scaling", "rope_parameters", "bos_token_id", "eos_token_id", "attention_bias"]
KEYS = st.sampled_from([*SIZES, *OTHERS])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "factor"]), inner),
    max_leaves=4,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_garbage_is_refused_or_runs(change: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        config = ModelConfig.from_hf(BASE | change)
        assert torch.isfinite(rope.table(replace(config, max_position_embeddings=8), "cpu")).all()
