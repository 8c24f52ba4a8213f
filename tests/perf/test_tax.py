"""From seconds to a tax."""

import pytest

from perf.tax import BARE, BATCHES, GENERATE, PRED, findings


def test_a_tax_is_what_a_step_takes_longer():
    """Turn by turn: a machine that slows down in the middle does so for all three."""
    spent = {}
    for b in BATCHES:
        spent |= {(BARE, b): [1.0, 1.1, 2.0], (GENERATE, b): [1.02, 1.122, 2.04], (PRED, b): [1.5, 1.65, 3.0]}
    found = findings(spent, n_tokens=99)
    assert found.figures["bare engine, batch 1"].median == pytest.approx(11.0)  # 1.1 s over 100 steps
    assert found.figures["generate over bare engine, batch 8"].median == pytest.approx(1.02)
    assert found.figures["pred loop over bare engine, batch 8"].median == pytest.approx(1.5)
    assert found.figures["tax of generate, batch 1"].median == pytest.approx(220)
    assert [f for f in found.failures if f.startswith("generate")] == []
    assert len([f for f in found.failures if f.startswith("pred loop takes 1.500 times")]) == len(BATCHES)
