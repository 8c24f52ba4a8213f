"""When batches leave."""

import math

import pytest

from kernel.pacing import AHEAD_S, PATIENCE_S, POLICIES, Pace, firing


def test_an_idle_worker_is_fed_at_once_by_default():
    policy = firing("eager", 16, 0.01)
    assert not policy.waits
    assert policy.at(1, 5.0, 0.02) == -math.inf


@pytest.mark.parametrize(("name", "few"), [("k", 5.0 + PATIENCE_S), ("t", 5.01), ("k-or-t", 5.01)])
def test_timed_policies(name, few):
    policy = firing(name, 4, 0.01)
    assert policy.at(3, 5.0, 0.02) == pytest.approx(few)
    assert (policy.at(4, 5.0, 0.02) == -math.inf) == (name != "t")


def test_adaptive_waits_for_what_a_step_brings():
    policy = firing("adaptive", 0, 0.0)
    assert policy.at(1, 0.0, 0.02) == -math.inf, "nothing is known of arrivals: nobody is waited for"
    for i in range(50):
        policy.arrived(i * 0.005)
    assert policy.at(3, 1.0, 0.02) == pytest.approx(1.02)
    assert policy.at(5, 1.0, 0.02) == -math.inf, "a step brings four"


def test_nobody_waits_for_longer_than_patience():
    for name in POLICIES:
        policy = firing(name, 1000, 1000.0)
        policy.arrived(0.0)
        policy.arrived(100.0)
        assert policy.at(1, 7.0, 1000.0) <= 7.0 + PATIENCE_S


def test_unknown_policies_are_refused():
    with pytest.raises(KeyError):
        firing("soon", 1, 1.0)


def test_the_next_batch_leaves_shortly_before_the_running_one_ends():
    pace = Pace()
    assert pace.ahead_at(1.0, 0.1) == pytest.approx(1.08)
    assert pace.ahead_at(1.0, 0.01) == pytest.approx(1.01 - AHEAD_S)


def test_ahead_pays_unless_many_rows_wait_for_their_programs():
    pace = Pace()
    assert pace.worth_ahead(16, 0, 0.02)
    assert pace.worth_ahead(256, 1, 0.02), "one row does not stall the others"
    assert not pace.worth_ahead(16, 8, 0.02)
    assert pace.worth_ahead(16, 16, 0.0001), "a step shorter than the gap is not worth waiting for"


def test_the_gap_is_measured():
    pace = Pace()
    for i in range(100):
        pace.done(float(i), idle=True, more=True)
        pace.sent(i + 0.004)
    assert pace.gap_s == pytest.approx(0.004, rel=0.01)
    for i in range(100):
        pace.done(float(i), idle=False, more=True)
        pace.sent(i + 0.5)
    assert pace.gap_s == pytest.approx(0.004, rel=0.01), "with a batch ahead there is none"
