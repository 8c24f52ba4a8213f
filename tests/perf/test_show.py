"""Numbers for readers."""

import pytest

from perf.harness import figure
from perf.show import number, speedup


@pytest.mark.parametrize(
    ("x", "shown"),
    [(0.0, "0"), (12345.6, "12,346"), (999.94, "999.9"), (1.23456, "1.235"), (0.00001, "0.000010"), (-2.5, "-2.5")],
)
def test_four_digits_and_no_exponent(x, shown):
    assert number(x) == shown


def test_faster_depends_on_the_unit():
    assert speedup(figure("ms", [2.0]), 4.0) == 2.0
    assert speedup(figure("tok/s", [2.0]), 4.0) == 0.5
    assert speedup(figure("KiB", [2.0]), 4.0) is None
    assert speedup(figure("ms", [2.0]), 0.0) is None
