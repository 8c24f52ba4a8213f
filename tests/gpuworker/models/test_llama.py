"""Llama against transformers' LlamaForCausalLM, on random tiny models and on the real one."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from gpuworker.models.llama import Llama
from gpuworker.weights import checkpoint, tokenizer

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True},
    "mha": {"num_key_value_heads": 6},
    "mqa": {"num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 32},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3": {"rope_parameters": {"rope_theta": 10000.0, **LLAMA3}},
}


def build(directory: Path, dtype: torch.dtype = torch.float32) -> Llama:
    opened = checkpoint.load(str(directory), load_format="auto", dtype=dtype)
    return Llama(opened.config, opened.tensors, dtype, "cpu")


def logits_of(model: Llama, ids: Tensor, kv: Any, start: int = 0) -> Tensor:
    positions = torch.arange(start, start + len(ids))
    return model.logits(model.forward(ids, positions, kv.attend))


@pytest.fixture(scope="session")
def tiny_with_tokenizer(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/gpuworker/conftest.py's tiny model, beside a tokenizer of bytes."""
    path = tmp_path_factory.mktemp("with-tokenizer")
    shutil.copytree(tiny_llama_dir, path, dirs_exist_ok=True)
    (path / "tokenizer.json").write_text(tokenizer.of_bytes().to_str())
    return path


@pytest.fixture(scope="module", params=VARIANTS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """transformers' model with large random weights, and the directory it was saved to, with a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 300, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256}
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **VARIANTS[request.param]})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, so that none can be left out unseen
            parameter.normal_(std=0.3)
    path = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(path)
    (path / "tokenizer.json").write_text(tokenizer.of_bytes().to_str())
    return model, path


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [[200], [1] * 40, [64, 1, 1, 63, 2, 69], [7] * 20])
def test_logits_are_those_of_transformers(tiny: tuple[Any, Path], dense_kv: Any, chunks: list[int]) -> None:
    oracle, path = tiny
    model, kv = build(path), dense_kv()
    ids = torch.randint(300, (sum(chunks),), generator=torch.Generator().manual_seed(len(chunks)))
    expected = oracle(ids[None]).logits[0]
    ours, start = [], 0
    for chunk in ids.split(chunks):
        ours.append(logits_of(model, chunk, kv, start))
        start += len(chunk)
    torch.testing.assert_close(torch.cat(ours), expected, atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_sequences_of_one_batch_do_not_mix(tiny_with_tokenizer: Path, dense_kv: Any) -> None:
    model = build(tiny_with_tokenizer)
    lengths = [5, 1, 9]
    prompts = [torch.arange(length) + 17 * length for length in lengths]
    alone = [logits_of(model, prompt, dense_kv()) for prompt in prompts]
    kvs = [dense_kv() for _ in prompts]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(kvs, q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        return torch.cat([kv.attend(layer, *qkv) for kv, *qkv in parts])

    positions = torch.cat([torch.arange(length) for length in lengths])
    together = model.logits(model.forward(torch.cat(prompts), positions, attend))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_positions_are_the_callers_to_choose(tiny_with_tokenizer: Path, dense_kv: Any) -> None:
    """Rotary embeddings know distances only: shifting all positions changes nothing, stretching them does."""
    model = build(tiny_with_tokenizer)
    ids = torch.arange(30)
    base = model.logits(model.forward(ids, torch.arange(30), dense_kv().attend))
    shifted = model.logits(model.forward(ids, torch.arange(30) + 100, dense_kv().attend))
    stretched = model.logits(model.forward(ids, torch.arange(30) * 7, dense_kv().attend))
    torch.testing.assert_close(shifted, base, atol=1e-4, rtol=1e-4)
    assert (stretched - base).abs().max() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_fp32(tiny_with_tokenizer: Path, dense_kv: Any, dtype: torch.dtype) -> None:
    ids = torch.arange(40)
    expected = logits_of(build(tiny_with_tokenizer), ids, dense_kv())
    ours = logits_of(build(tiny_with_tokenizer, dtype), ids, dense_kv())
    assert ours.dtype == torch.float32
    assert (ours - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.fixture(scope="module")
def real() -> tuple[Llama, checkpoint.Checkpoint]:
    opened = checkpoint.load("smollm2-135m-instruct", load_format="auto", dtype=torch.float32)
    return Llama(opened.config, opened.tensors, torch.float32, "cpu"), opened


def prompts(words_of: Tokenizer) -> list[list[int]]:
    """Five prompts of 5 to 1500 tokens: a question, a chat, noise, and two pieces of documented code."""
    prose = Path(torch.__file__).with_name("functional.py").read_text()
    chat = "<|im_start|>user\nName three colours of the rainbow.<|im_end|>\n<|im_start|>assistant\n"
    noise = torch.randint(17, 49152, (300,), generator=torch.Generator().manual_seed(3)).tolist()
    question, talk, words = (words_of.encode(text).ids for text in ("The capital of France is", chat, prose))
    return [question, talk, noise, words[:700], words[-1500:]]


@pytest.mark.model
@torch.inference_mode()
def test_real_logits_are_those_of_transformers(real: Any, hf_model: Any, dense_kv: Any) -> None:
    model, opened = real
    for ids in prompts(Tokenizer.from_str(opened.assets.tokenizer_json)):
        expected = hf_model(torch.tensor([ids])).logits[0]
        ours = logits_of(model, torch.tensor(ids), dense_kv())
        assert (ours - expected).abs().max() < 2e-3, f"{len(ids)} tokens"


@pytest.mark.model
@torch.inference_mode()
def test_real_greedy_text_is_that_of_transformers(real: Any, hf_model: Any, dense_kv: Any) -> None:
    model, opened = real
    for ids in prompts(Tokenizer.from_str(opened.assets.tokenizer_json))[:2]:
        greedy = hf_model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=64,
            min_new_tokens=64,
            do_sample=False,
            pad_token_id=2,
            eos_token_id=None,
        )
        kv, ours, step = dense_kv(), list(ids), ids
        for _ in range(64):
            row = logits_of(model, torch.tensor(step), kv, len(ours) - len(step))[-1]
            step = [int(row.argmax())]
            ours += step
        assert ours == greedy[0].tolist()
