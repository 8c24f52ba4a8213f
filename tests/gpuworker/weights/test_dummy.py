"""Random weights: the same every time, sane in scale, with a tokenizer whatever happens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from gpuworker.models.llama import Llama
from gpuworker.weights import checkpoint
from gpuworker.weights.errors import WeightsError


def load(path: Path, **options: Any) -> checkpoint.Checkpoint:
    return checkpoint.load(str(path), load_format="dummy", dtype=torch.float32, **options)


@torch.inference_mode()
def test_logits_are_sane(hf_config_dir: Path) -> None:
    opened = load(hf_config_dir)
    model = Llama(opened.config, opened.tensors, torch.float32, "cpu")
    hidden = model.forward(torch.arange(8), torch.arange(8), lambda layer, q, k, v: v.repeat_interleave(3, 1))
    logits = model.logits(hidden)
    assert 0.5 < hidden.std() < 2
    assert 0.5 < logits.std() < 2
    assert opened.n_parameters == 134_515_008


def test_the_same_in_any_order(tiny_llama_dir: Path) -> None:
    first, second = load(tiny_llama_dir), load(tiny_llama_dir / "config.json")
    assert first.fingerprint == second.fingerprint
    for name in reversed(list(second.tensors)):
        assert torch.equal(first.tensors[name], second.tensors[name])
    up, gate = (first.tensors[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("up", "gate"))
    assert not torch.equal(up, gate)


def test_a_tokenizer_of_bytes_where_there_is_none(tiny_llama_dir: Path) -> None:
    assets = load(tiny_llama_dir).assets
    tokenizer = Tokenizer.from_str(assets.tokenizer_json)
    text = "Naïve 東京 🎼\n\x00"
    assert tokenizer.encode(text).ids == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.token_to_id(assets.eos_text or "") == 256
    assert assets.eos_tokens == (2, 256)  # config.json's, and its own


def test_the_models_own_tokenizer_where_there_is_one(tiny_gguf: Path) -> None:
    opened = load(tiny_gguf)
    assert opened.assets == checkpoint.load_assets(str(tiny_gguf))
    assert opened.fingerprint != checkpoint.load(str(tiny_gguf), dtype=torch.float32).fingerprint


def test_a_vocabulary_too_small_for_bytes(tiny_llama_dir: Path, tmp_path: Path) -> None:
    config = (tiny_llama_dir / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"vocab_size": 300', '"vocab_size": 256'))
    with pytest.raises(WeightsError, match="no room for bytes; pass --tokenizer"):
        load(tmp_path)
