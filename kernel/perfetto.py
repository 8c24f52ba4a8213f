"""A timeline in the Chrome trace event format, as ui.perfetto.dev and chrome://tracing open it. Pure.

The newest `n_events_max` events are kept. All that lasts is written as one complete event when it is over, so what
is lost at the old end tears nothing that is left. Slices of one lane must follow each other or nest, or the viewers
draw them wrongly: `free_lane` finds a lane for what may overlap. Times come in as seconds of any monotonic clock and
leave as whole microseconds since the timeline began: two slices that meet in one instant do so in the file as well.

Fed by `kernel/tracing.py`. Never add here what any of it means.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

N_EVENTS_MAX = 200_000  # some 60 MB here, and 30 MB in the file
CHUNK_EVENTS = 1000  # encoded at a time: a few milliseconds

_encode = msgspec.json.Encoder().encode


class Event(Struct, frozen=True, omit_defaults=True, gc=False):
    """One event; the names are the format's. `ph` tells the kind: X complete, C counter, s and f flow, M metadata."""

    ph: str
    name: str
    pid: int
    tid: int
    ts: int | UnsetType = UNSET  # microseconds
    dur: int | UnsetType = UNSET
    args: dict[str, Any] = {}
    id: int | UnsetType = UNSET
    cat: str = ""
    bp: str = ""


class Timeline:
    """What happened, on lanes (`tid`) of groups (`pid`)."""

    def __init__(self, began: float, n_events_max: int = N_EVENTS_MAX) -> None:
        self.began = began
        self.n_lost = 0  # events that had to go for newer ones
        self._events: deque[Event] = deque(maxlen=n_events_max)
        self._names: dict[tuple[int, int, str], Event] = {}  # never lost: there are few
        self._n_flows = 0
        self._counters: dict[tuple[int, str], float] = {}
        self._lane_ends: dict[tuple[int, int], list[int]] = {}  # by group and first lane

    def name_group(self, pid: int, name: str, order: int) -> None:
        """Name a group of lanes; `order` is its place from the top."""
        self._name(pid, 0, "process_name", {"name": name})
        self._name(pid, 0, "process_sort_index", {"sort_index": order})

    def name_lane(self, pid: int, tid: int, name: str) -> None:
        """Name a lane. Lanes are shown in the order of their numbers."""
        self._name(pid, tid, "thread_name", {"name": name})
        self._name(pid, tid, "thread_sort_index", {"sort_index": tid})

    def _name(self, pid: int, tid: int, kind: str, args: dict[str, Any]) -> None:
        if (pid, tid, kind) not in self._names:
            self._names[pid, tid, kind] = Event("M", kind, pid, tid, args=args)

    def slice(
        self, pid: int, tid: int, name: str, began: float, ended: float, args: dict[str, Any] | None = None
    ) -> None:
        """Something lasted. What lasted no microsecond is left out."""
        ts, end = self._us(began), self._us(ended)
        if end > ts:
            self._add(Event("X", name, pid, tid, ts, end - ts, args or {}))

    def count(self, pid: int, name: str, unit: str, now: float, value: float) -> None:
        """A number has this value from now on; one that has not changed costs nothing."""
        if self._counters.get((pid, name)) != value:
            self._counters[pid, name] = value
            self._add(Event("C", name, pid, 0, self._us(now), args={unit: value}))

    def arrow(self, name: str, source: tuple[int, int, float], target: tuple[int, int, float]) -> None:
        """An arrow between the slices that are on (group, lane) at a time, the target's no earlier."""
        self._n_flows += 1
        for ph, (pid, tid, at), bp in (("s", source, ""), ("f", target, "e")):
            self._add(Event(ph, name, pid, tid, self._us(at), id=self._n_flows, cat="flow", bp=bp))

    def free_lane(self, pid: int, first: int, began: float, ended: float) -> int:
        """A lane from `first` on that is free for so long; slices are to be asked for in the order of their ends."""
        ends = self._lane_ends.setdefault((pid, first), [])
        ts, end = self._us(began), self._us(ended)
        for i, before in enumerate(ends):
            if before <= ts:
                ends[i] = end
                return first + i
        ends.append(end)
        return first + len(ends) - 1

    def _us(self, at: float) -> int:
        return max(0, round((at - self.began) * 1e6))

    def _add(self, event: Event) -> None:
        self.n_lost += len(self._events) == self._events.maxlen
        self._events.append(event)

    def encoded(self) -> Iterator[bytes]:
        """The file, piece by piece, so that whoever sends it can do something else in between."""
        yield b'{"displayTimeUnit":"ms","otherData":' + _encode({"n_lost_events": self.n_lost}) + b',"traceEvents":[\n'
        separator = b""
        events = [*self._names.values(), *self._events]
        for i in range(0, len(events), CHUNK_EVENTS):
            yield separator + b",\n".join(_encode(e) for e in events[i : i + CHUNK_EVENTS])
            separator = b",\n"
        yield b"\n]}\n"
