"""`perf rag`: what its servers do in virtual time, where every figure is exact."""

import random

import pytest
from msgspec.structs import replace

from perf.harness import Findings
from perf.rag import QUICK, SERVERS, Outcome, Plan, compare, draw, measure, simulate

SMALL = replace(QUICK, n_documents=20, n_document=600, n_warm=60, n_requests=30, rate=1000.0)


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, float], Outcome]:
    return {(server, index): simulate(SMALL, server, index, 1) for index in SMALL.indices for server in SERVERS}


def test_each_server_keeps_what_it_says(outcomes: dict[tuple[str, float], Outcome]) -> None:
    for index in SMALL.indices:
        none, lru, pin, swap = (outcomes[server, index] for server in SERVERS)
        assert none.hit_rate == 0.0
        assert 0.0 < lru.hit_rate <= pin.hit_rate < swap.hit_rate
        assert none.throughput < pin.throughput
        assert none.latency_ms > pin.latency_ms > 0.0
    for server in SERVERS[1:]:
        weak, strong = (outcomes[server, index] for index in SMALL.indices)
        assert weak.hit_rate < strong.hit_rate or server == "swap"


def test_a_run_can_be_repeated(outcomes: dict[tuple[str, float], Outcome]) -> None:
    assert simulate(SMALL, "pin", 0.5, 1) == outcomes["pin", 0.5]
    assert simulate(SMALL, "pin", 0.5, 2) != outcomes["pin", 0.5]


def test_what_is_said_of_it(outcomes: dict[tuple[str, float], Outcome]) -> None:
    found = Findings()
    compare(found, SMALL, outcomes)
    assert [note.split(":")[0] for note in found.notes] == ["throughput of pin", "throughput of swap"]
    worse = {key: Outcome(1.0, 1.0, 0.0) for key in outcomes}
    compare(found := Findings(), SMALL, worse)
    assert found.notes[0].endswith("no better than lru at 2.0, 0.5")


def test_popularity_is_paretos() -> None:
    """The rank of a document decides how often it is asked about, and a smaller index makes the first ones likelier."""
    plan = Plan(n_documents=100)

    def share(index: float) -> float:
        asked = draw(random.Random(3), plan, index, 20_000)
        return sum(int(request.document) < 20 for request in asked) / len(asked)

    weights = [(rank + 1) ** (-1 / 1.16) for rank in range(100)]
    assert share(1.16) == pytest.approx(sum(weights[:20]) / sum(weights), abs=0.02)
    assert share(4.0) < share(1.16) < share(0.5)


def test_requests_arrive_as_poisson_has_it() -> None:
    gaps = [request.gap_s for request in draw(random.Random(3), Plan(rate=10.0), 1.0, 5000)]
    assert sum(gaps) / len(gaps) == pytest.approx(0.1, rel=0.05)
    assert sum(gap > 0.1 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


def test_it_measures() -> None:
    found = measure(quick=True, simulated=True, indices="0.5")
    assert set(found.figures) == {
        f"{server} at 0.5: {name}" for server in SERVERS for name in ("latency", "throughput", "hit rate")
    }
