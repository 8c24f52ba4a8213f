"""From seconds to a tax."""

import pytest

from perf.tax import BARE, BATCHES, GENERATE, PRED, findings


def test_a_tax_is_what_a_token_takes_longer():
    spent = {}
    for b in BATCHES:
        spent |= {(BARE, b): [0.9, 1.0, 1.1], (GENERATE, b): [1.0, 1.1, 1.2], (PRED, b): [1.8, 2.0, 2.2]}
    found = findings(spent, n_tokens=99).figures
    assert found["bare engine, batch 1"].median == pytest.approx(10.0)  # 1 s over 100 steps
    assert found["pred loop, batch 1"].ratio == pytest.approx(2.0)
    assert found["tax of generate, batch 1"].median == pytest.approx(1e5 / 99, rel=1e-4)
    assert found["tax of generate, batch 8"].median == pytest.approx(1e5 / 99 / 8, rel=1e-4)
