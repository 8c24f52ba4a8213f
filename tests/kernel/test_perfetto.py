"""The file as a viewer reads it."""

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kernel.perfetto import CHUNK_EVENTS, Timeline


def read(timeline: Timeline) -> dict:
    return json.loads(b"".join(timeline.encoded()))


def test_a_slice_is_in_microseconds_since_the_beginning() -> None:
    timeline = Timeline(100.0)
    timeline.slice(7, 1, "running", 100.001, 100.0035, {"steps": 2})
    assert read(timeline)["traceEvents"] == [
        {"ph": "X", "name": "running", "pid": 7, "tid": 1, "ts": 1000, "dur": 2500, "args": {"steps": 2}}
    ]


def test_what_was_before_the_beginning_is_cut_off() -> None:
    timeline = Timeline(100.0)
    timeline.slice(7, 1, "old", 99.0, 99.5)
    timeline.slice(7, 1, "half", 99.0, 101.0)
    assert [(e["ts"], e["dur"]) for e in read(timeline)["traceEvents"]] == [(0, 1_000_000)]


def test_slices_that_meet_do_so_in_the_file() -> None:
    """However the seconds are rounded: a slice that begins a microsecond before another ends would be drawn into it."""
    timeline, at = Timeline(0.0), 0.1
    for i in range(100):
        timeline.slice(1, 1, str(i), at, at + 0.0123456)
        at += 0.0123456
    slices = read(timeline)["traceEvents"]
    assert all(a["ts"] + a["dur"] == b["ts"] for a, b in pairwise(slices))


def test_names_are_given_once_and_never_lost() -> None:
    timeline = Timeline(0.0, n_events_max=2)
    timeline.name_group(7, "7 react", 3)
    for i in range(5):
        timeline.name_lane(7, 1, "main")
        timeline.slice(7, 1, str(i), i, i + 1)
    found = read(timeline)
    assert found["otherData"] == {"n_lost_events": 3}
    assert [(e["name"], e["args"]) for e in found["traceEvents"] if e["ph"] == "M"] == [
        ("process_name", {"name": "7 react"}),
        ("process_sort_index", {"sort_index": 3}),
        ("thread_name", {"name": "main"}),
        ("thread_sort_index", {"sort_index": 1}),
    ]
    assert [e["name"] for e in found["traceEvents"] if e["ph"] == "X"] == ["3", "4"]


def test_a_counter_is_written_when_it_changes() -> None:
    timeline = Timeline(0.0)
    for at, value in enumerate([5, 5, 4, 4, 4, 5]):
        timeline.count(9, "free", "pages", at, value)
    events = read(timeline)["traceEvents"]
    assert [(e["ts"] / 1e6, e["args"]) for e in events] == [(0, {"pages": 5}), (2, {"pages": 4}), (5, {"pages": 5})]


def test_an_arrow_has_two_ends_of_one_number() -> None:
    timeline = Timeline(0.0)
    timeline.arrow("served by", (7, 1000, 1.0), (9, 1, 2.0))
    timeline.arrow("served by", (8, 1000, 1.0), (9, 1, 2.0))
    ends = read(timeline)["traceEvents"]
    assert [(e["ph"], e["id"], e["pid"], e["ts"], e.get("bp")) for e in ends] == [
        ("s", 1, 7, 1_000_000, None),
        ("f", 1, 9, 2_000_000, "e"),
        ("s", 2, 8, 1_000_000, None),
        ("f", 2, 9, 2_000_000, "e"),
    ]


def test_a_long_file_comes_in_pieces_that_make_one() -> None:
    timeline = Timeline(0.0)
    for i in range(2 * CHUNK_EVENTS + 1):
        timeline.slice(1, 1, "s", i, i + 1)
    assert len(list(timeline.encoded())) == 5
    assert len(read(timeline)["traceEvents"]) == 2 * CHUNK_EVENTS + 1


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20))))
def test_free_lanes_never_overlap(spans) -> None:
    timeline = Timeline(0.0)
    lanes: dict[int, list[tuple[int, int]]] = {}
    for began, ended in sorted(((b, b + n) for b, n in spans), key=lambda s: s[1]):
        lanes.setdefault(timeline.free_lane(1, 10, began, ended), []).append((began, ended))
    assert sorted(lanes) == list(range(10, 10 + len(lanes)))
    for slices in lanes.values():
        slices.sort()
        assert all(a[1] <= b[0] for a, b in pairwise(slices))
