"""Hugging Face directories: one file or shards, the tokenizer's files, and every way they can be broken."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gpuworker.weights import checkpoint, tokenizer
from gpuworker.weights.errors import WeightsError

TOKENIZER = tokenizer.of_bytes()
TOKENIZER.add_special_tokens(["<s>", "</s>"])  # 257 and 258
WITH_BOS = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None}


def load(path: Path, dtype: torch.dtype = torch.float32) -> checkpoint.Checkpoint:
    return checkpoint.load(str(path), load_format="auto", dtype=dtype)


def write(path: Path, **files: Any) -> None:
    """Write JSON files; `name` stands for name.json."""
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def directory(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to break, with a tokenizer."""
    path = tmp_path / "tiny"
    shutil.copytree(tiny_llama_dir, path)
    write(path, tokenizer=TOKENIZER.to_str(), tokenizer_config=WITH_BOS)
    return path


def test_tensors_are_the_stored_ones(directory: Path) -> None:
    stored = load_file(directory / "model.safetensors")
    opened = load(directory)
    assert set(opened.tensors) == set(stored)
    assert all(torch.equal(opened.tensors[name], w) for name, w in stored.items())
    assert opened.n_parameters == sum(w.numel() for w in stored.values())
    assert load(directory, torch.bfloat16).tensors["lm_head.weight"].dtype == torch.bfloat16
    with pytest.raises(KeyError):
        opened.tensors["no such tensor"]


def test_shards_are_the_same_model(directory: Path, tmp_path: Path) -> None:
    whole = load(directory)
    stored = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(stored)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: stored[name] for name in part}, directory / file)
    assert load(directory).fingerprint == whole.fingerprint  # found without an index too
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    write(directory, **{"model.safetensors.index": index})
    assert load(directory).fingerprint == whole.fingerprint
    (directory / "b.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"b\.safetensors: cannot be read"):
        load(directory)


def test_what_old_checkpoints_repeat_is_ignored(directory: Path) -> None:
    stored = load_file(directory / "model.safetensors")
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(stored, directory / "model.safetensors")
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" not in load(directory).tensors
    write(directory, config=json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": True})
    assert "lm_head.weight" not in load(directory).tensors


def test_special_tokens_and_template(directory: Path) -> None:
    assets = load(directory).assets
    assert (assets.bos_text, assets.eos_text, assets.pad_text, assets.unk_text) == ("<s>", "</s>", None, None)
    assert (assets.bos_token, assets.eos_tokens, assets.n_tokens) == (257, (2, 258), 259)  # 2 is config.json's
    assert (assets.add_bos, assets.chat_template) == (False, None)

    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write(directory, tokenizer_config=WITH_BOS | {"chat_template": named, "add_bos_token": True})
    assert load(directory).assets.chat_template == "plain"
    assert load(directory).assets.add_bos is True
    (directory / "chat_template.jinja").write_text("its own file")
    assert load(directory).assets.chat_template == "its own file"


def test_add_bos_is_what_the_tokenizer_does(directory: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    adding = tokenizer.of_bytes()
    adding.add_special_tokens(["<s>", "</s>"])
    adding.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 257)])
    write(directory, tokenizer=adding.to_str())
    assert load(directory).assets.add_bos is True


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"config": "{"}, "truncated"),
        ({"config": "[]"}, "Expected `object`"),
        ({"config": '{"a":' * 10**5}, "recursion"),
        ({"config": {}}, "'None' is not supported"),
        ({"config": {"model_type": "llama"}}, "missing required field"),
        ({"generation_config": "nope"}, "malformed"),
        ({"generation_config": {"eos_token_id": "two"}}, "eos_token_id"),
        ({"generation_config": {"eos_token_id": [300]}}, "outside the vocabulary"),
        ({"model.safetensors.index": {}}, "weight_map"),
        ({"model.safetensors.index": {"weight_map": [1]}}, "weight_map"),
        ({"tokenizer": "{}"}, "not a tokenizer.json"),
        ({"tokenizer": "\u0000"}, "not a tokenizer.json"),
        ({"tokenizer_config": {"bos_token": 3}}, "bos_token"),
    ],
)
def test_broken_files_are_told_from_each_other(directory: Path, files: dict[str, Any], complaint: str) -> None:
    write(directory, **files)
    with pytest.raises(WeightsError, match=complaint) as caught:
        load(directory)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit(directory: Path) -> None:
    file = directory / "model.safetensors"
    stored = load_file(file)
    save_file({name: w for name, w in stored.items() if name != "model.norm.weight"}, file)
    with pytest.raises(WeightsError, match=r"'model\.norm\.weight' is missing"):
        load(directory)
    save_file(stored | {"model.norm.weight": torch.ones(31)}, file)
    with pytest.raises(WeightsError, match=r"\[31\] and must be \[32\]"):
        load(directory)
    save_file(stored | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, file)
    with pytest.raises(WeightsError, match="has no place"):
        load(directory)
    save_file(stored | {"model.norm.weight": torch.ones(32, dtype=torch.int32)}, file)
    with pytest.raises(WeightsError, match="has type I32"):
        load(directory)
    save_file(stored, file)
    save_file({"model.norm.weight": torch.ones(32)}, directory / "second.safetensors")
    with pytest.raises(WeightsError, match="in another file as well"):
        load(directory)


def test_what_is_not_there(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"no tokenizer\.json; pass one with --tokenizer"):
        load(directory)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"no \*\.safetensors files"):
        load(directory)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    keep=st.floats(0.3, 1.5),
)
def test_a_corrupt_safetensors_is_refused_or_runs(directory: Path, edits: list[tuple[float, int]], keep: float) -> None:
    file = directory / "model.safetensors"
    pristine = directory.parent / "pristine"
    if not pristine.exists():
        shutil.copy(file, pristine)
    data = bytearray(pristine.read_bytes())
    n_header = 8 + int.from_bytes(data[:8], "little")
    for place, value in edits:
        data[int(place * n_header)] = value
    file.unlink()  # the last mutant may still be mapped
    file.write_bytes(data[: int(keep * len(data))])
    with contextlib.suppress(WeightsError):
        opened = load(directory)
        assert all(w.dtype == torch.float32 for w in opened.tensors.values())
