"""A few of what `make chaos` does by the hundred: workers are killed, stopped and drained under programs."""

import asyncio

import pytest

from tests.chaos.workers import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_programs_do_not_notice_what_becomes_of_workers():
    options = ["--backend", "null", "--step-time-us", "1000"]
    assert asyncio.run(run(n_kills=4, n_stops=1, n_drains=2, options=options, n_tokens=24, seed=3)) == 0
