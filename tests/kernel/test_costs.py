"""What a step costs, learnt from steps."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.costs import StepCosts


def true_s(n_rows, n_tokens):
    return 0.010 + 0.001 * n_rows + 0.0005 * max(0, n_tokens - n_rows)


def learnt(sizes=(1, 2, 4, 8, 16, 32, 64)):
    costs = StepCosts()
    for _ in range(40):
        for n in sizes:
            costs.step(n, n, true_s(n, n))
        costs.step(4, 260, true_s(4, 260))
    return costs


def test_nothing_seen_costs_nothing():
    assert StepCosts().predict(8, 500) == 0.0


@given(st.integers(1, 200), st.integers(0, 2000))
def test_sizes_between_and_beyond_those_seen(n_rows, more):
    assert learnt().predict(n_rows, n_rows + more) == pytest.approx(true_s(n_rows, n_rows + more), rel=0.05)


def test_one_size_is_all_that_is_known():
    costs = learnt(sizes=(4,))
    assert costs.predict(1, 1) == costs.predict(64, 64) == pytest.approx(true_s(4, 4))


def test_it_follows_what_changes():
    costs = learnt()
    for _ in range(60):
        costs.step(8, 8, 0.5)
    assert costs.predict(8, 8) == pytest.approx(0.5, rel=0.01)


def test_moves():
    costs = StepCosts()
    costs.moved(0, 1.0)
    assert costs.page_s == 0.0
    costs.moved(10, 0.02)
    assert costs.page_s == pytest.approx(0.002)


def test_what_may_go_beside_a_step():
    assert StepCosts().n_beside(1, 1, 1.2) == math.inf
    costs = learnt()
    n = costs.n_beside(8, 8, 1.2)
    assert costs.predict(8, 8 + int(n)) == pytest.approx(1.2 * costs.predict(8, 8), rel=0.05)
