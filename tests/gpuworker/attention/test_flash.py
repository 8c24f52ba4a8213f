"""What the conformance suite cannot see: that the fakes are like the originals, and which function is called when."""

import inspect
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn.attention import varlen

from gpuworker.attention.flash import FlashAttnBackend, find_flash_attn, find_torch_varlen
from tests.gpuworker.attention import fake_flash
from tests.gpuworker.attention.world import File, Shape, World

SHAPE = Shape(page_size=256, dtype=torch.bfloat16)


def parameters(function) -> list[tuple]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_the_fake_has_the_signature_of_the_torch_installed():
    assert parameters(fake_flash.varlen_attn) == parameters(varlen.varlen_attn)


@pytest.mark.parametrize(
    ("files", "called"),
    [
        ([File(300, 1), File(0, 1)], "flash_attn_with_kvcache"),
        ([File(300, 1), File(0, 2)], "flash_attn_varlen_func"),
    ],
    ids=["decode", "mixed"],
)
def test_decode_steps_take_the_function_that_splits_keys(files, called):
    only = SimpleNamespace(**{called: getattr(fake_flash, called)})
    World(files, SHAPE).check(FlashAttnBackend(only))


def test_short_tables_are_padded_with_a_page_that_cannot_be_read():
    world = World([File(600, 1), File(5, 1)], SHAPE)
    meta = FlashAttnBackend(fake_flash).plan(world.rows, world.pool)
    assert meta.rows.block_table.tolist() == [list(world.rows[0].pages), [world.rows[1].pages[0], -1, -1]]


def test_the_package_is_found_by_its_submodule(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))  # flash-attn 4 alone looks like this
    assert find_flash_attn() is None
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", fake_flash)
    found = find_flash_attn()
    assert found is not None
    World([File(3, 1)], SHAPE).check(found)


def test_torch_without_block_tables_is_passed_over(monkeypatch):
    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None): ...

    assert find_torch_varlen() is not None
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)  # as torch 2.11 has it
    assert find_torch_varlen() is None


def world(page_size: int = 256, dtype: torch.dtype = torch.bfloat16) -> World:
    return World([File(3, 1), File(0, 2)], Shape(page_size=page_size, dtype=dtype))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: world(page_size=16), "divisible by 256"),
        (lambda: world(dtype=torch.float32), "fp16 and bf16"),
    ],
)
def test_the_fakes_refuse_what_the_originals_refuse(made, says):
    with pytest.raises((AssertionError, RuntimeError), match=says):
        made().run(FlashAttnBackend(fake_flash))
