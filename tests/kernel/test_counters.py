"""Counters: those that do more than add."""

from kernel.counters import Counters
from kernel.latency import CallTimes
from sdk.abi.errors import NoSpace
from sdk.abi.values import FinishReason


def test_how_calls_end() -> None:
    counters, times = Counters(), CallTimes()
    counters.latencies.asked(times, 1.0)
    for why in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.LENGTH, None):
        counters.ended(times, why, 3.0, None)
    counters.ended(times, None, 3.0, NoSpace("no room"))
    assert (counters.n_stopped, counters.n_length, counters.n_preds, counters.n_failed) == (1, 2, 1, 1)
    assert (counters.latencies.whole.n, counters.latencies.whole.sum) == (4, 8.0)


def test_a_batch() -> None:
    counters = Counters()
    counters.computed(3, 40, 0.02, 1.0)
    counters.computed(1, 1, 0.01, 2.0)
    assert (counters.batch_rows.n, counters.batch_rows.sum) == (2, 4)
    assert (counters.batch_tokens.n, counters.batch_tokens.sum) == (2, 41)
    assert (counters.step_s.n, counters.step_s.sum) == (2, 0.03)
