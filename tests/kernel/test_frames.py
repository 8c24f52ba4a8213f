"""Whose code a frame runs, told from its file."""

import asyncio.base_events
import json
import queue
from pathlib import Path

import msgspec
import pytest

from kernel import stepper
from kernel.frames import Kind, kind
from programs import chat
from sdk import kv
from sdk.abi import trap


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (stepper, Kind.KERNEL),
        (trap, Kind.KERNEL),
        (kv, Kind.OWN),
        (chat, Kind.OWN),
        (queue, Kind.LIBRARY),
        (json, Kind.LIBRARY),
        (msgspec, Kind.LIBRARY),
        (asyncio.base_events, Kind.LOOP),
    ],
)
def test_modules(module, expected):
    assert kind(module.__file__) is expected


def test_a_file_of_a_user(tmp_path: Path):
    assert kind(str(tmp_path / "kernel" / "mine.py")) is Kind.OWN


def test_code_without_a_file():
    assert kind("<string>") is Kind.LIBRARY
