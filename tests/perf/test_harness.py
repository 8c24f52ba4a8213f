"""Medians, spreads and ratios."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.harness import Findings, figure, times

samples = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30)


def test_a_figure_of_few_samples_spreads_over_their_range():
    f = figure("ms", [3.0, 1.0, 2.0])
    assert (f.median, f.min, f.max, f.spread, f.n, f.raw) == (2.0, 1.0, 3.0, 2.0, 3, [3.0, 1.0, 2.0])


def test_from_four_samples_on_it_is_the_interquartile_range():
    assert figure("ms", [1.0, 2.0, 3.0, 4.0, 1000.0]).spread == 2.0


@given(samples)
def test_the_numbers_of_a_figure_hold_together(raw):
    f = figure("ms", raw)
    assert f.min <= f.median <= f.max
    assert 0 <= f.spread <= f.max - f.min
    assert f.n == len(f.raw) == len(raw)


def test_nothing_is_no_figure():
    with pytest.raises(ValueError, match="needs a sample"):
        figure("ms", [])


def test_a_ratio_is_of_medians():
    found = Findings()
    assert found.add("floor", "ms", 4.0) == 4.0
    found.add("step", "ms", [5.0, 6.0, 100.0], against="floor")
    assert (found.figures["step"].ratio, found.figures["step"].against) == (1.5, "floor")


def test_a_name_is_taken_once():
    found = Findings()
    found.add("a", "s", 1.0)
    with pytest.raises(ValueError, match="already"):
        found.add("a", "s", 2.0)


def test_a_broken_promise_is_kept():
    found = Findings()
    found.expect(True, "kept")
    found.expect(False, "broken")
    assert found.failures == ["broken"]


def test_times_leaves_the_warm_up_out():
    calls = []
    assert len(times(lambda: calls.append(1), 3, n_warm=2)) == 3
    assert len(calls) == 5
