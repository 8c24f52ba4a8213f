"""What the scheduler promises, in figures."""

import pytest

from tests.sim import scenarios


def test_jain():
    assert scenarios.jain([1.0, 1.0, 1.0, 1.0]) == 1.0
    assert scenarios.jain([1.0, 0.0, 0.0, 0.0]) == 0.25


def test_equal_programs_are_served_equally():
    figures = scenarios.fairness()
    assert figures.jain_service >= 0.95
    assert figures.jain_completion >= 0.95


def test_a_greedy_tenant_costs_a_modest_one_little():
    figures = scenarios.greedy_tenant()
    assert figures.beside_one_s <= 1.3 * figures.alone_s  # the rows of one step cost little
    assert figures.ratio <= 1.3


@pytest.mark.parametrize("host_share", [4.0, 1.5])
def test_agents_that_wait_for_tools_are_moved_and_not_computed_again(host_share):
    figures = scenarios.tool_waits(host_share=host_share)
    assert figures.same_results
    assert figures.recomputed_share <= 0.05


def test_nobody_waits_for_ever_for_pages():
    assert scenarios.exhaustion(range(20)).broken == []
