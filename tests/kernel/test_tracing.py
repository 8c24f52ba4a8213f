"""What is recorded, as a viewer shows it: per group and lane, in order."""

import json
from collections import defaultdict
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kernel.tracing import Row, Trace

NO_MOVES = (0, 0)


class Shown:
    """A closed trace, as a viewer has it."""

    def __init__(self, trace: Trace, now: float) -> None:
        self.events = json.loads(b"".join(trace.close(now)))["traceEvents"]
        self.groups = {e["pid"]: f"{e['args']['name']} {e['pid']}" for e in self.events if e["name"] == "process_name"}
        self.names = {(e["pid"], e["tid"]): e["args"]["name"] for e in self.events if e["name"] == "thread_name"}
        self.lanes, self.tracks = defaultdict(list), defaultdict(list)
        for e in sorted((e for e in self.events if e["ph"] == "X"), key=lambda e: (e["ts"], -e["dur"])):
            self.lanes[self.groups[e["pid"]], self.names[e["pid"], e["tid"]]].append(e)
            self.tracks[e["pid"], e["tid"]].append(e)

    def lane(self, group: str, lane: str) -> list[tuple[str, float, float]]:
        """(name, begin, end) of its slices, in milliseconds."""
        return [(e["name"], e["ts"] / 1000, (e["ts"] + e["dur"]) / 1000) for e in self.lanes[group, lane]]

    def args(self, group: str, lane: str, name: str) -> dict:
        (found,) = [e.get("args", {}) for e in self.lanes[group, lane] if e["name"].startswith(name)]
        return found

    def check(self) -> None:
        """That it is drawn as it was meant: every lane has a name, and no slice cuts into another."""
        for slices in self.tracks.values():
            assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(slices))
        starts = {e["id"]: e for e in self.events if e["ph"] == "s"}
        for e in self.events:
            if e["ph"] == "f":
                assert starts[e["id"]]["ts"] <= e["ts"]


def ms(at: float) -> float:
    return at / 1000


# --- programs ---


def test_a_thread_runs_waits_and_is_ready() -> None:
    trace = Trace(0.0)
    trace.process(12, "react")
    trace.stepped("t", 12, ms(1), ms(2), "generate", "answer")
    trace.ready("something else", ms(5))
    trace.ready("answer", ms(6))
    trace.ready("answer", ms(6.5))
    trace.stepped("t", 12, ms(7), ms(8), "sleep")
    shown = Shown(trace, ms(20))
    shown.check()
    assert shown.lane("react 12", "main") == [
        ("running", 1, 2),
        ("generate", 2, 6),
        ("ready", 6, 7),
        ("running", 7, 8),
        ("sleep", 8, 20),
    ]


def test_steps_without_a_pause_are_one_slice() -> None:
    trace = Trace(0.0)
    trace.process(1, "p")
    trace.stepped("t", 1, ms(1), ms(2), "await p.py:3")
    trace.stepped("t", 1, ms(2.04), ms(3), "await p.py:4")
    trace.stepped("t", 1, ms(3.1), ms(4), "await p.py:5")
    shown = Shown(trace, ms(4))
    assert shown.lane("p 1", "main") == [("running", 1, 3), ("await p.py:4", 3, 3.1), ("running", 3.1, 4)]
    assert [e["args"] for e in shown.lanes["p 1", "main"] if e["name"] == "running"] == [{"steps": 2}, {"steps": 1}]


def test_a_thread_that_waits_from_beginning_to_end_is_seen() -> None:
    trace = Trace(0.0)
    trace.process(1, "p")
    trace.waiting("t", 1, 0.0, "recv", "message")
    assert Shown(trace, ms(9)).lane("p 1", "main") == [("recv", 0, 9)]


def test_a_thread_that_was_waiting_goes_on() -> None:
    trace = Trace(0.0)
    trace.process(1, "p")
    trace.waiting("t", 1, 0.0, "recv", "message")
    trace.ready("message", ms(2))
    trace.stepped("t", 1, ms(3), ms(4), "sleep")
    shown = Shown(trace, ms(9)).lane("p 1", "main")
    assert shown == [("recv", 0, 2), ("ready", 2, 3), ("running", 3, 4), ("sleep", 4, 9)]


def test_the_lane_of_an_ended_thread_is_used_again() -> None:
    trace = Trace(0.0)
    trace.process(1, "p")
    for i in range(3):
        trace.stepped("main", 1, ms(10 * i), ms(10 * i + 1), "await p.py:3")
        trace.stepped(f"child {i}", 1, ms(10 * i + 2), ms(10 * i + 3), "")
        trace.ended(f"child {i}")
    shown = Shown(trace, ms(40))
    shown.check()
    assert set(shown.names.values()) == {"main", "thread 2"}
    assert [name for name, _, _ in shown.lane("p 1", "thread 2")] == ["running"] * 3


# --- model calls and batches ---


def test_a_call_is_in_its_batches_and_queued_between() -> None:
    trace = Trace(0.0)
    trace.process(12, "react")
    trace.submitted("call", 12, ms(1))
    trace.sent("w", 811, [Row("call", 12, "prompt"), Row(None, 0, "rebuild")], 20, NO_MOVES, ms(3))
    trace.done("w", 811, ms(9), 0.005, 0.0)
    trace.sent("w", 812, [Row("call", 12, "decode"), Row("other", 13, "decode")], 2, NO_MOVES, ms(10))
    trace.done("w", 812, ms(12), 0.001, 0.0)
    trace.finished("call")
    shown = Shown(trace, ms(20))
    shown.check()
    assert shown.lane("react 12", "model") == [
        ("queued", 1, 3),
        ("prompt 811", 3, 9),
        ("queued", 9, 10),
        ("decode 812", 10, 12),
    ]
    assert shown.lane("worker w 1000000", "batches") == [
        ("batch 811: 2 rows 20 tokens", 3, 9),
        ("batch 812: 2 rows 2 tokens", 10, 12),
    ]
    assert shown.args("worker w 1000000", "batches", "batch 811") == {
        "tokens": 20,
        "prompt rows": 1,
        "rebuild rows": 1,
        "pids": [12],
        "longest queue time ms": 2.0,
    }
    assert shown.args("worker w 1000000", "batches", "batch 812") == {"tokens": 2, "decode rows": 2, "pids": [12, 13]}
    assert shown.lane("worker w 1000000", "step") == [("step 811", 4, 9), ("step 812", 11, 12)]
    assert [(e["ph"], e["pid"]) for e in shown.events if e["ph"] in "sf"] == [("s", 12), ("f", 1_000_000)]


def test_a_batch_sent_ahead_runs_when_the_one_before_is_done() -> None:
    trace = Trace(0.0)
    trace.process(1, "p")
    trace.submitted("call", 1, ms(0))
    trace.sent("w", 1, [Row("call", 1, "decode")], 1, NO_MOVES, ms(0))
    trace.sent("w", 2, [Row("call", 1, "decode")], 1, NO_MOVES, ms(7))
    trace.done("w", 1, ms(10), 0.009, 0.0)
    trace.done("w", 2, ms(20), 0.009, 0.0)
    shown = Shown(trace, ms(20))
    shown.check()
    assert [(b, e) for _, b, e in shown.lane("worker w 1000000", "batches")] == [(0, 10), (10, 20)]
    assert shown.lane("worker w 1000000", "sent ahead") == [("batch 2", 7, 10)]
    assert shown.args("worker w 1000000", "batches", "batch 2")["sent ahead by ms"] == 3.0
    assert shown.lane("p 1", "model") == [("decode 1", 0, 10), ("decode 2", 10, 20)]


def test_a_batch_from_before_the_recording_is_let_pass() -> None:
    trace = Trace(0.0)
    trace.sent("w", 8, [], 0, NO_MOVES, ms(1))
    trace.done("w", 7, ms(3), 0.001, 0.0)
    trace.done("w", 8, ms(5), 0.001, 0.0)
    assert Shown(trace, ms(5)).lane("worker w 1000000", "batches") == [("batch 8: 0 rows 0 tokens", 3, 5)]


def test_calls_of_others_are_not_shown() -> None:
    trace = Trace(0.0, everybody=False)
    trace.process(1, "p")
    for call, pid in (("a", 1), ("b", 2)):
        trace.submitted(call, pid, ms(0))
    trace.sent("w", 1, [Row("a", 1, "decode"), Row("b", 2, "decode")], 2, NO_MOVES, ms(1))
    trace.done("w", 1, ms(2), 0.001, 0.0)
    shown = Shown(trace, ms(2))
    assert {group for group, _ in shown.lanes} == {"p 1", "worker w 1000000"}
    assert shown.args("worker w 1000000", "batches", "batch 1")["pids"] == [1, 2]


def test_why_a_call_is_in_no_batch() -> None:
    trace = Trace(0.0)
    trace.process(1, "p")
    trace.submitted("call", 1, ms(0))
    trace.paused("call", ms(1), "memory: swapped")
    trace.paused("call", ms(2), "memory: swapped")
    trace.paused("call", ms(4), "queued")
    trace.sent("w", 1, [Row("call", 1, "decode")], 1, NO_MOVES, ms(5))
    trace.done("w", 1, ms(6), 0.001, 0.0)
    assert Shown(trace, ms(6)).lane("p 1", "model") == [
        ("queued", 0, 1),
        ("memory: swapped", 1, 4),
        ("queued", 4, 5),
        ("decode 1", 5, 6),
    ]


def test_calls_at_the_same_time_have_lanes_of_their_own() -> None:
    trace = Trace(0.0)
    trace.process(1, "p")
    for call in "ab":
        trace.submitted(call, 1, ms(0))
    trace.sent("w", 1, [Row("a", 1, "decode"), Row("b", 1, "decode")], 2, NO_MOVES, ms(1))
    trace.done("w", 1, ms(2), 0.001, 0.0)
    trace.finished("a")
    trace.submitted("c", 1, ms(3))
    shown = Shown(trace, ms(4))
    shown.check()
    assert shown.lane("p 1", "model") == [("queued", 0, 1), ("decode 1", 1, 2), ("queued", 3, 4)]
    assert shown.lane("p 1", "model 2") == [("queued", 0, 1), ("decode 1", 1, 2), ("queued", 2, 4)]


def test_batches_that_do_not_come_to_their_end() -> None:
    trace = Trace(0.0)
    for seq in (1, 2, 3, 4):
        trace.sent("w", seq, [Row(None, 0, "rebuild")], 16, NO_MOVES, ms(seq))
    trace.failed("w", 1, ms(5), "ENOSPC: no memory")
    trace.failed("w", 2, ms(5), "void")
    trace.lost("w", ms(9))
    trace.done("w", 3, ms(10), 0.001, 0.0)  # it says so too late
    shown = Shown(trace, ms(10))
    shown.check()
    names = [name for name, _, _ in shown.lane("worker w 1000000", "batches")]
    assert names == ["refused batch 1: 1 rows 16 tokens", "lost batch 3: 1 rows 16 tokens"]  # 2 and 4 took no time
    assert shown.lane("worker w 1000000", "step") == [("ENOSPC: no memory", 1, 5)]


def test_pages_that_move() -> None:
    trace = Trace(0.0)
    trace.sent("w", 1, [], 0, (12, 3), ms(0))
    trace.done("w", 1, ms(10), 0.0, 0.004)
    trace.migrated("w", "v", ms(3), ms(8), 40, 4000)
    trace.migrated("v", "w", ms(4), ms(9), 2, 200)
    shown = Shown(trace, ms(10))
    shown.check()
    assert shown.lane("worker w 1000000", "page moves") == [("12 out, 3 in", 6, 10)]
    assert sorted(shown.lane("worker w 1000000", "migrations")) == [("2 pages from v", 4, 9), ("40 pages to v", 3, 8)]
    assert shown.args("worker v 1000001", "migrations", "40") == {"pages": 40, "bytes": 4000}


def test_what_the_kernel_did_and_how_a_worker_stands() -> None:
    trace = Trace(0.0)
    trace.decided("w", "plan", ms(1), ms(1.1))
    trace.gauges("w", ms(2), n_free=90, n_host=10, n_calls=3)
    trace.gauges("w", ms(3), n_free=90, n_host=11, n_calls=3)
    trace.idle("w", ms(4))
    shown = Shown(trace, ms(4))
    assert shown.lane("worker w 1000000", "kernel") == [("plan", 1, 1.1)]
    counters = [(e["ts"] / 1000, e["name"], e["args"]) for e in shown.events if e["ph"] == "C"]
    assert counters == [
        (2, "free", {"pages": 90}),
        (2, "in main memory", {"pages": 10}),
        (2, "model", {"calls": 3}),
        (3, "in main memory", {"pages": 11}),
        (4, "rows", {"of a batch": 0}),
    ]


# --- any order of things ---

OPS = ("step", "ready", "end", "submit", "pause", "send", "done", "fail", "lose", "finish", "move")


@given(st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 3), st.integers(0, 3), st.floats(0, 1))))
def test_whatever_happens_is_drawn_without_overlaps(ops) -> None:
    """Random events in the order of their times; a thread's steps never overlap, as there is one event loop."""
    trace, now, calls = Trace(0.0, n_events_max=50), 0.0, 0
    sent: list[list[int]] = [[] for _ in range(4)]

    def oldest(batches: list[int]) -> int:
        return batches.pop(0) if batches else -1

    for pid in range(4):
        trace.process(pid, "p")
    for seq, (op, a, b, took) in enumerate(ops):
        began, now = now, now + took * 0.001
        match op:
            case "step":
                trace.stepped((a, b), a, began, now, "sleep", b)
            case "ready":
                trace.ready(b, now)
            case "end":
                trace.ended((a, b))
            case "submit":
                calls += 1
                trace.submitted(calls, a, now)
            case "pause":
                trace.paused(calls - a, now, f"memory: {b}")
            case "send":
                sent[a].append(seq)
                trace.sent(f"w{a}", seq, [Row(calls - i, i, "decode") for i in range(b)], b, (a, b), now)
            case "done":
                trace.done(f"w{a}", oldest(sent[a]), now, took * 0.002, took * 0.001)
            case "fail":
                trace.failed(f"w{a}", oldest(sent[a]), now, "EIO")
            case "lose":
                sent[a].clear()
                trace.lost(f"w{a}", now)
            case "finish":
                trace.finished(calls - a)
            case "move":
                trace.migrated(f"w{a}", f"w{b}", began, now, 1, 1)
    Shown(trace, now + 1).check()
