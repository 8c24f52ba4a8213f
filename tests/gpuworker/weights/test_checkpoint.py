"""What all formats share: fingerprints, tokenizer overrides, the served name."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gpuworker.weights import checkpoint, tokenizer
from gpuworker.weights.errors import WeightsError


def load(path: Path, **options: Any) -> checkpoint.Checkpoint:
    return checkpoint.load(str(path), **{"dtype": torch.float32, **options})


def test_fingerprint_knows_weights_and_configuration_alone(write_gguf: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    base = load(tiny_gguf).fingerprint
    assert len(base) == 32
    same = shutil.copy(tiny_gguf, tmp_path / "other name.gguf")
    assert load(same).fingerprint == base
    assert load(tiny_gguf, dtype=torch.bfloat16).fingerprint == base
    template = write_gguf(tmp_path / "a.gguf", metadata={"tokenizer.chat_template": "another"})
    assert load(template).fingerprint == base
    theta = write_gguf(tmp_path / "b.gguf", metadata={"llama.rope.freq_base": 20000.0})
    assert load(theta).fingerprint != base
    assert load(write_gguf(tmp_path / "c.gguf", "F16")).fingerprint != base
    data = bytearray(tiny_gguf.read_bytes())
    data[-40] ^= 1
    (tmp_path / "d.gguf").write_bytes(data)
    assert load(tmp_path / "d.gguf").fingerprint != base


def test_names(tiny_gguf: Path, tiny_llama_dir: Path) -> None:
    assert load(tiny_gguf).name == "tiny"
    assert load(tiny_llama_dir, load_format="dummy").name == tiny_llama_dir.name


def test_unknown_load_format(tiny_gguf: Path) -> None:
    with pytest.raises(WeightsError, match=r"'fast' is not known \(known: auto, dummy\)"):
        load(tiny_gguf, load_format="fast")


def test_another_tokenizer(write_gguf: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    """A GGUF whose tokenizer we cannot rebuild runs with one from elsewhere."""
    path = write_gguf(tmp_path / "m.gguf", metadata={"tokenizer.ggml.pre": "unheard-of"})
    with pytest.raises(WeightsError, match="--tokenizer"):
        load(path)
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer.of_bytes().to_str())
    for given in (file, tmp_path):
        assets = load(path, tokenizer=str(given)).assets
        assert assets.tokenizer_json == file.read_text()
        assert assets.eos_tokens == (0, 2)  # the model's own
    assert load(path, tokenizer=str(tiny_gguf)).assets.tokenizer_json == load(tiny_gguf).assets.tokenizer_json
    with pytest.raises(WeightsError, match="no such file"):
        load(path, tokenizer=str(tmp_path / "nothing"))


def test_a_tokenizer_larger_than_the_vocabulary(tiny_gguf: Path, tmp_path: Path) -> None:
    large = tokenizer.of_bytes()
    large.add_tokens([f"<{i}>" for i in range(40)])
    (tmp_path / "tokenizer.json").write_text(large.to_str())
    with pytest.raises(WeightsError, match="the tokenizer has 297 tokens, but the model 272"):
        load(tiny_gguf, tokenizer=str(tmp_path))


def test_assets_need_no_weights(tiny_llama_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(tokenizer.of_bytes().to_str())
    whole = load(tmp_path).assets
    (tmp_path / "model.safetensors").unlink()
    assert checkpoint.load_assets(str(tmp_path)) == whole
