"""What the CPU's body promises beyond the answer itself."""

import pytest
import torch

from gpuworker.attention import cpu_decode
from gpuworker.attention.cpu import MAX_SHORT, CpuBackend
from tests.gpuworker.attention.world import LAYERS, File, Shape, World

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@DTYPES
def test_a_row_reads_the_same_to_the_bit_in_any_step(dtype):
    """No prefix here is long enough to be shared, and so no row's arithmetic depends on another."""
    new = (1, 1, 2, MAX_SHORT, MAX_SHORT + 1, 30, 1)
    together = World([File(40 + 9 * i, n) for i, n in enumerate(new)], Shape(dtype=dtype))
    outs = together.run(CpuBackend())
    first = 0
    for row in together.rows:
        alone = slice(first, first + row.n_new)
        with torch.inference_mode():
            meta = CpuBackend().plan([row], together.pool)
            for layer in range(LAYERS):
                k, v = (together.new_kv(layer, side)[alone] for side in (0, 1))
                out = CpuBackend().attend(layer, together.queries[layer, alone], k, v, meta, together.pool)
                assert torch.equal(out, outs[layer][alone])
        first += row.n_new


@DTYPES
def test_without_groups_forks_of_a_long_prompt_read_the_same_to_the_bit(dtype):
    files = [File(1000, 1), *(File(1000 + n, 1, parent=0, shared=62) for n in range(1, 12))]
    world, backend = World(files, Shape(dtype=dtype)), CpuBackend(group_prefixes=False)
    outs = world.run(backend)
    for i, row in enumerate(world.rows):
        with torch.inference_mode():
            meta = backend.plan([row], world.pool)
            k, v = (world.new_kv(0, side)[i : i + 1] for side in (0, 1))
            assert torch.equal(
                backend.attend(0, world.queries[0, i : i + 1], k, v, meta, world.pool), outs[0][i : i + 1]
            )


@pytest.mark.parametrize("n_new", [1, 8, 40, 300])
def test_what_nobody_sees_is_never_read(n_new):
    """Its pages may hold anything: so a window over a long file costs like a short file."""
    world = World([File(2000, n_new, visible=((0, 4), (-100, None)))], Shape(), seed=3)
    (row,) = world.rows
    world.pool.kv[list(row.pages[1 : (2000 - 100) // 16])] = float("nan")
    world.check(CpuBackend())


@DTYPES
def test_page_order_does_not_matter(dtype):
    files = [File(100, 1), File(20, 3), File(50, 20)]
    shuffled, contiguous = (World(files, Shape(dtype=dtype), shuffled=shuffled) for shuffled in (True, False))
    assert shuffled.rows != contiguous.rows
    contiguous.queries, contiguous.histories = shuffled.queries, shuffled.histories
    for world in (shuffled, contiguous):
        world.pool.kv.copy_(world.filled())
        for row, history in zip(world.rows, world.histories, strict=True):
            for at in range(row.n_before):
                world.pool.kv[row.pages[at // 16], :, :, at % 16] = history[:, :, at]
    for one, other in zip(shuffled.run(CpuBackend()), contiguous.run(CpuBackend()), strict=True):
        assert torch.equal(one, other)


def test_a_pool_too_large_for_int32_is_indexed_with_int64(monkeypatch):
    monkeypatch.setattr(cpu_decode, "INT32_ROWS", 1)
    World([File(40, 1), File(7, 3)], Shape()).check(CpuBackend())
