import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuworker.attention.backend import RowSpec
from gpuworker.attention.cpu import CpuBackend
from gpuworker.attention.cpu_prefix import MIN_MEMBERS, MIN_SHARED, MIN_WORK, SharedPrefix, group_by_prefix
from tests.gpuworker.attention.world import File, Shape, World

SIZE = 16


def fork(shared: int, own: int, number: int, n_new: int = 1) -> RowSpec:
    """`shared` common pages, then `own` of its own; all but the last n_new tokens are written."""
    pages = [*range(shared), *range(10_000 * (number + 1), 10_000 * (number + 1) + own)]
    return RowSpec(pages, (shared + own) * SIZE - n_new, n_new)


def test_forks_of_a_long_prompt_are_one_group():
    rows = [fork(40, 1 + n % 3, n) for n in range(16)]
    (group,) = group_by_prefix(rows, SIZE)
    assert group.pages == list(range(40))
    assert group.members == list(range(16))


def test_strangers_are_left_out():
    rows = [fork(0, 40, 99), *(fork(40, 2, n) for n in range(16)), fork(40, 0, 0, n_new=SIZE)]
    (group,) = group_by_prefix(rows, SIZE)
    # The last row's prompt is shared too, but its newest page is only written in this step.
    assert group.members == list(range(1, 18))
    assert group.pages == list(range(39))


def test_two_prompts_are_two_groups():
    rows = [fork(40, 1, n) for n in range(16)] + [fork(41, 1, n) for n in range(16)]
    rows[16:] = [RowSpec([7_000, *row.pages[1:]], row.n_before, row.n_new) for row in rows[16:]]
    assert [group.members for group in group_by_prefix(rows, SIZE)] == [list(range(16)), list(range(16, 32))]


def test_a_pass_of_its_own_must_be_worth_it():
    assert not group_by_prefix([fork(MIN_SHARED // SIZE - 1, 1, n) for n in range(100)], SIZE)
    assert not group_by_prefix([fork(MIN_WORK // SIZE, 1, n) for n in range(MIN_MEMBERS - 1)], SIZE)
    n = MIN_WORK // (32 * SIZE)
    assert not group_by_prefix([fork(32, 1, i) for i in range(n - 1)], SIZE)
    assert group_by_prefix([fork(32, 1, i) for i in range(n)], SIZE)
    assert group_by_prefix([fork(32, 1, i, n_new=2) for i in range(n // 2)], SIZE)


def branches(*sizes: int, trunk: int = 20, branch: int = 60) -> list[RowSpec]:
    """Rows whose prompts begin with the same `trunk` pages; each run of rows shares `branch` more."""
    rows = []
    for b, size in enumerate(sizes):
        shared = [*range(trunk), *range(1000 * (b + 1), 1000 * (b + 1) + branch)]
        for _ in range(size):
            pages = [*shared, 100_000 + len(rows)]
            rows.append(RowSpec(pages, len(pages) * SIZE - 1, 1))
    return rows


def test_one_stranger_on_the_trunk_does_not_spoil_a_branch():
    (group,) = group_by_prefix(branches(1, 16), SIZE)
    assert (group.members, len(group.pages)) == (list(range(1, 17)), 80)


def test_branches_are_groups_of_their_own_where_that_spares_more():
    assert [len(group.pages) for group in group_by_prefix(branches(16, 16), SIZE)] == [80, 80]
    (group,) = group_by_prefix(branches(*[3] * 12), SIZE)  # too few on each branch
    assert (len(group.members), len(group.pages)) == (36, 20)


def test_a_chain_of_forks_ends():
    """Each row branches off a page later than the one before: the search is bounded."""
    rows = []
    for n in range(300):
        pages = [*range(20 + n), 10_000 + n, 20_000 + n]
        rows.append(RowSpec(pages, len(pages) * SIZE - 1, 1))
    groups = group_by_prefix(rows, SIZE)
    assert groups
    members = [member for group in groups for member in group.members]
    assert len(set(members)) == len(members)


def test_rows_that_see_less_are_in_no_group():
    rows = [fork(60, 1, n) for n in range(16)]
    rows[3] = RowSpec(rows[3].pages, rows[3].n_before, 1, [(-5, None)])
    (group,) = group_by_prefix(rows, SIZE)
    assert group.members == [n for n in range(16) if n != 3]


def test_a_group_moves_no_result_by_more_than_rounding():
    files = [File(1000, 1), *(File(1000 + n, 1, parent=0, shared=62) for n in range(1, 12))]
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 8e-3)):  # bf16: the last bit of the output
        grouped, apart = (
            World(files, Shape(q_heads=6, dtype=dtype), seed=5).run(CpuBackend(group_prefixes=flag))
            for flag in (True, False)
        )
        assert not all(torch.equal(one, other) for one, other in zip(grouped, apart, strict=True))
        for one, other in zip(grouped, apart, strict=True):
            torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 80), st.integers(0, 5), st.integers(1, 8)), max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_groups_share_written_pages_and_no_rows(drawn):
    rows = []
    for number, (prompt, shared, own, n_new) in enumerate(drawn):
        pages = [1000 * prompt + page for page in range(shared)]
        pages += range(10_000 * (number + 1), 10_000 * (number + 1) + own + 1)
        rows.append(RowSpec(pages, len(pages) * SIZE - n_new, n_new))
    groups = group_by_prefix(rows, SIZE)
    members = [member for group in groups for member in group.members]
    assert len(set(members)) == len(members)
    for group in groups:
        queries = sum(rows[member].n_new for member in group.members)
        assert len(group.pages) * SIZE * queries >= MIN_WORK
        for member in group.members:
            assert list(rows[member].pages[: len(group.pages)]) == group.pages
            assert len(group.pages) * SIZE <= rows[member].n_before


def test_what_a_prefix_gives_is_its_softmax_and_its_log_sum_exp():
    shape = Shape(q_heads=6, kv_heads=2)
    world = World([File(4 * SIZE, 3)], shape)
    q = world.queries[1]
    out, lse = SharedPrefix(world.rows[0].pages[:4], [0, 2], world.pool).attend(1, q, world.pool)
    k, v = world.histories[0][1, :, : 4 * SIZE].double().repeat_interleave(3, dim=2)
    scores = torch.einsum("qhd,khd->qhk", q[[0, 2]].double(), k) / 8
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.double(), torch.einsum("qhk,khd->qhd", scores.softmax(-1), v), atol=1e-5, rtol=1e-5)
