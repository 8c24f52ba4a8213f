"""A thousand runs with everything that can go wrong, and a thousand with a quarter of the pages that are wanted.

`make sim SEED=n RUNS=m` runs others; a failure prints the command that replays it.
"""

import pytest

from tests.sim import __main__ as cli
from tests.sim.sometimes import N_SEEDS_FOR_ALL


@pytest.mark.timeout(900)
def test_a_thousand_seeds(capsys):
    """No breach, no hang, every program ends as it does alone, and each rare path is taken."""
    status = cli.main(["--seed", "1", "--runs", str(N_SEEDS_FOR_ALL)])
    assert status == 0, capsys.readouterr().out


@pytest.mark.timeout(900)
def test_a_quarter_of_the_pages(capsys):
    """Nobody waits for ever."""
    status = cli.main(["--seed", "100000", "--runs", "200", "--pages", "4x", "--faults", "none"])
    assert status == 0, capsys.readouterr().out
