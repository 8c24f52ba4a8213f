"""A histogram with fixed bounds: what a distribution costs when it is fed on the hot path. Pure.

Kept in `kernel/counters.py`, fed by whoever sees the values, read by `kernel/metrics.py`, which gives it Prometheus'
form. Never add quantiles here: whoever scrapes works them out, over any span of time and many kernels.
"""

from bisect import bisect_left
from collections.abc import Sequence

# Upper bounds, each included in its bucket, as Prometheus has it. Those of latencies are vLLM's.
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
BETWEEN_TOKENS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
PROGRAM_S = REQUEST_S
STEP_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
KERNEL_S = (20e-6, 50e-6, 100e-6, 150e-6, 200e-6, 400e-6, 800e-6, 1.5e-3, 3e-3, 6e-3, 12e-3, 50e-3)


class Histogram:
    """How often a value fell between two bounds, and the sum of all values."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` ascend; a last bucket without one is added."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, n: int = 1) -> None:
        """A value was seen, `n` times."""
        self.counts[bisect_left(self.bounds, value)] += n
        self.sum += value * n

    @property
    def n(self) -> int:
        """Values seen."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """(upper bound as text, values up to it) for each bucket, the last one `+Inf`: Prometheus' form."""
        found, total = [], 0
        for bound, count in zip([*map(float, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            found.append((str(bound), total))
        return found
