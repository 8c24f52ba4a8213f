"""What `lip trace` records: what programs did and waited for, and what the workers computed meanwhile. Pure.

    a program      a lane for each thread: running, ready, or what it waits for
                   a lane for each model call: the batches it is in, and what it waits for between them
    a worker       batches as the kernel saw them, the steps that the worker reports, batches that were sent ahead,
                   page moves, migrations, what the kernel did for it; free pages, rows and queue as counters

There is a `Trace` while somebody records and None otherwise; every hook is one line that asks for it. Callers give
the time, in seconds of the clock that `began` is of. A thread's steps that follow each other within `MERGE_S` are one
slice. Whoever reads a trace wants to know who waited for whom, so arrows lead from a call to its first batch.

Held by `kernel/fleet.py` and by the processes that are traced, written out by `kernel/frontdoor/observe.py`.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from kernel.edits import EditJob
from kernel.flight import InFlight
from kernel.perfetto import N_EVENTS_MAX, Timeline

MERGE_S = 50e-6
FIRST_WORKER = 1_000_000  # numbers of the workers' groups, which are no pids
CALLS = 1000  # first lane of a program's model calls; its threads are below
BATCHES, STEPS, AHEAD, MOVES, KERNEL, MIGRATIONS = 1, 2, 3, 4, 5, 10  # lanes of a worker
WORKER_LANES = {BATCHES: "batches", STEPS: "step", AHEAD: "sent ahead", MOVES: "page moves", KERNEL: "kernel"}


class Row(NamedTuple):
    """One row of a batch."""

    call: Hashable  # None: of the kernel's own, or of nobody
    pid: int  # 0: likewise
    kind: str  # prompt, decode, pred, edit, rebuild


class _Thread:
    """One thread of a program: it ran from `began` to `ended`, and waits since."""

    __slots__ = ("awaited", "began", "ended", "lane", "n_steps", "pid", "ready", "waits")

    def __init__(self, pid: int, lane: int, at: float, waits: str) -> None:
        self.pid = pid
        self.lane = lane
        self.began = self.ended = at
        self.n_steps = 0
        self.waits = waits
        self.awaited: Hashable = None  # the same as an object, by which `ready` knows it
        self.ready: float | None = None  # when that was there


class _Call:
    """One model call: in no batch since `since`, because of `state`."""

    __slots__ = ("lane", "pid", "since", "state", "was_in_a_batch")

    def __init__(self, pid: int, lane: int, now: float) -> None:
        self.pid = pid
        self.lane = lane
        self.since = now
        self.state = "queued"
        self.was_in_a_batch = False


class _Batch:
    """One batch in flight."""

    __slots__ = ("moves", "n_tokens", "next_since", "rows", "sent", "seq", "started")

    def __init__(self, seq: int, rows: Sequence[Row], n_tokens: int, moves: tuple[int, int], now: float) -> None:
        self.seq = seq
        self.rows = rows
        self.n_tokens = n_tokens
        self.moves = moves
        self.sent = now
        self.next_since = now  # when it was sent, or none but the running one was before it any more
        self.started: float | None = None  # None while another one is before it


class Trace:
    """One recording."""

    def __init__(self, began: float, *, everybody: bool = True, n_events_max: int = N_EVENTS_MAX) -> None:
        """`everybody`: programs that start meanwhile are traced as well; otherwise only children of those that are."""
        self.everybody = everybody
        self.timeline = Timeline(began, n_events_max)
        self._pids: set[int] = set()
        self._threads: dict[Hashable, _Thread] = {}
        self._awaited: dict[Hashable, _Thread] = {}
        self._calls: dict[Hashable, _Call] = {}
        self._lanes: dict[tuple[int, int], set[int]] = {}  # in use, by process and first lane
        self._workers: dict[str, int] = {}
        self._flying: dict[str, deque[_Batch]] = {}

    # --- programs ---

    def process(self, pid: int, name: str) -> None:
        """This program is traced. (The viewers show the pid beside the name.)"""
        self._pids.add(pid)
        self.timeline.name_group(pid, name, FIRST_WORKER + pid)

    def waiting(self, thread: Hashable, pid: int, now: float, waits: str, awaited: Hashable) -> None:
        """A thread of a traced program that is there already when the recording begins."""
        t = self._threads[thread] = _Thread(pid, self._thread_lane(pid), now, waits)
        self._await(t, awaited)

    def stepped(
        self, thread: Hashable, pid: int, began: float, ended: float, waits: str, awaited: Hashable = None
    ) -> None:
        """A thread was on the stack, and waits for something since: in words, and the object if `ready` will tell."""
        t = self._threads.get(thread)
        if t is None:
            t = self._threads[thread] = _Thread(pid, self._thread_lane(pid), began, "")
        elif began - t.ended > MERGE_S or not t.n_steps:
            self._flush(t, began)
            t.began, t.n_steps = began, 0
        t.ended, t.waits, t.ready = ended, waits, None
        t.n_steps += 1
        self._await(t, awaited)

    def _await(self, t: _Thread, awaited: Hashable) -> None:
        self._awaited.pop(t.awaited, None)
        t.awaited = awaited
        if awaited is not None:
            self._awaited[awaited] = t

    def ready(self, awaited: Hashable, now: float) -> None:
        """What a thread waits for is there; it runs when it is its turn."""
        t = self._awaited.pop(awaited, None)
        if t is not None:
            t.ready = now

    def ended(self, thread: Hashable) -> None:
        """A thread is over with the step before."""
        t = self._threads.pop(thread, None)
        if t is not None:
            self._await(t, None)
            self._flush(t, t.ended)
            self._lanes[t.pid, 1].discard(t.lane)

    def _flush(self, t: _Thread, until: float) -> None:
        add = self.timeline.slice
        if t.n_steps:
            add(t.pid, t.lane, "running", t.began, t.ended, {"steps": t.n_steps})
        waited = until if t.ready is None else min(t.ready, until)
        add(t.pid, t.lane, t.waits, t.ended, waited)
        add(t.pid, t.lane, "ready", waited, until)

    def _thread_lane(self, pid: int) -> int:
        lane = self._lane(pid, 1)
        self.timeline.name_lane(pid, lane, "main" if lane == 1 else f"thread {lane}")
        return lane

    def _lane(self, pid: int, first: int) -> int:
        """The lowest lane from `first` on that nobody is on."""
        used = self._lanes.setdefault((pid, first), set())
        lane = first
        while lane in used:
            lane += 1
        used.add(lane)
        return lane

    # --- model calls ---

    def submitted(self, call: Hashable, pid: int, now: float) -> None:
        """A program calls the model, or has done so before the recording began."""
        if pid not in self._pids:
            return
        lane = self._lane(pid, CALLS)
        n = lane - CALLS
        self.timeline.name_lane(pid, lane, "model" if n == 0 else f"model {n + 1}")
        self._calls[call] = _Call(pid, lane, now)

    def paused(self, call: Hashable, now: float, why: str) -> None:
        """Why a call is in no batch, from now on."""
        c = self._calls.get(call)
        if c is not None and c.state != why:
            self._show(c, now)
            c.since, c.state = now, why

    def finished(self, call: Hashable) -> None:
        """A call has ended, or somebody else goes on with it."""
        c = self._calls.pop(call, None)
        if c is not None:
            self._lanes[c.pid, CALLS].discard(c.lane)

    def _show(self, c: _Call, until: float) -> None:
        if until - c.since > MERGE_S:
            self.timeline.slice(c.pid, c.lane, c.state, c.since, until)

    # --- workers ---

    def sent(
        self, worker: str, seq: int, rows: Sequence[Row], n_tokens: int, moves: tuple[int, int], now: float
    ) -> None:
        """A batch has left for a worker; so many pages move out and in beside it."""
        flying = self._flying.setdefault(worker, deque())
        b = _Batch(seq, rows, n_tokens, moves, now)
        if not flying:
            b.started = now
        flying.append(b)
        self.timeline.count(self._group(worker), "rows", "of a batch", now, len(rows))

    def done(self, worker: str, seq: int, now: float, step_s: float, move_s: float) -> None:
        """The oldest batch of a worker was answered; how long the step and the moves beside it took there."""
        b = self._landed(worker, seq, now, "batch")
        if b is None:
            return
        assert b.started is not None
        add, group = self.timeline.slice, self._group(worker)
        add(group, STEPS, f"step {b.seq}", max(b.started, now - step_s), now, {"step_ms": round(1000 * step_s, 3)})
        n_out, n_in = b.moves
        if n_out or n_in:
            args = {"pages out": n_out, "pages in": n_in}
            add(group, MOVES, f"{n_out} out, {n_in} in", max(b.started, now - move_s), now, args)

    def failed(self, worker: str, seq: int, now: float, why: str) -> None:
        """The oldest batch of a worker was refused."""
        b = self._landed(worker, seq, now, "refused batch")
        if b is not None:
            self.timeline.slice(self._group(worker), STEPS, why, b.started or now, now)

    def lost(self, worker: str, now: float) -> None:
        """A worker is gone, with its batches."""
        for b in list(self._flying.get(worker, ())):
            self._landed(worker, b.seq, now, "lost batch")

    def _landed(self, worker: str, seq: int, now: float, what: str) -> _Batch | None:
        """The oldest batch in flight is over; None when it was sent before the recording began."""
        flying = self._flying.get(worker)
        if not flying:
            return None
        if flying[0].seq != seq:
            flying[0].started = now
            return None
        b = flying.popleft()
        assert b.started is not None
        started = b.started
        if flying:
            flying[0].started = now
            flying[0].next_since = max(flying[0].sent, started)
        group = self._group(worker)
        name = f"{what} {b.seq}: {len(b.rows)} rows {b.n_tokens} tokens"
        self.timeline.slice(group, BATCHES, name, started, now, _args(b, self._calls))
        self.timeline.slice(group, AHEAD, f"batch {b.seq}", b.next_since, started)
        for row in b.rows:
            call = self._calls.get(row.call)
            if call is not None:
                self._in_batch(call, row, b, group, now)
        return b

    def _in_batch(self, c: _Call, row: Row, b: _Batch, group: int, now: float) -> None:
        """A call was in a batch that is over now."""
        assert b.started is not None
        began = max(b.started, c.since)
        self._show(c, began)
        self.timeline.slice(c.pid, c.lane, f"{row.kind} {b.seq}", began, now)
        if not c.was_in_a_batch:
            c.was_in_a_batch = True
            self.timeline.arrow("served by", (c.pid, c.lane, began), (group, BATCHES, began))
        c.since, c.state = now, "queued"

    def migrated(self, source: str, target: str, began: float, ended: float, n_pages: int, n_bytes: int) -> None:
        """Pages have gone from one worker to another."""
        args = {"pages": n_pages, "bytes": n_bytes}
        for worker, name in ((source, f"{n_pages} pages to {target}"), (target, f"{n_pages} pages from {source}")):
            group = self._group(worker)
            lane = self.timeline.free_lane(group, MIGRATIONS, began, ended)
            self.timeline.name_lane(group, lane, "migrations")
            self.timeline.slice(group, lane, name, began, ended, args)

    def decided(self, worker: str, what: str, began: float, ended: float) -> None:
        """The kernel was busy with a worker's batches."""
        self.timeline.slice(self._group(worker), KERNEL, what, began, ended)

    def gauges(self, worker: str, now: float, n_free: int, n_host: int, n_calls: int) -> None:
        """How a worker stands: pages that nobody holds, pages in main memory, calls that have not ended."""
        group = self._group(worker)
        self.timeline.count(group, "free", "pages", now, n_free)
        self.timeline.count(group, "in main memory", "pages", now, n_host)
        self.timeline.count(group, "model", "calls", now, n_calls)

    def idle(self, worker: str, now: float) -> None:
        """A worker has nothing in flight, and gets nothing now."""
        self.timeline.count(self._group(worker), "rows", "of a batch", now, 0)

    def _group(self, worker: str) -> int:
        group = self._workers.get(worker)
        if group is None:
            group = self._workers[worker] = FIRST_WORKER + len(self._workers)
            self.timeline.name_group(group, f"worker {worker}", len(self._workers))
            for lane, name in WORKER_LANES.items():
                self.timeline.name_lane(group, lane, name)
        return group

    # --- the end ---

    def close(self, now: float) -> Iterator[bytes]:
        """Nothing comes any more: the file, piece by piece. What goes on ends here."""
        for worker, flying in self._flying.items():
            for b in list(flying):
                self._landed(worker, b.seq, now, "batch")
        for call in self._calls.values():
            self._show(call, now)
        for thread in self._threads.values():
            self._flush(thread, now)
        return self.timeline.encoded()


def rows_of(batch: InFlight) -> list[Row]:
    """Whose rows are in a batch."""
    rows = []
    for sent in batch.rows:
        job, step = sent.job, sent.step
        if job is None or step is None:
            rows.append(Row(None, 0, "rebuild"))
        else:
            kind = "pred" if job.host_decides else "prompt" if step.mark else "decode"
            rows.append(Row(job, job.file.pid, "edit" if isinstance(job, EditJob) else kind))
    return rows


def _args(b: _Batch, calls: dict[Hashable, _Call]) -> dict[str, object]:
    kinds: dict[str, int] = {}
    for row in b.rows:
        kinds[row.kind] = kinds.get(row.kind, 0) + 1
    args: dict[str, object] = {"tokens": b.n_tokens, **{f"{kind} rows": n for kind, n in sorted(kinds.items())}}
    args["pids"] = sorted({row.pid for row in b.rows if row.pid})
    first = [c.since for row in b.rows if (c := calls.get(row.call)) is not None and not c.was_in_a_batch]
    if first:
        args["longest queue time ms"] = round(1000 * (b.sent - min(first)), 3)
    if b.started is not None and b.started > b.sent:
        args["sent ahead by ms"] = round(1000 * (b.started - b.sent), 3)
    return args
