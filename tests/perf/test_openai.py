"""Which workloads are run, where."""

import pytest

from perf.harness import Failed
from perf.openai import SMALL, choose
from perf.workloads import WORKLOADS


def test_all_without_a_choice():
    assert list(choose(WORKLOADS, "")) == list(WORKLOADS)


def test_a_number_means_its_variants():
    assert list(choose(WORKLOADS, "W2, W7")) == ["W2.c1", "W2.c4", "W2.c8", "W2.c16", "W7"]
    assert list(choose(WORKLOADS, "W2.c8")) == ["W2.c8"]


def test_an_unknown_one_is_refused():
    with pytest.raises(Failed, match=r"there is no workload 'W9'; there are W1, W2\.c1"):
        choose(WORKLOADS, "W1,W9")


def test_those_with_a_kernel_of_their_own_exist():
    assert set(SMALL) <= set(WORKLOADS)
