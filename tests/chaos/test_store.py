"""A few of what `make chaos-store` does by the thousand: processes are killed while they save files."""

import random

import pytest

from tests.chaos.store import Saver, kill_store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_a_killed_store_loses_nothing(tmp_path):
    dice = random.Random(1)
    assert sum(kill_store(seed, tmp_path / "store", dice) for seed in range(20)) > 20


def test_a_killed_kernel_loses_nothing(tmp_path):
    saver, dice = Saver(tmp_path), random.Random(1)
    try:
        saver.worker.wait_for("ready", 30)
        assert sum(saver.kill(seed, dice) for seed in range(3)) > 3
    finally:
        saver.worker.end(9)
