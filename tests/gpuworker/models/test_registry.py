"""Architectures are found by name, and the error for others lists them."""

import pytest

from gpuworker.models.config import ConfigError
from gpuworker.models.llama import Llama
from gpuworker.models.registry import ARCHITECTURES, model_class


def test_every_entry_is_a_class() -> None:
    assert all(isinstance(model_class(name), type) for name in ARCHITECTURES)
    assert model_class("llama") is Llama


def test_unknown_names_are_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'mamba' is not supported \(known: llama\)"):
        model_class("mamba")
