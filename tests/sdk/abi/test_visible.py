"""Runs against their definition: Python's own slices of the tokens up to the one that attends."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.abi import visible
from sdk.abi.visible import MAX_RUNS, Runs, VisibleRuns, fault, hides, intervals, spanned

INDEX = st.integers(-12, 12)
RUNS = st.lists(st.tuples(INDEX, st.one_of(st.none(), INDEX)), max_size=5)


def seen(runs: Runs, n: int) -> set[int]:
    """What token n - 1 sees, by definition."""
    return {n - 1}.union(*(range(n)[start:stop] for start, stop in runs)) if runs else set(range(n))


def members(found: list[tuple[int, int]]) -> list[int]:
    return [i for start, stop in found for i in range(start, stop)]


@given(RUNS, st.integers(1, 20))
def test_intervals(runs, n):
    found = intervals(runs, n)
    assert members(found) == sorted(seen(runs, n))
    assert all(one[1] < other[0] for one, other in pairwise(found)), "as few as can be"


@given(RUNS, st.integers(0, 20), st.integers(1, 10))
def test_whether_anything_is_hidden(runs, n_before, n_new):
    counts = range(n_before + 1, n_before + n_new + 1)
    assert hides(runs, n_before, n_new) == any(seen(runs, n) != set(range(n)) for n in counts)


@given(RUNS, st.integers(0, 20), st.integers(1, 10))
def test_what_some_token_sees_is_spanned(runs, n_before, n_new):
    everything = set().union(*(seen(runs, n) for n in range(n_before + 1, n_before + n_new + 1)))
    found = members(spanned(runs, n_before, n_new))
    assert everything <= set(found)
    assert found == sorted(set(found))
    assert found[-1] == n_before + n_new - 1


def test_a_window_spans_little():
    assert spanned([(0, 4), (-256, None)], 8000, 10) == [(0, 4), (7745, 8010)]


def test_a_prompt_that_is_too_long_to_look_at_counts_as_masked(monkeypatch):
    runs = [(0, -1), (-1, None)]  # hides nothing, in a way that has to be looked at
    assert not hides(runs, 0, 20)
    monkeypatch.setattr(visible, "N_LOOKED_AT", 39)
    assert hides(runs, 0, 20)
    assert not hides([(0, 4), (-20, None)], 0, 20), "a window that holds all of it is simply seen"


@pytest.mark.parametrize("run", [(3, 3), (5, 2), (-2, -2), (-2, -5), (0, 0)])
def test_an_empty_run_is_a_mistake(run):
    said = fault([(0, 4), run])
    assert said is not None
    assert str(run) in said


@pytest.mark.parametrize("runs", [[], [(0, 4), (-256, None)], [(3, -1)], [(-3, 9)], [(7, None)], [(-5, -1)]])
def test_runs_that_may_see_something_are_none(runs):
    assert fault(runs) is None


@pytest.mark.parametrize("wrong", [[[0, 4]] * (MAX_RUNS + 1), [[0]], [["a", 1]], [[0, 2**31]], [[-(2**31) - 1, None]]])
def test_what_no_call_takes(wrong):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, VisibleRuns)
    assert msgspec.convert([[0, 4], [-256, None]], VisibleRuns) == [(0, 4), (-256, None)]
