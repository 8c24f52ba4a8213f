"""Chooses the attention body for a device and a model, by what is installed. Called once, by the engine.

Never choose by measuring at start-up: the same machine must come up with the same body.
"""
# ruff: noqa: A005 - nothing in this package wants the standard library's select

from collections.abc import Callable
from typing import Any

import torch

from gpuworker.attention.backend import AttentionBackend
from gpuworker.attention.cpu import CpuBackend
from gpuworker.attention.flash import find_flash_attn, find_torch_varlen
from gpuworker.attention.sdpa import SdpaBackend

Find = Callable[[], AttentionBackend[Any] | None]  # None where the body's library is missing
NAMES = ("cpu", "flash_attn", "sdpa")


def _finds(group_prefixes: bool) -> dict[str, list[Find]]:
    """By name, best first; each name's bodies best first."""
    return {
        "flash_attn": [find_flash_attn, find_torch_varlen],
        "cpu": [lambda: CpuBackend(group_prefixes)],
        "sdpa": [SdpaBackend],
    }


class AttentionUnavailable(ValueError):
    """The body asked for is not known, not installed, or not made for this device and model."""


def select_backend(
    name: str,
    device: torch.device | str,
    dtype: torch.dtype,
    head_dim: int,
    page_size: int | None = None,
    *,
    group_prefixes: bool = True,
) -> AttentionBackend[Any]:
    """The body called `name` ("cpu", "sdpa", "flash_attn"), or with "auto" the best one that can serve.

    Without a page_size the body's own is meant: read it from `caps.default_page_size`. "flash_attn" is the package
    where it is installed, else torch's own copy of it. `group_prefixes` is for the body that has such a choice (the
    CPU's). Raises AttentionUnavailable, naming what there is.
    """
    if name not in ("auto", *NAMES):
        raise AttentionUnavailable(f"no attention called {name!r}: use auto, {', '.join(NAMES)}")
    able: dict[str, AttentionBackend[Any]] = {}
    refusals: dict[str, str] = {}
    for candidate, finds in _finds(group_prefixes).items():
        found = [backend for find in finds if (backend := find()) is not None]
        refusals[candidate] = "not installed"
        for backend in found:
            caps = backend.caps
            size = caps.default_page_size if page_size is None else page_size
            refusal = caps.refusal(torch.device(device).type, dtype, head_dim, size)
            if refusal is None:
                able.setdefault(candidate, backend)
            else:
                refusals[candidate] = refusal
    if name in able:
        return able[name]
    if name == "auto" and able:
        return next(iter(able.values()))
    asked = "; ".join(f"{n}: {why}" for n, why in refusals.items()) if name == "auto" else refusals[name]
    raise AttentionUnavailable(
        f"attention {name!r} cannot serve here ({asked}): use {', '.join(able) or 'another dtype'}"
    )
