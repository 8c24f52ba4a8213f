"""Locks against a model: lists that are searched through."""

from collections.abc import Collection, Hashable, Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvfs.access import OPERATOR, RWX
from kvfs.inode import Inode
from kvfs.locks import HELD, WAITING, Locks, Ticket
from kvfs.openfile import OpenFile
from sdk.abi.errors import BadFile, Busy, Deadlock, TimedOut
from sdk.abi.values import LockMode

SHARED, EXCLUSIVE = LockMode.SHARED, LockMode.EXCLUSIVE


class Machine(RuleBasedStateMachine):
    """Four processes of two threads on three files, against lists that are searched through. Each process but the last
    is the parent of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.locks = Locks()
        self.inodes = [Inode(ino, OPERATOR, 0.0) for ino in (10, 11, 12)]
        self.files = [OpenFile(inode, RWX, pid) for inode in self.inodes for pid in range(1, 5)]
        self.tickets: list[Ticket] = []  # that wait, as far as anybody was told
        self.held: dict[OpenFile, tuple[LockMode, Ticket]] = {}
        self.joins: dict[tuple[int, int], list[int]] = {}  # waits for the child; started under these

    # --- the model: who is in whose way ---

    def ahead(self, ticket: Ticket) -> list[Ticket]:
        """Those of its queue that are to be granted before it: first come first, who goes up before all others."""

        def order(t: Ticket) -> tuple[bool, int]:
            return t.file not in self.held, t.number

        return [t for t in self.tickets if t.ino == ticket.ino and order(t) < order(ticket)]

    def obstacles(self, ticket: Ticket) -> list[Ticket]:
        holders = [t for f, (_, t) in self.held.items() if f.inode is ticket.file.inode]
        return [
            t for t in holders + self.ahead(ticket) if t.file is not ticket.file and EXCLUSIVE in (t.mode, ticket.mode)
        ]

    def circles(self, path: list[Ticket]) -> Iterator[list[Ticket]]:
        for owner in self.obstacles(path[-1]):
            for after in (t for t in self.tickets if self.stands_for(t, owner, path[-1])):
                if after is path[0]:
                    yield path
                elif after not in path:
                    yield from self.circles([*path, after])

    def stands_for(self, ticket: Ticket, owner: Ticket, asker: Ticket) -> bool:
        def unlocks(thread: Hashable, under: Collection[int]) -> bool:
            return thread == owner.thread or (owner.pid != asker.pid and owner.lock in under)

        return unlocks(ticket.thread, ticket.under) or any(
            unlocks(thread, under) and self.is_below(thread[0], ticket.pid) for thread, under in self.joins.items()
        )

    def is_below(self, pid: int, other: int) -> bool:
        """Whether there is a chain of processes that wait for their children."""
        return pid < other and all(any(p == parent for p, _ in self.joins) for parent in range(pid, other))

    def answer(self, answered: list[Ticket]) -> None:
        """Note what the table says; whether it is right is for the invariants to say."""
        assert len(set(answered)) == len(answered)
        for ticket in answered:
            self.tickets.remove(ticket)
            if ticket.state is HELD:
                self.held[ticket.file] = ticket.mode, ticket

    def idle(self, pid: int, thread: int) -> bool:
        return all(t.thread != (pid, thread) for t in self.tickets) and (pid, thread) not in self.joins

    # --- what happens ---

    @precondition(lambda self: len(self.files) < 16)
    @rule(pid=st.integers(1, 4), i=st.integers(0, 2))
    def open(self, pid: int, i: int) -> None:
        self.files.append(OpenFile(self.inodes[i], RWX, pid))

    @precondition(lambda self: self.files)
    @rule(data=st.data(), mode=st.sampled_from(LockMode))
    def lock(self, data: st.DataObject, mode: LockMode) -> None:
        self.acquire(data, mode, wait=True)

    @precondition(lambda self: self.files)
    @rule(data=st.data(), mode=st.sampled_from(LockMode))
    def lock_another(self, data: st.DataObject, mode: LockMode) -> None:
        self.acquire(data, mode, wait=True)

    @precondition(lambda self: self.files)
    @rule(data=st.data(), mode=st.sampled_from(LockMode))
    def try_to_lock(self, data: st.DataObject, mode: LockMode) -> None:
        self.acquire(data, mode, wait=False)

    def draw_under(self, data: st.DataObject, pid: int, thread: int) -> list[int]:
        is_under = thread and data.draw(st.booleans())
        return [t.lock for f, (_, t) in self.held.items() if f.pid == pid] if is_under else []

    def acquire(self, data: st.DataObject, mode: LockMode, *, wait: bool) -> None:
        file = data.draw(st.sampled_from(self.files))
        thread = next((n for n in (0, 1) if self.idle(file.pid, n)), None)
        if thread is None:
            return
        under = self.draw_under(data, file.pid, thread)
        if any(t.file is file for t in self.tickets):
            with pytest.raises(Busy):
                self.locks.acquire(file, mode, thread=(file.pid, thread), wait=wait)
            return
        try:
            ticket, answered = self.locks.acquire(file, mode, thread=(file.pid, thread), under=under, wait=wait)
        except TimedOut:
            assert not wait
            return
        assert wait or ticket.state is HELD
        if file in self.held and ticket.state is HELD and self.held[file][0] in (mode, EXCLUSIVE):
            self.held[file] = mode, ticket
            self.answer(answered)
            return
        self.tickets.append(ticket)
        self.check_refused([*answered, ticket], list(self.circles([ticket])))
        self.answer(answered if ticket.state is WAITING else [*answered, ticket])

    def check_refused(self, answered: list[Ticket], circles: list[list[Ticket]]) -> None:
        refused = [t for t in answered if isinstance(t.error, Deadlock)]
        assert bool(refused) == bool(circles), "a deadlock is found when it begins, and nothing else is one"
        for victim in refused:
            assert any(victim in c and victim.pid == max(t.pid for t in c) for c in circles)

    @rule(data=st.data(), pid=st.integers(1, 3), thread=st.integers(0, 1))
    def join(self, data: st.DataObject, pid: int, thread: int) -> None:
        if self.idle(pid, thread):
            under = self.joins[pid, thread] = self.draw_under(data, pid, thread)
            answered = self.locks.join((pid, thread), pid, pid + 1, under)
            self.check_refused(answered, [c for ticket in self.tickets for c in self.circles([ticket])])
            self.answer(answered)

    @precondition(lambda self: self.joins)
    @rule(data=st.data())
    def joined(self, data: st.DataObject) -> None:
        thread = data.draw(st.sampled_from(sorted(self.joins)))
        del self.joins[thread]
        self.locks.joined(thread)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(self.files))
        self.held.pop(file, None)
        self.answer(self.locks.unlock(file))

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(self.files))
        self.held.pop(file, None)
        answered = self.locks.close(file)
        assert [t.file for t in answered if isinstance(t.error, BadFile)] == [
            t.file for t in self.tickets if t.file is file
        ]
        self.answer(answered)
        file.close()
        self.files.remove(file)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        self.tickets.remove(ticket)
        self.answer(self.locks.cancel(ticket))

    @precondition(lambda self: any(t.before is SHARED for _, t in self.held.values()))
    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        """A lock that went up is given back, as nobody saw it."""
        file, ticket = data.draw(st.sampled_from([(f, t) for f, (_, t) in self.held.items() if t.before is SHARED]))
        answered = self.locks.cancel(ticket)
        self.held[file] = SHARED, self.locks.files[ticket.ino].held[file]
        self.answer(answered)

    # --- what always holds ---

    @invariant()
    def the_table_is_as_it_was_told(self) -> None:
        assert {f: self.locks.mode_of(f) for f in self.files} == {
            f: self.held[f][0] if f in self.held else None for f in self.files
        }
        assert set(self.locks.waiting.values()) == set(self.tickets), "nobody is answered without being told"
        assert {t.thread for t in self.tickets} == set(self.locks.waiting)

    @invariant()
    def writers_are_alone(self) -> None:
        for ino in self.inodes:
            modes = [mode for f, (mode, _) in self.held.items() if f.inode is ino]
            assert EXCLUSIVE not in modes or len(modes) == 1

    @invariant()
    def nobody_waits_who_could_go_on(self) -> None:
        assert all(self.obstacles(ticket) for ticket in self.tickets)

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        assert [c for ticket in self.tickets for c in self.circles([ticket])] == []


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
