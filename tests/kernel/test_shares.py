"""What each tenant may add to a batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.costs import StepCosts
from kernel.shares import SLOWDOWN, allot


def costs_of(row_s, token_s=0.001):
    costs = StepCosts()
    for n in (1, 2, 4, 8, 16, 32, 64, 128):
        costs.step(n, n, 0.010 + row_s * n)
    costs.step(1, 101, 0.010 + row_s + 100 * token_s)
    return costs


class Named:
    """A tenant, or a job of one: known by identity."""

    def __init__(self, **facts):
        self.__dict__ |= facts


def jobs(vt=(), **wanted):
    """Rows by tenant, interleaved; `vt` says who has had how much."""
    tenants = {name: Named(name=name, vt=dict(vt).get(name, 0.0)) for name in wanted}
    lists = [[(tenants[t], Named(n_wanted=n, tenant=t)) for n in ns] for t, ns in wanted.items()]
    return [x for i in range(max(map(len, lists))) for x in (a[i] for a in lists if i < len(a))]


def test_a_modest_tenant_is_not_slowed_by_a_greedy_one():
    costs = costs_of(0.001)
    grants = allot(jobs(greedy=[1] * 64, modest=[1]), 0, 256, 2048, costs)
    assert sum(j.tenant == "modest" for j, _ in grants) == 1
    n = len(grants)
    assert costs.predict(n, n) <= SLOWDOWN * costs.predict(2, 2) + 1e-9
    assert n > 2, "what costs little is given"


def test_where_rows_cost_nothing_nobody_is_held_back():
    assert len(allot(jobs(greedy=[1] * 64, modest=[1]), 0, 256, 2048, costs_of(0.0))) == 65


def test_equals_share_all():
    assert len(allot(jobs(a=[1] * 20, b=[1] * 20), 0, 256, 2048, costs_of(0.001))) == 40


def test_a_tenant_that_is_about_to_come_back_counts():
    assert len(allot(jobs(greedy=[1] * 64), 1, 256, 2048, costs_of(0.001))) < 10


def test_a_long_prompt_is_cut_to_what_the_others_can_bear():
    grants = allot(jobs(greedy=[2000], modest=[1]), 0, 256, 2048, costs_of(0.001, 0.001))
    by = {j.tenant: n for j, n in grants}
    assert by["modest"] == 1
    assert by.get("greedy", 0) <= 20


def test_a_newcomers_prompt_is_not_computed_in_crumbs():
    costs = costs_of(0.001, 0.001)
    by = {j.tenant: n for j, n in allot(jobs({"old": 100.0}.items(), new=[400], old=[1]), 0, 256, 2048, costs)}
    assert by["old"] == 1
    assert 9 <= by["new"] <= 20, "as long as each would have had the device in turn"
    by = {j.tenant: n for j, n in allot(jobs({"new": 100.0}.items(), new=[400], old=[1]), 0, 256, 2048, costs)}
    assert by["new"] <= 4


def test_equal_prompts_are_computed_whole():
    grants = allot(jobs(a=[300], b=[300]), 0, 256, 2048, costs_of(0.001))
    assert [n for _, n in grants] == [300, 300]


def test_nothing_known_limits_nobody():
    assert len(allot(jobs(a=[1] * 64, b=[1]), 0, 256, 2048, StepCosts())) == 65


@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(1, 600), min_size=1, max_size=40), min_size=1),
    st.integers(1, 64),
    st.integers(1, 1024),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.0001, 0.001]),
)
def test_budgets_hold_and_somebody_always_gets_on(wanted, max_rows, max_tokens, n_absent, row_s):
    asked = jobs(**wanted)
    grants = allot(asked, n_absent, max_rows, max_tokens, costs_of(row_s))
    assert 0 < len(grants) <= max_rows
    assert sum(n for _, n in grants) <= max_tokens
    assert all(1 <= n <= job.n_wanted for job, n in grants)
    assert len({id(job) for job, _ in grants}) == len(grants)
    if max_rows >= len(wanted) and max_tokens >= 600 * len(wanted):
        assert {job.tenant for job, _ in grants} == set(wanted), "every tenant has a row"


@pytest.mark.parametrize("n_rows", [1, 8])
def test_a_single_tenants_batch_is_whole(n_rows):
    assert len(allot(jobs(a=[1] * n_rows), 0, 256, 2048, costs_of(0.001))) == n_rows
