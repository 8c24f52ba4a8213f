"""The cost model: each part counts as often as it should."""

import pytest

from gpuworker.stepcost import StepCost
from gpuworker.wire import Row

PRIMES = StepCost(step_s=0.001, row_s=0.1, token_s=10.0, context_s=1000.0)


def test_each_part_counts() -> None:
    assert PRIMES.cost(n_rows=2, n_tokens=3, n_context=5) == pytest.approx(5030.201)
    assert StepCost().cost(2, 3, 5) == 0.0


def test_a_step_without_rows_is_free() -> None:
    assert PRIMES.cost(0, 0, 0) == 0.0
    assert PRIMES.of([]) == 0.0


def test_rows_are_counted() -> None:
    rows = [Row(1, n_before=40, n_new=1, n_pages=3), Row(2, n_before=0, n_new=16, n_pages=1)]
    assert PRIMES.of(rows) == PRIMES.cost(n_rows=2, n_tokens=17, n_context=57)


def test_a_row_that_asks_its_tail_reads_no_keys() -> None:
    assert PRIMES.of([Row(1, n_before=40, n_new=0, n_pages=3)]) == PRIMES.cost(1, 0, 0)
