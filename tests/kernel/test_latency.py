"""Latencies against a plain list of what each call went through."""

from hypothesis import given
from hypothesis import strategies as st

from kernel.histogram import BETWEEN_TOKENS_S, FIRST_TOKEN_S, Histogram
from kernel.latency import CallTimes, Latencies


def test_a_call_from_submission_to_end() -> None:
    latencies, times = Latencies(), CallTimes()
    latencies.asked(times, 10.0)
    latencies.began(times, 10.5)
    for now in (12.0, 12.25, 12.5):
        latencies.drew(times, now)
        latencies.batch_over(now)
    latencies.ended(times, 13.0)
    assert (latencies.queue.n, latencies.queue.sum) == (1, 0.5)
    assert (latencies.first_token.n, latencies.first_token.sum) == (1, 2.0)
    assert (latencies.between_tokens.n, latencies.between_tokens.sum) == (2, 0.5)
    assert (latencies.whole.n, latencies.whole.sum) == (1, 3.0)


def test_a_call_that_goes_on_elsewhere_has_waited_since_the_beginning() -> None:
    latencies, times = Latencies(), CallTimes()
    latencies.asked(times, 1.0)
    latencies.asked(times, 2.0)
    latencies.began(times, 3.0)
    assert latencies.queue.sum == 2.0


batches = st.lists(st.tuples(st.integers(1, 64), st.sets(st.integers(0, 5))))


@given(batches)
def test_rows_are_told_together_and_counted_one_by_one(batches) -> None:
    """Batches of any two workers, at times that are eighths of a second, so that sums are exact."""
    latencies, calls = Latencies(), [CallTimes() for _ in range(6)]
    first, between = Histogram(FIRST_TOKEN_S), Histogram(BETWEEN_TOKENS_S)
    drew: dict[int, float] = {}
    for times in calls:
        latencies.asked(times, 0.0)
    now = 0.0
    for eighths, rows in batches:
        now += eighths / 8
        for i in rows:
            latencies.drew(calls[i], now)
            if i in drew:
                between.add(now - drew[i])
            else:
                first.add(now)
            drew[i] = now
        latencies.batch_over(now)
    assert (latencies.first_token.counts, latencies.first_token.sum) == (first.counts, first.sum)
    assert (latencies.between_tokens.counts, latencies.between_tokens.sum) == (between.counts, between.sum)
