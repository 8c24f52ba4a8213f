"""One suite for every body: the same steps, the same fp64 answer. Flash runs on fakes that check like the originals."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworker.attention.backend import RowSpec
from gpuworker.attention.cpu import CpuBackend
from gpuworker.attention.flash import FlashAttnBackend, TorchVarlenBackend
from gpuworker.attention.sdpa import SdpaBackend
from tests.gpuworker.attention import fake_flash
from tests.gpuworker.attention.world import File, Shape, World

BODIES = {
    "cpu": (CpuBackend(), Shape()),
    "cpu-bf16": (CpuBackend(), Shape(dtype=torch.bfloat16)),
    "cpu-page-256": (CpuBackend(), Shape(page_size=256)),
    "sdpa": (SdpaBackend(), Shape()),
    "sdpa-bf16": (SdpaBackend(), Shape(dtype=torch.bfloat16)),
    "flash-attn": (FlashAttnBackend(fake_flash), Shape(page_size=256, dtype=torch.bfloat16)),
    "torch-varlen": (TorchVarlenBackend(fake_flash.varlen_attn), Shape(page_size=256, dtype=torch.float16)),
}


@pytest.fixture(params=BODIES, scope="module")
def body(request):
    backend, shape = BODIES[request.param]
    assert backend.caps.refusal(next(iter(backend.caps.devices)), shape.dtype, shape.head_dim, shape.page_size) is None
    return backend, shape


def around(border: int) -> list[File]:
    """Decode and short prefill that end just before, at and just after a page border."""
    return [File(total - new, new) for new in (1, 3, 12) for total in (border - 1, border, border + 1)]


STEPS = {
    "first token of a file": lambda size: [File(0, 1)],
    "one decode row": lambda size: [File(2 * size + 5, 1)],
    "whole prompt": lambda size: [File(0, 70)],
    "prompt longer than a piece": lambda size: [File(0, 600), File(37, 300)],
    "around page borders": lambda size: around(size) + around(2 * size),
    "ragged": lambda size: [File((7 * n) % 50, n) for n in (1, 2, 7, 8, 9, 10, 31, 64, 70)],
    "mixed, prefill between decodes": lambda size: [
        File(33, 1),
        File(0, 40),
        File(size, 1),
        File(5, 20),
        File(3, 2),
    ],
    "forks": lambda size: [
        File(3 * size + 5, 1),
        *(File(2 * size + n, 1 + n % 3, parent=0, shared=2) for n in range(6)),
        File(size, 30, parent=0, shared=1),
    ],
    "forks of forks": lambda size: [
        File(3 * size, 1),
        File(3 * size + 4, 1, parent=0, shared=2),
        File(3 * size + 9, 1, parent=1, shared=3),
        File(3 * size, 1, parent=0, shared=3),
    ],
    "sinks and a window": lambda size: [
        File(10 * size + n, m, visible=((0, 4), (-20, None))) for n in (0, 3, size - 1) for m in (1, 3, 8, 9, 40)
    ],
    "runs that move and runs that do not": lambda size: [
        File(3 * size + 5, n, visible=runs)
        for n in (1, 5, 30)
        for runs in (
            ((-1, None),),  # itself alone
            ((5, 9), (size, 2 * size)),
            ((0, -5),),
            ((-30, -20), (-3, -1), (7, 8)),
            ((1000, None), (0, 3)),
            ((-1000, 2),),
        )
    ],
    "a long prompt behind a window": lambda size: [File(700, 300, visible=((0, 4), (-64, None))), File(50, 1)],
    "masked and plain rows in turn": lambda size: [
        File(60, 1, visible=((-7, None),)),
        File(40, 30),
        File(33, 20, visible=((0, 2), (-9, None))),
        File(90, 1),
        File(0, 12, visible=((-4, None),)),
    ],
    "forks of which some see less": lambda size: [
        File(3 * size + 5, 1),
        File(3 * size + 9, 1, parent=0, shared=3, visible=((0, 2), (-12, None))),
        File(2 * size + 7, 12, parent=0, shared=2, visible=((3, size + 1),)),
    ],
    "many rows": lambda size: [File((17 * n) % 100, 1) for n in range(40)],
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("shuffled", [True, False], ids=["shuffled", "contiguous"])
def test_reads_what_it_must_and_writes_nothing_else(body, step, shuffled):
    backend, shape = body
    World(step(shape.page_size), shape, shuffled=shuffled).check(backend)


@pytest.mark.parametrize(("q_heads", "kv_heads"), [(3, 3), (4, 2), (9, 3), (4, 1)])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_grouped_query_heads(body, q_heads, kv_heads, head_dim):
    backend, shape = body
    shape = replace(shape, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim)
    World([File(20, 1), File(3, 11), File(70, 4)], shape).check(backend)


def test_a_prefix_that_many_forks_share(body):
    """Long and shared enough for the CPU's cascade: the members' own parts differ in length and in new tokens."""
    backend, shape = body
    shape = replace(shape, q_heads=2, kv_heads=1)
    pages = 512 // shape.page_size
    forks = [File(512 + 5 * n, 1 + n % 3, parent=0, shared=pages) for n in range(1, 16)]
    unwritten = 0.0 if backend.caps.needs_finite_pool else float("nan")
    forks.insert(3, File(515, 2, parent=0, shared=pages, visible=((0, 5), (-40, None))))
    World([File(530, 1), File(90, 1), *forks, File(10, 20)], shape, unwritten=unwritten).check(backend)


@pytest.mark.parametrize(
    "step", ["mixed, prefill between decodes", "forks", "prompt longer than a piece", "masked and plain rows in turn"]
)
def test_nan_in_unwritten_slots_does_not_leak(body, step):
    backend, shape = body
    world = World(STEPS[step](shape.page_size), shape, unwritten=float("nan"))
    if backend.caps.needs_finite_pool:
        assert any(out.isnan().any() for out in world.run(backend))  # the need is real
    else:
        world.check(backend)


def test_a_page_table_may_be_longer_than_the_row(body):
    backend, shape = body
    world = World([File(5, 1), File(0, 9)], shape)
    world.rows = [RowSpec([*row.pages, world.rows[0].pages[0]], row.n_before, row.n_new) for row in world.rows]
    world.check(backend)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (RowSpec([0], 4, 0), "at least one new token"),
        (RowSpec([0], -1, 2), "at least one new token"),
        (RowSpec([], 0, 1), "0 pages of"),
        (RowSpec([0], 250, 7), "add pages"),
    ],
)
def test_impossible_rows_are_refused(body, row, says):
    backend, shape = body
    with pytest.raises(ValueError, match=says) as caught:
        backend.plan([row], World([File(0, 1)], shape).pool)
    assert "\n" not in str(caught.value)


INDEX = st.one_of(st.integers(-12, 12), st.integers(-80, 80))
RUNS = st.lists(st.tuples(INDEX, st.one_of(st.none(), INDEX)), min_size=1, max_size=5).map(tuple)


@st.composite
def files(draw, size):
    """Up to six files of up to four pages, each perhaps a fork of an earlier one, and perhaps with runs."""
    made: list[File] = []
    for _ in range(draw(st.integers(1, 6))):
        parent = draw(st.integers(0, len(made) - 1)) if made else 0
        shared = draw(st.integers(0, made[parent].n_before // size)) if made else 0
        n_new = draw(st.one_of(st.just(1), st.integers(1, 40)))
        n_before = shared * size + draw(st.integers(0, 2 * size))
        made.append(File(n_before, n_new, parent, shared, draw(st.one_of(st.none(), RUNS))))
    return made


@pytest.mark.parametrize("name", ["cpu", "cpu-bf16", "sdpa", "flash-attn", "torch-varlen"])
@given(data=st.data(), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_any_page_tables(name, data, seed):
    backend, shape = BODIES[name]
    shape = replace(shape, q_heads=2, kv_heads=1)
    unwritten = 0.0 if backend.caps.needs_finite_pool else float("nan")
    World(data.draw(files(shape.page_size)), shape, seed=seed, unwritten=unwritten).check(backend)
