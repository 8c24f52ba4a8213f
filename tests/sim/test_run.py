"""A run is a function of its seed: the same messages at the same times, whatever the process it runs in."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from msgspec.structs import replace

from tests.sim import __main__ as cli
from tests.sim.plan import Fault, Options, draw
from tests.sim.run import play, simulate

HOUSE = Path(__file__).resolve().parents[2]
SEEDS = range(0, 60, 4)
DIGESTS = f"from tests.sim.test_run import digests; print(*digests({SEEDS}))"


def digests(seeds: range) -> list[str]:
    return [simulate(seed, Options()).digest for seed in seeds]


def test_the_same_seed_is_the_same_run():
    first = digests(SEEDS)
    assert digests(SEEDS) == first
    assert len(set(first)) == len(first)


def test_the_hash_seed_changes_nothing():
    def elsewhere(hash_seed: str) -> list[str]:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        out = subprocess.run(
            [sys.executable, "-c", DIGESTS], cwd=HOUSE, env=environment, capture_output=True, text=True
        )
        assert out.returncode == 0, out.stderr
        return out.stdout.split()

    here = digests(SEEDS)
    assert elsewhere("1") == here
    assert elsewhere("2") == here


def test_files_survive_workers_that_refuse_to_move_them():
    seen: Counter[str] = Counter()
    for seed in range(12):
        refusals = [Fault(at_s, "balk", seed) for at_s in (0.01, 0.4)]
        drains = [Fault(0.03 + 0.15 * i, "drain", seed + i) for i in range(4)]
        plan = draw(seed, Options(faults=(), pages="tight"))
        report = play(replace(plan, n_workers=2, faults=[*refusals, *drains], ends_s=1.0))
        assert report.broken == []
        seen.update(report.sometimes)
    assert seen["a worker refuses to send or to store pages"] > 5
    assert seen["counted: n_pages_migrated"] > 0


def test_files_in_main_memory_go_along_when_their_worker_drains():
    seen: Counter[str] = Counter()
    for seed in (4, 5, 7):
        drains = [Fault(0.05 + 0.1 * i, "drain", seed + i) for i in range(10)]
        plan = draw(seed, Options(faults=(), pages="4x"))
        starts = sorted(plan.starts * 4, key=lambda start: start.at_s)
        plan = replace(plan, n_workers=2, host_share=4.0, preemption_mode="swap", starts=starts, faults=drains)
        report = play(replace(plan, cost=replace(plan.cost, page_s=0.0001), ends_s=1.2))
        assert report.broken == []
        seen.update(report.sometimes)
    assert seen["pages in main memory are fetched"] > 3
    assert seen["counted: n_edits"] > 0
    assert seen["counted: n_edits_recomputed"] == 0


def test_a_story_changes_nothing():
    plain, told = simulate(3, Options()), simulate(3, Options(), keeps_story=True)
    assert told.digest == plain.digest
    assert plain.story == []
    assert any("kernel sends sim://0" in line for line in told.story)


def test_a_failure_says_how_to_see_it_again(monkeypatch, capsys):
    monkeypatch.setattr("tests.sim.checks.limits", lambda world: iter(["a limit is passed"]))
    options = ["--faults", "kill", "--pages", "ample"]
    assert cli.main(["--seed", "5", "--runs", "1", "--jobs", "1", *options]) == 1
    out = capsys.readouterr().out
    assert "a limit is passed" in out
    assert "python -m tests.sim --seed 5 --runs 1 --faults kill --pages ample" in out


def test_the_command_writes_a_story(tmp_path, capsys):
    assert cli.main(["--seed", "5", "--faults", "none", "--trace", str(tmp_path / "story")]) == 0
    assert "process 1 is" in (tmp_path / "story").read_text()
