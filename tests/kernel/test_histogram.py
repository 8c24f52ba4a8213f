"""The histogram against a plain list of values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import histogram
from kernel.histogram import Histogram

ALL = ("ROWS", "TOKENS", "FIRST_TOKEN_S", "BETWEEN_TOKENS_S", "REQUEST_S", "STEP_S", "KERNEL_S")
values = st.lists(st.tuples(st.floats(0, 100, allow_nan=False), st.integers(1, 5)))


@given(values, st.lists(st.integers(0, 100), min_size=1, max_size=8, unique=True).map(sorted))
def test_buckets_hold_what_a_list_would_tell(seen, bounds) -> None:
    h = Histogram(bounds)
    plain = []
    for value, n in seen:
        h.add(value, n)
        plain += [value] * n
    assert h.n == len(plain)
    assert h.sum == pytest.approx(sum(plain))
    assert h.cumulative() == [(str(float(b)), sum(v <= b for v in plain)) for b in bounds] + [("+Inf", len(plain))]


@pytest.mark.parametrize("name", ALL)
def test_bounds_ascend(name) -> None:
    bounds = getattr(histogram, name)
    assert list(bounds) == sorted(set(bounds))
