"""Visible ranges: which tokens of its file a new token attends to. What the runs of `pred` and `generate` mean. Pure.

A run is (start, stop) in token indices with the semantics of a Python slice of the tokens up to the one that attends,
itself included: negative numbers count from it, and a stop of None is there. A token sees the union of the runs, and
always itself, and never what comes after it. No runs at all: everything before. So `[(0, 4), (-256, None)]` is four
attention sinks and a sliding window (Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023).

Called by the kernel, which has to know whether anything is hidden, and by the workers. Never add positions here: runs
are about indices alone.
"""

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from msgspec import Meta

MAX_RUNS = 64  # of one call
ITSELF = ((-1, None),)  # what a token sees where a program names no run
N_LOOKED_AT = 4096  # runs times tokens that `hides` looks at one by one

Index: TypeAlias = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Run: TypeAlias = tuple[Index, Index | None]
Runs: TypeAlias = Sequence[tuple[int, int | None]]
VisibleRuns: TypeAlias = Annotated[list[Run], Meta(max_length=MAX_RUNS)]  # as a call has them


def intervals(runs: Runs, n: int) -> list[tuple[int, int]]:
    """What token n - 1 sees of the tokens 0 … n - 1: ascending, disjoint and not empty, the last ending at n."""
    if not runs:
        return [(0, n)]
    found = sorted([slice(start, stop).indices(n)[:2] for start, stop in runs])
    seen: list[tuple[int, int]] = []
    for start, stop in [*found, (n - 1, n)]:
        if start >= stop:
            continue
        if seen and start <= seen[-1][1]:
            seen[-1] = seen[-1][0], max(stop, seen[-1][1])
        else:
            seen.append((start, stop))
    return seen


def spanned(runs: Runs, n_before: int, n_new: int) -> list[tuple[int, int]]:
    """Intervals, as above, with all that any of the tokens n_before … n_before + n_new - 1 sees, and perhaps more."""
    if not runs:
        return [(0, n_before + n_new)]
    first, last = n_before + 1, n_before + n_new
    # The ends of a run do not fall as n grows, so it never leaves what lies between its first start and last stop.
    ends = [(slice(*run).indices(first)[0], slice(*run).indices(last)[1]) for run in runs]
    return intervals([*ends, (n_before, last)], last)


def hides(runs: Runs, n_before: int, n_new: int) -> bool:
    """Whether one of the tokens n_before … n_before + n_new - 1 does not see all that is before it.

    Of a long prompt with many runs it may be true where it need not be: nothing depends on that but costs."""
    last = n_before + n_new
    if not runs or any(stop is None and (start == 0 or start <= -last) for start, stop in runs):
        return False
    if n_new * len(runs) > N_LOOKED_AT:
        return True
    return any(intervals(runs, n) != [(0, n)] for n in range(last, n_before, -1))


def fault(runs: Runs) -> str | None:
    """What is wrong with runs that a program has given, or None. An empty run is always a mistake."""
    for start, stop in runs:
        if stop is not None and (start < 0) == (stop < 0) and stop <= start:
            return f"the visible run ({start}, {stop}) is empty: it must end after it starts"
    return None
