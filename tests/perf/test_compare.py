"""Peers and stored results."""

from pathlib import Path

import msgspec
import pytest

from perf import compare
from perf.compare import NoResults, Peer, Peers
from perf.harness import Figure, Result, figure
from perf.machine import Machine
from perf.workloads import UNITS, WORKLOADS

HERE = Machine(cpu="A", n_cores=2, memory_gib=8.0, flags=["avx2"])
THERE = Machine(cpu="B", n_cores=2, memory_gib=8.0, flags=[])
FIGURES = {
    "W1 tpot": figure("ms", [10.0]),
    "W1 throughput": figure("tok/s", [30.0]),
    "cached": figure("of prompt", [1.0]),
}


def peers(machine: Machine = THERE) -> Peers:
    theirs = {"W1 tpot": 20.0, "W1 throughput": 60.0, "cached": 0.5, "W9": 1.0}
    return Peers(machine, "2026-01-02", "a client", {"other": Peer("1.0", "--fast", "2026-01-02", theirs, "it cheats")})


def result(
    figures: dict[str, Figure] = FIGURES, quick: bool = False, date: str = "2026-02-03T00:00:00+00:00"
) -> Result:
    return Result("openai", "Who?", date, "abc", HERE, "python -m perf openai", {}, quick, 1.0, 0.0, figures)


def store(path: Path, *results: Result) -> Path:
    path.write_bytes(msgspec.json.encode(results))
    return path


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of results with the peers in it."""
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    monkeypatch.setattr(compare, "PEERS", tmp_path / "peers.json")
    monkeypatch.setattr(compare.load_peers, "__defaults__", (tmp_path / "peers.json",))
    (tmp_path / "peers.json").write_bytes(msgspec.json.encode(peers()))
    return tmp_path


def test_a_ratio_says_how_many_times_as_fast_we_are():
    assert compare.ratios(FIGURES, peers()) == {"W1 tpot": {"other": 2.0}, "W1 throughput": {"other": 0.5}}


def test_another_machine_is_called_so():
    assert "ANOTHER MACHINE (2 x B" in compare.caveat(peers(), HERE)
    assert "ANOTHER" not in compare.caveat(peers(HERE), HERE)


def test_the_peers_that_are_kept_speak_of_our_workloads():
    kept = compare.load_peers()
    assert kept is not None
    names = {f"{workload} {value}" for workload in (*WORKLOADS, "W4.off") for value in UNITS}
    for peer in kept.peers.values():
        assert peer.figures.keys() <= names
        assert all(value >= 0 for value in peer.figures.values())
    assert "no AMX" in kept.machine.system


def test_the_newest_result_is_shown_against_the_peers(stored):
    store(stored / "old.json", result({"W1 tpot": figure("ms", [5.0])}, date="2026-01-01T00:00:00+00:00"))
    store(stored / "new.json", result())
    shown = compare.table([])
    assert "| W1 tpot | ms | 10 | 0 | 20 (2.00x) |" in shown
    assert "| W1 throughput | tok/s | 30 | 0 | 60 (0.50x) |" in shown
    assert "| cached | of prompt | 1 | 0 | 0.5 |" in shown
    assert "ANOTHER MACHINE" in shown
    assert "note: other: it cheats" in shown


def test_a_smoke_test_is_compared_with_nobody(stored):
    shown = compare.table([store(stored / "a.json", result(quick=True))])
    assert "other" not in shown
    assert "not a measurement" in shown


def test_one_file_against_another(stored):
    ours = store(stored / "ours.json", result())
    theirs = store(stored / "theirs.json", result({"W1 tpot": figure("ms", [40.0])}))
    assert "| unit | median | spread | theirs | other |" in compare.table([ours, theirs])
    assert "40 (4.00x)" in compare.table([ours, theirs])


def test_without_results(stored):
    with pytest.raises(NoResults, match="no results are stored: run"):
        compare.table([])
    with pytest.raises(NoResults, match="holds no results"):
        compare.table([store(stored / "empty.json")])
    (stored / "broken.json").write_text("{")
    with pytest.raises(NoResults, match="is not what"):
        compare.table([stored / "broken.json"])
