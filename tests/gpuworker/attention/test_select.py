import sys

import pytest
import torch
from torch.nn.attention import varlen

from gpuworker.attention.select import AttentionUnavailable, select_backend
from tests.gpuworker.attention import fake_flash


def old_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k): ...


@pytest.fixture(autouse=True)
def _no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", None)


@pytest.fixture
def package(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash)
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", fake_flash)


@pytest.fixture
def old_torch(monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", old_varlen)


def chosen(name, device, dtype, page_size=None) -> str:
    return select_backend(name, torch.device(device), dtype, 64, page_size).caps.name


def test_cpu():
    assert chosen("auto", "cpu", torch.float32, 16) == "cpu"
    assert chosen("auto", "cpu", torch.bfloat16) == "cpu"
    assert chosen("auto", "cpu", torch.float16) == "sdpa"


def test_cuda_prefers_the_package(package):
    assert chosen("auto", "cuda", torch.bfloat16) == "flash_attn"
    assert chosen("flash_attn", "cuda", torch.bfloat16, 512) == "flash_attn"


def test_cuda_without_the_package_takes_torchs_own():
    assert chosen("auto", "cuda", torch.bfloat16, 256) == "torch_varlen"
    assert chosen("flash_attn", "cuda", torch.float16) == "torch_varlen"


@pytest.mark.usefixtures("old_torch")
def test_cuda_with_neither_takes_sdpa():
    assert chosen("auto", "cuda", torch.bfloat16) == "sdpa"


def test_auto_goes_by_what_the_body_can_do():
    assert chosen("auto", "cuda", torch.float32) == "sdpa"
    assert chosen("auto", "cuda", torch.bfloat16, 16) == "sdpa"


def test_a_body_can_be_asked_for_by_name():
    assert chosen("sdpa", "cpu", torch.float32) == "sdpa"


def test_the_bodys_own_page_size_is_in_its_caps():
    assert select_backend("auto", "cpu", torch.float32, 64).caps.default_page_size == 16
    assert select_backend("auto", "cuda", torch.bfloat16, 64).caps.default_page_size == 256


@pytest.mark.parametrize(
    ("name", "device", "dtype", "page_size", "says"),
    [
        ("triton", "cpu", torch.float32, 16, "no attention called 'triton': use auto, cpu, flash_attn, sdpa"),
        ("flash_attn", "cpu", torch.float32, 256, "'flash_attn' cannot serve here (no cpu devices): use cpu, sdpa"),
        ("flash_attn", "cuda", torch.float32, 256, "(no torch.float32): use sdpa"),
        ("flash_attn", "cuda", torch.bfloat16, 16, "(no pages of 16 tokens, only 256 or a multiple): use sdpa"),
        ("cpu", "cuda", torch.bfloat16, 16, "(no cuda devices): use sdpa"),
        ("auto", "cpu", torch.float64, 16, "use another dtype"),
    ],
)
def test_refusals_say_what_there_is(name, device, dtype, page_size, says):
    with pytest.raises(AttentionUnavailable) as caught:
        chosen(name, device, dtype, page_size)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("old_torch")
def test_a_missing_library_is_said_to_be_missing():
    with pytest.raises(AttentionUnavailable, match="not installed"):
        chosen("flash_attn", "cuda", torch.bfloat16)


def test_an_odd_head_dim_is_refused():
    with pytest.raises(AttentionUnavailable, match="no head_dim 60"):
        select_backend("flash_attn", "cuda", torch.bfloat16, 60)
