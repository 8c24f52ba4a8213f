from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfs.access import OPERATOR, RWX, R
from kvfs.inode import Inode
from kvfs.locks import GONE, HELD, WAITING, FileLocks, Locks, Ticket, TicketState
from kvfs.openfile import OpenFile
from sdk.abi.errors import AccessDenied, BadFile, Busy, Deadlock, TimedOut
from sdk.abi.values import LockMode

SHARED, EXCLUSIVE = LockMode.SHARED, LockMode.EXCLUSIVE


def inode(ino: int) -> Inode:
    return Inode(ino, OPERATOR, 0.0)


class Table:
    """Locks with two files, and processes of one thread each that ask for them by number."""

    def __init__(self) -> None:
        self.locks = Locks()
        self.inodes = [inode(10), inode(11), inode(12)]
        self.files: dict[tuple[int, int], OpenFile] = {}

    def file(self, pid: int, i: int = 0) -> OpenFile:
        if (pid, i) not in self.files:
            self.files[pid, i] = OpenFile(self.inodes[i], RWX, pid)
        return self.files[pid, i]

    def ask(self, pid: int, mode: LockMode, i: int = 0, wait: bool = True) -> tuple[Ticket, list[Ticket]]:
        return self.locks.acquire(self.file(pid, i), mode, thread=pid, wait=wait)

    def __call__(self, pid: int, mode: LockMode, i: int = 0) -> Ticket:
        """A ticket whose asking answers nobody else."""
        ticket, answered = self.ask(pid, mode, i)
        assert answered == []
        return ticket


@pytest.fixture
def table() -> Table:
    return Table()


def states(*tickets: Ticket) -> list[TicketState]:
    return [t.state for t in tickets]


# --- who gets a lock ---


def test_many_readers_or_one_writer(table: Table) -> None:
    readers = [table(1, SHARED), table(2, SHARED)]
    writer = table(3, EXCLUSIVE)
    assert states(*readers, writer) == [HELD, HELD, WAITING]
    assert table.locks.unlock(table.file(1)) == []
    assert table.locks.unlock(table.file(2)) == [writer]
    assert table.locks.mode_of(table.file(3)) is EXCLUSIVE
    assert table.locks.unlock(table.file(3)) == []
    assert table.locks.files == {}


def test_a_reader_behind_a_waiting_writer_waits(table: Table) -> None:
    table(1, SHARED)
    writer, late, later = table(2, EXCLUSIVE), table(3, SHARED), table(4, SHARED)
    assert states(writer, late, later) == [WAITING] * 3
    assert table.locks.unlock(table.file(1)) == [writer]
    assert table.locks.unlock(table.file(2)) == [late, later], "readers go together"


def test_files_have_nothing_to_do_with_one_another(table: Table) -> None:
    assert states(table(1, EXCLUSIVE, 0), table(2, EXCLUSIVE, 1)) == [HELD, HELD]


def test_two_handles_of_a_process_are_two(table: Table) -> None:
    first, second = table.file(1), OpenFile(table.inodes[0], RWX, 1)
    table(1, EXCLUSIVE)
    other, _ = table.locks.acquire(second, SHARED, thread="another thread")
    assert other.state is WAITING
    assert table.locks.unlock(first) == [other]


def test_asking_again_for_what_one_has_is_granted(table: Table) -> None:
    table(1, SHARED)
    table(2, EXCLUSIVE)
    assert table(1, SHARED).state is HELD, "also while a writer waits"
    assert table.locks.unlock(table.file(1)) != []
    assert table(2, EXCLUSIVE).state is HELD


def test_down_is_granted_at_once_and_lets_readers_in(table: Table) -> None:
    table(1, EXCLUSIVE)
    reader, writer = table(2, SHARED), table(3, EXCLUSIVE)
    ticket, answered = table.ask(1, SHARED)
    assert (ticket.state, answered, writer.state) == (HELD, [reader], WAITING)


def test_up_goes_before_who_holds_nothing_and_keeps_its_shared_lock(table: Table) -> None:
    table(1, SHARED)
    table(2, SHARED)
    writer, up = table(3, EXCLUSIVE), table(1, EXCLUSIVE)
    assert table.locks.mode_of(table.file(1)) is SHARED
    assert table.locks.unlock(table.file(2)) == [up]
    assert table.locks.unlock(table.file(1)) == [writer]


def test_up_is_granted_at_once_when_nobody_else_reads(table: Table) -> None:
    table(1, SHARED)
    table(2, EXCLUSIVE)
    assert table(1, EXCLUSIVE).state is HELD


def test_unlocking_during_the_wait_to_go_up_leaves_a_plain_wait(table: Table) -> None:
    table(1, SHARED)
    table(2, SHARED)
    writer, up = table(3, EXCLUSIVE), table(1, EXCLUSIVE)
    assert table.locks.unlock(table.file(1)) == []
    assert table.locks.unlock(table.file(2)) == [writer], "which came before it"
    assert table.locks.unlock(table.file(3)) == [up]
    assert table.locks.cancel(up) == []
    assert table.locks.mode_of(table.file(1)) is None, "there was no shared lock to go back to"


def test_trying_says_who_has_it_and_leaves_no_trace(table: Table) -> None:
    table(4, SHARED)
    table(2, SHARED)
    with pytest.raises(TimedOut, match=r"processes 2, 4 \(shared\)"):
        table.ask(3, EXCLUSIVE, wait=False)
    waits = table(3, EXCLUSIVE)
    with pytest.raises(TimedOut, match="processes 2, 4"):
        table.ask(5, SHARED, wait=False)
    table.locks.unlock(table.file(4))
    assert table.locks.unlock(table.file(2)) == [waits]
    with pytest.raises(TimedOut, match=r"process 3 \(exclusive\)"):
        table.ask(5, SHARED, wait=False)


def test_unlocking_what_is_not_locked_is_nothing(table: Table) -> None:
    assert table.locks.unlock(table.file(1)) == []
    table(2, EXCLUSIVE)
    assert table.locks.unlock(table.file(1)) == []
    assert table.locks.mode_of(table.file(2)) is EXCLUSIVE


def test_what_a_handle_must_be(table: Table) -> None:
    reader = OpenFile(table.inodes[0], R, 1)
    with pytest.raises(AccessDenied, match="mode 'w'"):
        table.locks.acquire(reader, EXCLUSIVE, thread=1)
    table.locks.acquire(reader, SHARED, thread=1)
    table.locks.close(reader)
    reader.close()
    for use in (lambda: table.locks.acquire(reader, SHARED, thread=1), lambda: table.locks.unlock(reader)):
        with pytest.raises(BadFile):
            use()


def test_one_thread_at_a_time_waits_with_a_handle(table: Table) -> None:
    table(1, EXCLUSIVE)
    table(2, EXCLUSIVE)
    with pytest.raises(Busy, match="a handle of its own"):
        table.locks.acquire(table.file(2), SHARED, thread="another thread")


# --- how it ends ---


def test_closing_a_handle_unlocks_and_refuses_its_wait(table: Table) -> None:
    table(1, SHARED)
    table(2, SHARED)
    up, writer = table(1, EXCLUSIVE), table(3, EXCLUSIVE)
    assert table.locks.close(table.file(1)) == [up]
    assert (up.state, type(up.error)) == (GONE, BadFile)
    assert table.locks.close(table.file(2)) == [writer]


def test_a_cancelled_wait_lets_those_behind_it_go_on(table: Table) -> None:
    table(1, SHARED)
    writer, reader = table(2, EXCLUSIVE), table(3, SHARED)
    assert table.locks.cancel(writer) == [reader]
    assert (writer.state, writer.error) == (GONE, None)
    assert table.locks.cancel(writer) == []


def test_a_grant_that_nobody_saw_is_undone(table: Table) -> None:
    table(1, EXCLUSIVE)
    granted, reader = table(2, EXCLUSIVE), table(3, SHARED)
    table.locks.unlock(table.file(1))
    assert table.locks.cancel(granted) == [reader]


def test_a_way_up_that_nobody_saw_leads_back_to_shared(table: Table) -> None:
    table(1, SHARED)
    table(2, SHARED)
    up, reader = table(1, EXCLUSIVE), table(3, SHARED)
    table.locks.unlock(table.file(2))
    assert table.locks.mode_of(table.file(1)) is EXCLUSIVE
    assert table.locks.cancel(up) == [reader]
    assert table.locks.mode_of(table.file(1)) is SHARED


def test_a_lock_that_was_taken_anew_survives_the_cancelling_of_the_old_one(table: Table) -> None:
    table(1, EXCLUSIVE)
    granted = table(2, EXCLUSIVE)
    table.locks.unlock(table.file(1))
    table(2, EXCLUSIVE)
    assert table.locks.cancel(granted) == []
    assert table.locks.mode_of(table.file(2)) is EXCLUSIVE


# --- writers ---


def test_an_exclusive_lock_keeps_other_handles_from_writing(table: Table) -> None:
    table.locks.check_writer(table.file(2))
    table(1, SHARED)
    table.locks.check_writer(table.file(2))
    table(1, EXCLUSIVE)
    table.locks.check_writer(table.file(1))
    table.locks.check_writer(table.file(2, 1))
    with pytest.raises(Busy, match=r"process 1 \(exclusive\).*fork"):
        table.locks.check_writer(table.file(2))


# --- deadlocks ---


def test_of_two_that_wait_for_one_another_the_younger_is_refused(table: Table) -> None:
    table(1, EXCLUSIVE, 0)
    table(2, EXCLUSIVE, 1)
    older = table(1, EXCLUSIVE, 1)
    younger, answered = table.ask(2, EXCLUSIVE, 0)
    assert (younger.state, type(younger.error), answered) == (GONE, Deadlock, [])
    assert "processes 1, 2 wait for locks of one another" in str(younger.error)
    assert table.locks.unlock(table.file(2, 1)) == [older]


def test_the_younger_one_may_be_the_one_that_waits_already(table: Table) -> None:
    table(1, EXCLUSIVE, 0)
    table(2, EXCLUSIVE, 1)
    younger = table(2, EXCLUSIVE, 0)
    older, answered = table.ask(1, EXCLUSIVE, 1)
    assert (older.state, answered, type(younger.error)) == (WAITING, [younger], Deadlock)


def test_a_circle_of_three(table: Table) -> None:
    for pid in (1, 2, 3):
        table(pid, EXCLUSIVE, pid - 1)
    youngest, second = table(3, SHARED, 0), table(1, SHARED, 1)
    last, answered = table.ask(2, EXCLUSIVE, 2)
    assert (answered, last.state, second.state) == ([youngest], WAITING, WAITING)
    assert isinstance(youngest.error, Deadlock)
    assert table.locks.close(table.file(3, 2)) == [last]


def test_two_readers_that_both_go_up(table: Table) -> None:
    table(1, SHARED)
    table(2, SHARED)
    older = table(1, EXCLUSIVE)
    younger, answered = table.ask(2, EXCLUSIVE)
    assert (answered, type(younger.error)) == ([], Deadlock)
    assert table.locks.mode_of(table.file(2)) is SHARED, "it has what it had"
    assert table.locks.unlock(table.file(2)) == [older]


def test_a_circle_through_the_order_of_a_queue(table: Table) -> None:
    """3 waits behind 2, which waits for 1, though 1 and 3 both only read."""
    table(1, SHARED, 0)
    table(3, EXCLUSIVE, 1)
    writer = table(2, EXCLUSIVE, 0)
    reader = table(3, SHARED, 0)
    older, answered = table.ask(1, EXCLUSIVE, 1)
    assert isinstance(reader.error, Deadlock)
    assert (answered, older.state, writer.state) == ([reader], WAITING, WAITING)


def test_who_is_let_in_by_a_refusal_may_be_the_caller(table: Table) -> None:
    """9 waits to write what 1 reads, and has what 1 asks for; 1's wait refuses it. What 9 kept from 2 is free then."""
    table(1, SHARED, 0)
    table(9, EXCLUSIVE, 1)
    writer, reader = table(9, EXCLUSIVE, 0), table(2, SHARED, 0)
    caller, answered = table.ask(1, SHARED, 1)
    assert answered == [writer, reader]
    assert states(writer, reader, caller) == [GONE, HELD, WAITING]


def test_a_wait_that_closes_two_circles(table: Table) -> None:
    table(1, EXCLUSIVE, 0)
    for pid in (5, 6):
        table(pid, SHARED, 1)
    younger = [table(5, SHARED, 0), table(6, EXCLUSIVE, 0)]
    older, answered = table.ask(1, EXCLUSIVE, 1)
    assert (set(answered), older.state) == (set(younger), WAITING)
    assert [type(t.error) for t in younger] == [Deadlock, Deadlock]


def test_a_thread_that_waits_for_its_own_other_handle(table: Table) -> None:
    table(1, EXCLUSIVE)
    ticket, answered = table.locks.acquire(OpenFile(table.inodes[0], RWX, 1), SHARED, thread=1)
    assert (answered, type(ticket.error)) == ([], Deadlock)
    assert "process 1 waits for a lock of its own" in str(ticket.error)


def test_a_deadlock_by_way_of_threads_that_were_started_under_a_lock(table: Table) -> None:
    """1 has one file and waits for its children (which the table cannot see), one of which wants what 2 has."""
    lock = table(1, EXCLUSIVE, 0).lock
    table(2, EXCLUSIVE, 1)
    child, _ = table.locks.acquire(table.file(1, 1), EXCLUSIVE, thread="a child of 1", under=[lock])
    ticket, answered = table.ask(2, SHARED, 0)
    assert (answered, child.state, type(ticket.error)) == ([], WAITING, Deadlock)
    assert table.locks.unlock(table.file(2, 1)) == [child]


def test_a_child_may_wait_for_its_parents_lock(table: Table) -> None:
    lock = table(1, EXCLUSIVE).lock
    handle = OpenFile(table.inodes[0], RWX, 1)
    child, answered = table.locks.acquire(handle, EXCLUSIVE, thread="a child of 1", under=[lock])
    assert (answered, child.state) == ([], WAITING)
    assert table.locks.unlock(table.file(1)) == [child]


@pytest.mark.parametrize("first", ["the child waits", "its parent joins it"])
def test_a_child_that_wants_what_who_waits_for_its_end_has(table: Table, first: str) -> None:
    table(1, EXCLUSIVE)
    if first == "the child waits":
        wait = table(2, EXCLUSIVE)
        assert table.locks.join(1, pid=1, child=2) == [wait]
    else:
        assert table.locks.join(1, pid=1, child=2) == []
        wait, _ = table.ask(2, EXCLUSIVE)
    assert "processes 1, 2 wait for locks and ends of one another" in str(wait.error)
    table.locks.joined(1)
    assert table(2, EXCLUSIVE).state is WAITING


def test_a_circle_by_way_of_children_of_children_and_threads_that_join_them(table: Table) -> None:
    """A thread that 1 has started under its lock waits for 2, which waits for 3, which wants what 4 has, which wants
    that lock."""
    lock = table(1, EXCLUSIVE, 0).lock
    assert table.locks.join("a thread of 1", pid=1, child=2, under=[lock]) == []
    assert table.locks.join(2, pid=2, child=3) == []
    table(4, EXCLUSIVE, 1)
    wait = table(3, SHARED, 1)
    last, answered = table.ask(4, SHARED, 0)
    assert (answered, wait.state, type(last.error)) == ([], WAITING, Deadlock)
    assert "processes 1, 3, 4 wait for locks and ends of one another" in str(last.error)


def test_waiting_for_a_child_that_wants_what_others_have_is_no_deadlock(table: Table) -> None:
    table(1, EXCLUSIVE, 1)
    table(3, EXCLUSIVE, 0)
    assert table.locks.join(1, pid=1, child=2) == []
    wait = table(2, EXCLUSIVE, 0)
    assert table.locks.unlock(table.file(3)) == [wait]


def test_a_lock_stays_itself_when_it_is_converted_and_another_one_is_another(table: Table) -> None:
    first = table(1, SHARED)
    assert table.locks.is_held(first)
    up = table(1, EXCLUSIVE)
    assert (up.lock, table.locks.is_held(first)) == (first.lock, True)
    table.locks.cancel(up)
    assert table.locks.is_held(first)
    table.locks.unlock(table.file(1))
    assert not table.locks.is_held(first)
    again = table(1, SHARED)
    assert (table.locks.is_held(again), table.locks.is_held(first)) == (True, False)


def test_threads_of_two_processes_in_one_queue_are_no_deadlock(table: Table) -> None:
    table(3, EXCLUSIVE)
    queue = []
    for pid, thread in ((1, "a"), (2, "b"), (1, "c"), (2, "d")):
        ticket, answered = table.locks.acquire(OpenFile(table.inodes[0], RWX, pid), EXCLUSIVE, thread=thread)
        assert answered == []
        queue.append(ticket)
    for holder, ticket in zip([table.file(3), *(t.file for t in queue)], queue, strict=False):
        assert table.locks.unlock(holder) == [ticket]


def test_looking_for_a_circle_costs_as_much_as_the_queue_is_long(table: Table) -> None:
    queue = FileLocks()
    for pid in range(1, 1001):
        queue.enqueue(Ticket(OpenFile(table.inodes[0], RWX, pid), EXCLUSIVE if pid % 3 else SHARED, pid, pid))
    assert sum(map(len, queue.waits_next().values())) < 1500
    assert sum(map(len, queue.waits().values())) > 400_000


def reached(waits: dict[Ticket, list[Ticket]], start: Ticket) -> set[Ticket]:
    found, todo = set[Ticket](), [start]
    while todo:
        for ticket in waits.get(todo.pop(), []):
            if ticket not in found:
                found.add(ticket)
                todo.append(ticket)
    return found


@given(st.lists(st.sampled_from(LockMode), max_size=7), st.integers(0, 3), st.integers(0, 3))
def test_what_is_left_out_of_a_queue_is_reached_all_the_same(modes: list[LockMode], n_held: int, n_up: int) -> None:
    queue, file = FileLocks(), inode(10)
    for pid in range(n_held):
        ticket = Ticket(OpenFile(file, RWX, pid), SHARED if n_held > 1 or n_up else EXCLUSIVE, pid, pid)
        queue.held[ticket.file] = ticket
    for ticket in list(queue.held.values())[:n_up]:
        queue.enqueue(Ticket(ticket.file, EXCLUSIVE, ticket.pid, 10 + ticket.pid))
    for pid, mode in enumerate(modes, start=20):
        queue.enqueue(Ticket(OpenFile(file, RWX, pid), mode, pid, pid))
    for ticket in queue.queue:
        assert reached(queue.waits_next(), ticket) == reached(queue.waits(), ticket)


@pytest.mark.parametrize("turn", [lambda t: t.locks.unlock(t.file(1)), lambda t: t.locks.close(t.file(1))])
def test_nothing_is_left_behind(table: Table, turn: Callable[[Table], list[Ticket]]) -> None:
    table(1, SHARED)
    table(1, EXCLUSIVE)
    turn(table)
    assert not table.locks.files
    assert not table.locks.waiting
    assert not table.locks.n_held
