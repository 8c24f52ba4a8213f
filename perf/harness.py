"""What every measurement hands back: figures with their spread, notes, and promises that were not kept.

A measurement is `def measure(quick: bool = False, ...) -> Findings` in a file of its own. It takes samples, and
nothing else: the command line, the machine's description, tables and files belong to `perf/__main__.py` and those
it calls. With `quick` it ends within seconds and shows only that it works. Never add a measurement here.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from perf.machine import Machine

IQR_FROM = 4  # samples; with fewer the quartiles say nothing, and the spread is the whole range
DIGITS = 6  # significant ones that are kept of a sample


class Failed(Exception):
    """The measurement could not be made; the text is one line."""


class Figure(Struct, frozen=True):
    """One quantity. `ratio` is its median over that of the figure named `against`."""

    unit: str
    median: float
    min: float
    max: float
    spread: float  # interquartile range, or the whole range of fewer than IQR_FROM samples
    n: int
    raw: list[float]
    against: str | None = None
    ratio: float | None = None


class Result(Struct, frozen=True):
    """One measurement, as it is printed and stored."""

    name: str
    question: str
    date: str  # ISO 8601, UTC
    commit: str
    machine: Machine
    command: str
    parameters: dict[str, Any]
    quick: bool  # a smoke test: its figures mean nothing
    elapsed_s: float
    foreign_cores: float  # CPU that processes other than ours took meanwhile, in cores; a server not started here, too
    figures: dict[str, Figure]
    ratios: dict[str, dict[str, float]] = {}  # figure -> peer -> how many times as fast we are
    notes: list[str] = []
    failures: list[str] = []


class Findings:
    """What a measurement has found so far."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}
        self.ratios: dict[str, dict[str, float]] = {}
        self.notes: list[str] = []
        self.failures: list[str] = []

    def add(self, name: str, unit: str, samples: Sequence[float] | float, *, against: str | None = None) -> float:
        """Keep a figure and return its median. `against` names an earlier one, which the ratio is taken to."""
        if name in self.figures:
            raise ValueError(f"there is a figure {name!r} already")
        found = figure(unit, [samples] if isinstance(samples, int | float) else samples)
        if against is not None:
            base = self.figures[against].median
            found = _with_ratio(found, against, found.median / base if base else None)
        self.figures[name] = found
        return found.median

    def note(self, text: str) -> None:
        """Something a reader of the figures must know."""
        self.notes.append(text)

    def expect(self, held: bool, promise: str) -> None:
        """A promise of ours that these figures keep or break; a broken one is an exit status of 1."""
        if not held:
            self.failures.append(promise)


def figure(unit: str, samples: Sequence[float]) -> Figure:
    """Median and spread of samples. Raises ValueError without any."""
    if not samples:
        raise ValueError("a figure needs a sample")
    raw = [float(f"{sample:.{DIGITS}g}") for sample in samples]
    return Figure(unit, statistics.median(raw), min(raw), max(raw), spread(raw), len(raw), raw)


def spread(raw: Sequence[float]) -> float:
    """Interquartile range, linearly interpolated; the whole range of fewer than IQR_FROM samples."""
    if len(raw) < IQR_FROM:
        return max(raw) - min(raw)
    low, _, high = statistics.quantiles(raw, n=4, method="inclusive")
    return high - low


def times(run: Callable[[], Any], n: int, n_warm: int = 1) -> list[float]:
    """Seconds of each of `n` runs, after `n_warm` that do not count."""
    for _ in range(n_warm):
        run()
    samples = []
    for _ in range(n):
        began = time.perf_counter()
        run()
        samples.append(time.perf_counter() - began)
    return samples


def _with_ratio(found: Figure, against: str, ratio: float | None) -> Figure:
    return Figure(found.unit, found.median, found.min, found.max, found.spread, found.n, found.raw, against, ratio)
