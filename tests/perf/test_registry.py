"""Measurements are found by looking at files, and described without running them."""

import inspect
import subprocess
import sys

import pytest

from perf.harness import Findings
from perf.registry import HERE, defaults, load, measurements

NAMES = [
    "decode",
    "durable",
    "gather",
    "guard",
    "kernel",
    "openai",
    "policies",
    "rag",
    "roofline",
    "start",
    "tax",
    "tenants",
]


def test_all_measurements_are_found():
    assert list(measurements()) == NAMES


def test_listing_imports_none_of_them():
    code = "import sys; from perf.registry import measurements; measurements(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", NAMES)
def test_each_asks_a_question_and_has_a_quick_mode(name):
    found, measure = measurements()[name], load(name)
    assert "?" in found.question
    parameters = inspect.signature(measure).parameters
    assert parameters["quick"].default is False
    assert inspect.signature(measure).return_annotation is Findings
    assert list(defaults(measure)) == found.options
