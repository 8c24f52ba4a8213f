"""Names of dtypes are vLLM's."""

import pytest
import torch

from gpuworker.weights.dtype import choose
from gpuworker.weights.errors import WeightsError


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("float", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("half", torch.float16),
    ],
)
def test_names(name: str, dtype: torch.dtype) -> None:
    assert choose(name, "cpu") == choose(name, "cuda:1") == dtype


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_on_a_cpu(monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert choose("auto", "cpu") == dtype


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose("auto", "cuda:0") == dtype


def test_unknown() -> None:
    with pytest.raises(WeightsError, match="'int4' is not known"):
        choose("int4", "cpu")
