"""Locks: whom they let in is the model's to say; which wait is refused to break a deadlock, kvfs may choose."""

from collections.abc import Iterator

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from kvfs.access import W
from kvfs.locks import Ticket
from sdk.abi.errors import (
    AccessDenied,
    Busy,
    Deadlock,
    TimedOut,
)
from sdk.abi.values import LockMode
from tests.kvfs.model.names import Names
from tests.kvfs.model.state import PICK, Refusal

EXCLUSIVE = LockMode.EXCLUSIVE


class Locking(Names):
    def in_the_way(self, ticket: Ticket) -> list[Ticket]:
        """Those who have a lock, or asked before, and leave no room for this one. Who goes up asked before all who
        have nothing."""

        def order(t: Ticket) -> tuple[bool, int]:
            return t.file not in self.locked, t.number

        before = [t for t in self.waiting if t is not ticket and order(t) < order(ticket)]
        others = [t for t in [*self.locked.values(), *before] if t.ino == ticket.ino and t.file is not ticket.file]
        return [t for t in others if EXCLUSIVE in (t.mode, ticket.mode)]

    def circles(self, path: list[Ticket]) -> Iterator[list[Ticket]]:
        """Waits of threads for one another, through the first of the path."""
        for other in self.in_the_way(path[-1]):
            for wait in (t for t in self.waiting if t.thread == other.thread):
                if wait is path[0]:
                    yield path
                elif wait not in path:
                    yield from self.circles([*path, wait])

    @precondition(lambda self: self.handles)
    @rule(
        i=PICK,
        mode=st.sampled_from(LockMode),
        call=st.sampled_from(["wait", "wait", "try", "unlock", "unlock", "too late"]),
    )
    def use_locks(self, i: int, mode: LockMode, call: str) -> None:
        if call in ("wait", "try"):
            self.lock(i, mode, call == "wait")
        elif call == "unlock" and self.locked:
            f = list(self.locked)[i % len(self.locked)]
            del self.locked[f]
            self.answered(self.fs.unlock(f))
        elif call == "too late" and self.waiting:
            self.answered(self.fs.cancel_lock(self.waiting.pop(i % len(self.waiting))))

    def lock(self, i: int, mode: LockMode, waits: bool) -> None:
        f, _ = self.handles[i % len(self.handles)]
        thread = next((f.pid, n) for n in range(9) if all(t.thread != (f.pid, n) for t in self.waiting))
        ticket = Ticket(f, mode, thread, 1 << 31)
        has = f in self.locked and self.locked[f].mode in (mode, EXCLUSIVE)
        error: Refusal = None
        if mode == EXCLUSIVE and not self.rights[f] & W:
            error = AccessDenied
        elif any(t.file is f for t in self.waiting):
            error = Busy
        elif not has and not waits and self.in_the_way(ticket):
            error = TimedOut

        def lock() -> None:
            got, answered = self.fs.lock(f, mode, thread=thread, wait=waits)
            is_free = has or not self.in_the_way(ticket)
            self.waiting.append(got)
            refused = [t for t in {got, *answered} if isinstance(t.error, Deadlock)]
            circles = [] if is_free else list(self.circles([got]))
            assert bool(refused) == bool(circles)
            assert all(any(t in c and t.pid == max(x.pid for x in c) for c in circles) for t in refused)
            is_waiting = got in self.fs.locks.waiting.values()
            assert not (is_free and is_waiting)
            self.answered(answered if is_waiting else [*answered, got])

        self.attempt(error, lock)
