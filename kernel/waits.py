"""How long programs wait for what is not the model: calls that are parked, and what such waits took before. Pure.

A wait for a tool, a message or a person says nothing about its end, but the last ones of its kind do. A *kind* is
a program's name with what it waits for: a system call, or the line of a plain `await` (an HTTP request, a
subprocess). Of each kind an average is kept that follows the newest; of a sleep the end is known.

Who asks is `kernel/eviction.py`, whose pages to move: those of whoever is away longest. Never add here what it does.
"""

from collections.abc import Callable

from msgspec import Struct

# Whose ends the kernel itself brings about.
MODEL_CALLS = frozenset({"pred", "generate", "read", "extract", "merge", "splice"})
LONG_S = 0.02  # a shorter wait is over before anything could be done about it
FADE = 0.25  # weight of the newest wait
N_KINDS = 4096  # remembered


class Wait(Struct, eq=False):
    """A parked call."""

    call: str
    undo: Callable[[], None]  # runs if the caller goes away
    about: str | Callable[[], str]  # its object, or how to spell it
    since: float
    until: float | None = None  # it is over then, at the latest

    def __str__(self) -> str:
        about = self.about if isinstance(self.about, str) else self.about()
        return f"{self.call} {about}" if about else self.call


class History:
    """What waits took."""

    def __init__(self) -> None:
        self._mean_s: dict[tuple[str, str], float] = {}  # the kind that was met last comes last

    def learn(self, program: str, kind: str, seconds: float) -> None:
        """A wait is over. Those too short to matter are not remembered."""
        if seconds < LONG_S:
            return
        mean = self._mean_s.pop((program, kind), seconds)
        self._mean_s[program, kind] = mean + FADE * (seconds - mean)
        if len(self._mean_s) > N_KINDS:
            del self._mean_s[next(iter(self._mean_s))]

    def ends_at(self, program: str, kind: str, since: float, now: float) -> float:
        """When a wait of that kind should be over. One of which nothing is known, or that takes longer than it used
        to, is expected to take as long again as it has (InferCept: Abhyankar et al., ICML 2024)."""
        mean = self._mean_s.get((program, kind), 0.0)
        return since + mean if now - since < mean else now + (now - since)

    def returns_at(self, program: str, wait: Wait, now: float) -> float:
        """When a parked call should be answered."""
        if wait.call == "sleep" and wait.until is not None:
            return wait.until
        at = self.ends_at(program, wait.call, wait.since, now)
        return at if wait.until is None else min(at, wait.until)
