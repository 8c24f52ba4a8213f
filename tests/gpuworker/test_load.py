"""From options to an engine: what it says of itself, and the one line for each thing a user can get wrong."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from gpuworker.device import count_host_pages
from gpuworker.engine import Engine
from gpuworker.load import load
from gpuworker.options import OptionError, Options

GIB = 1 << 30
PER_PAGE = (2 * 2 * 16 * 2 * 8 + 2 * 32) * 4  # of the tiny model in fp32: K and V of its layers, two tails


def tiny(path: Path, log: list[str] | None = None, **options: Any) -> Engine:
    defaults: dict[str, Any] = {"model": str(path), "load_format": "dummy", "dtype": "float32", "num_pages": 32}
    return load(Options(**(defaults | options)), (log if log is not None else []).append)


def test_facts_of_a_model(tiny_llama_dir: Path) -> None:
    log: list[str] = []
    engine = tiny(tiny_llama_dir, log, max_model_len=200, max_num_seqs=7, max_num_batched_tokens=99, threads=1)
    facts = engine.info()
    assert (facts.device, facts.attention, facts.n_pages) == ("cpu, 1 threads", "cpu", 32)
    assert (facts.max_rows, facts.max_batch_tokens) == (7, 99)
    model = facts.model
    assert (model.name, model.architecture, model.dtype) == (tiny_llama_dir.name, "llama", "float32")
    assert (model.vocab_size, model.max_model_len, model.page_size) == (300, 200, 16)
    assert model.n_parameters > 300 * 32 * 2
    assert 2 in model.eos_tokens
    assert engine.assets().tokenizer_json.startswith("{")
    assert log == [f"loading {tiny_llama_dir} (float32) …"]


def test_the_context_shrinks_to_what_the_pages_hold(tiny_llama_dir: Path) -> None:
    log: list[str] = []
    assert tiny(tiny_llama_dir, log, num_pages=3).info().model.max_model_len == 48
    assert "48 tokens" in log[-1]
    assert tiny(tiny_llama_dir, num_pages=100).info().model.max_model_len == 256


def test_pages_come_from_a_share_of_memory(tiny_llama_dir: Path) -> None:
    engine = tiny(tiny_llama_dir, num_pages=None, kv_cache_memory=100.5 * PER_PAGE / GIB)
    assert engine.info().n_pages == 100


def test_bfloat16_pages_are_half_as_big(tiny_llama_dir: Path) -> None:
    engine = tiny(tiny_llama_dir, num_pages=None, kv_cache_memory=100.5 * PER_PAGE / 2 / GIB, dtype="bfloat16")
    assert engine.info().n_pages == 100
    assert engine.info().model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "n_host_pages"),
    [
        ({"swap_space": 0.0}, 0),
        ({"swap_space": 20.5 * PER_PAGE / GIB}, 20),
        ({}, 4 * 32),  # the default would hold more, but for so few pages there is no use
        ({"num_host_pages": 0}, 0),
        ({"num_host_pages": 500, "swap_space": 0.0}, 500),
    ],
    ids=str,
)
def test_the_room_for_pages_in_main_memory(tiny_llama_dir: Path, options: dict[str, Any], n_host_pages: int) -> None:
    facts = tiny(tiny_llama_dir, **options).info()
    assert (facts.n_pages, facts.n_host_pages, facts.page_bytes) == (32, n_host_pages, PER_PAGE)


@pytest.mark.parametrize("swap_space", [1e9, float("inf")])
def test_main_memory_is_not_filled_to_the_brim(swap_space: float) -> None:
    """However much is asked for, half of what is free stays free."""
    n_host_pages = count_host_pages(Options(swap_space=swap_space), n_pages=10**12, bytes_per_page=PER_PAGE)
    half = psutil.virtual_memory().available / 2
    assert 0.5 < n_host_pages * PER_PAGE / half < 1.5  # others come and go


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"model": "/nowhere"}, "/nowhere"),
        ({"num_pages": None, "kv_cache_memory": float("inf")}, "say how many GiB"),
        ({"device": "tpu"}, "use auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "use auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:-1"}, "use auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:9"}, "torch finds"),
        ({"dtype": "int3"}, "int3"),
        ({"attention": "magic"}, "magic"),
        ({"load_format": "pickle"}, "pickle"),
        ({"tokenizer": "/nowhere"}, "/nowhere"),
        ({"max_model_len": 257}, "made for 256 tokens"),
        ({"max_model_len": 100, "num_pages": 2}, "2 pages hold 32 tokens"),
        ({"num_host_pages": 10**13}, "do not fit into memory: Unable to allocate"),
        ({"num_pages": 10**10}, "do not fit into memory: Unable to allocate"),
        ({"num_pages": None, "kv_cache_memory": 1e-6}, "no memory for pages"),
    ],
    ids=str,
)
def test_complaints_are_one_line(tiny_llama_dir: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint) as e:
        tiny(tiny_llama_dir, **options)
    assert "\n" not in str(e.value)


def test_a_model_that_cannot_be_run_is_an_option_error(tiny_llama_dir: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_llama_dir / "config.json").read_text())
    for change in ({"model_type": "mamba"}, {"hidden_size": -1}, {"head_dim": 7}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(OptionError) as e:
            tiny(tmp_path)
        assert "\n" not in str(e.value)


def test_threads_are_torch_s_own_choice_at_most(tiny_llama_dir: Path) -> None:
    tiny(tiny_llama_dir, threads=1)
    assert torch.get_num_threads() == 1
    tiny(tiny_llama_dir, threads=2)
    assert torch.get_num_threads() == 2
    tiny(tiny_llama_dir)
    assert torch.get_num_threads() <= 2
