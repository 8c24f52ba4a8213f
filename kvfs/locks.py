"""Locks: how processes agree on who uses a file.

A lock is of a file (its inode, whatever its names are) and belongs to one open handle, and so to one process. It is
*shared* or *exclusive*: many handles may have it shared, or one exclusively. Whoever asks gets a ticket, which is
answered at once or later, and once granted is the lock:

    WAITING ── granted ──► HELD ── unlock, close, converted ──► GONE
       └────── refused (deadlock, closed handle), cancelled ─────► GONE

Tickets are answered in the order in which they came: a reader that comes after a waiting writer waits behind it, so
writers do not starve. A handle that has a lock may ask for the other mode. Down is granted at once. Up goes before
those who hold nothing, keeps the shared lock meanwhile, and waits for the other readers; two readers of a file that
both go up wait for one another, which is a deadlock.

A new wait that closes a circle of threads that wait for one another would never end, nor would the others. Then the
one of the youngest process (the largest pid) is refused with EDEADLK, be it the caller or one that waited before. Whom
a wait is for is the thread that locked, or asked before, since that is who unlocks. Seen from another process it is
also each thread that was started under that lock, since a program mostly waits for these before it unlocks. A thread
that *joins* a child, waits for its end, waits for all that the child's threads wait for, for the same reason; it is
never refused, since its child is younger and waits as well.

Locks keep nobody from reading. What they keep from writing is asked by fs.py and work.py with `check_writer`. Every
method says whom it has answered, and the kernel wakes them (`kernel/sys_lock.py`); nobody waits who could go on.
Never add here: time, how processes end, how anybody is woken.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Mapping
from enum import Enum
from typing import NamedTuple, Protocol

from kvfs.openfile import OpenFile
from sdk.abi.errors import BadFile, Busy, Deadlock, SyscallError, TimedOut
from sdk.abi.values import LockMode

SHARED, EXCLUSIVE = LockMode


class TicketState(Enum):
    WAITING = "waiting"
    HELD = "held"
    GONE = "gone"


WAITING, HELD, GONE = TicketState


class Waiter(Protocol):
    """Somebody who waits for a ticket."""

    def answer(self) -> None:
        """It is held, or refused."""


class Ticket:
    """One request for a lock; when it was granted, the lock."""

    __slots__ = ("before", "error", "file", "lock", "mode", "number", "state", "thread", "under", "waiter")

    def __init__(
        self,
        file: OpenFile,
        mode: LockMode,
        thread: Hashable,
        number: int,
        lock: int | None = None,
        under: Collection[int] = (),
    ) -> None:
        self.file = file
        self.mode = mode
        self.thread = thread  # that asked
        self.under = under  # locks of its process that there were when the thread was started
        self.number = number  # grows: what came later is larger
        self.lock = number if lock is None else lock  # which lock it is, or will be: one that is converted stays it
        self.state = WAITING
        self.before: LockMode | None = None  # what the handle had when this was granted
        self.error: SyscallError | None = None  # why it was refused
        self.waiter: Waiter | None = None  # for the kernel; nothing here calls it

    @property
    def pid(self) -> int:
        return self.file.pid

    @property
    def ino(self) -> int:
        return self.file.inode.ino

    def excludes(self, other: "Ticket") -> bool:
        """Whether the two cannot be held at the same time."""
        return self.file is not other.file and EXCLUSIVE in (self.mode, other.mode)


class Join(NamedTuple):
    """A thread that waits for the end of a child of its process."""

    pid: int  # its own
    child: int
    under: Collection[int]  # as of a ticket


class FileLocks:
    """The locks of one file, and those who wait for one."""

    __slots__ = ("held", "queue")

    def __init__(self) -> None:
        self.held: dict[OpenFile, Ticket] = {}
        self.queue: deque[Ticket] = deque()

    def enqueue(self, ticket: Ticket) -> None:
        """In its place: first those who go up, then all others, both in the order in which they came."""

        def place(t: Ticket) -> tuple[bool, int]:
            return t.file not in self.held, t.number

        if not self.queue or place(self.queue[-1]) < place(ticket):
            self.queue.append(ticket)
        else:
            self.queue.insert(next(i for i, t in enumerate(self.queue) if place(t) > place(ticket)), ticket)

    def can_grant(self, ticket: Ticket) -> bool:
        """Whether the holders leave room for it."""
        return not any(ticket.excludes(held) for held in self.held.values())

    def waits(self) -> dict[Ticket, list[Ticket]]:
        """For each ticket of the queue all those, held or earlier, that it waits for."""
        earlier = list(self.held.values())
        found: dict[Ticket, list[Ticket]] = {}
        for ticket in self.queue:
            found[ticket] = [t for t in earlier if ticket.excludes(t)]
            earlier.append(ticket)
        return found

    def waits_next(self) -> dict[Ticket, list[Ticket]]:
        """The same without those whom one of the others waits for in turn: whoever can be reached by it is the same,
        and it has as many entries as there are tickets, not as their square."""
        found: dict[Ticket, list[Ticket]] = {}
        before_writer, before_reader = list(self.held.values()), list(self.held.values())
        for ticket in self.queue:
            if ticket.mode == EXCLUSIVE:
                found[ticket] = [t for t in before_writer if ticket.excludes(t)]
                kept = self.held.get(ticket.file)  # one that goes up does not wait for what it has
                before_writer, before_reader = [ticket, *([kept] if kept else [])], [ticket]
            else:
                found[ticket] = [t for t in before_reader if ticket.excludes(t)]
                before_writer.append(ticket)
        return found


Waits = Callable[[FileLocks], dict[Ticket, list[Ticket]]]
FREE = FileLocks()  # the locks of a file that nobody has locked


class Locks:
    """All locks. The attributes are for fsck and tests to read."""

    def __init__(self) -> None:
        self.files: dict[int, FileLocks] = {}  # by inode number; those that somebody has locked
        self.waiting: dict[Hashable, Ticket] = {}  # by thread: each waits for one
        self.n_held: Counter[Hashable] = Counter()  # by thread
        self.joins: dict[Hashable, Join] = {}  # by thread
        self._n_tickets = 0

    # --- asking ---

    def acquire(
        self,
        f: OpenFile,
        mode: LockMode,
        *,
        thread: Hashable,
        under: Collection[int] = (),
        wait: bool = True,
    ) -> tuple[Ticket, list[Ticket]]:
        """A ticket in the name of `f`: HELD, WAITING, or GONE with `error` set. And whose else is answered by it: of
        those whom a lock that became shared lets in, and of those who were refused to break a deadlock.

        `thread` is one of the process's, which is not waiting; `under` are the locks (`Ticket.lock`) of its process
        that it was started under. Raises BadFile, AccessDenied (an exclusive lock needs a handle for writing), Busy
        (another thread waits with this handle), TimedOut (without `wait`, when it is not free)."""
        inode = f.live() if mode == SHARED else f.writable()
        if self._waits_with(f) is not None:
            raise Busy("another thread waits for a lock with this handle: give each a handle of its own")
        locks = self.files.setdefault(inode.ino, FileLocks())
        held = locks.held.get(f)
        ticket = self._ticket(f, mode, thread, None if held is None else held.lock, under)
        if held is not None and held.mode in (mode, EXCLUSIVE):
            self._grant(locks, ticket)
            return ticket, self._advance(locks, inode.ino)
        locks.enqueue(ticket)
        self._advance(locks, inode.ino)
        if ticket.state is HELD:
            return ticket, []
        if not wait:
            locks.queue.remove(ticket)
            raise TimedOut(f"this file is locked by {self.holders(f)}")
        self.waiting[thread] = ticket
        return ticket, [t for t in self._break_deadlocks(ticket) if t is not ticket]

    def unlock(self, f: OpenFile) -> list[Ticket]:
        """Give the lock of a handle up; nothing happens if it has none. Returns who has one now. Raises BadFile."""
        ino = f.live().ino
        locks = self.files.get(ino)
        if locks is None or f not in locks.held:
            return []
        self._drop(locks, f)
        self._requeue(locks, f)
        return self._advance(locks, ino)

    def close(self, f: OpenFile) -> list[Ticket]:
        """The handle is about to be closed: its lock goes, and who waits for one with it is refused with EBADF.
        Returns who is answered. Raises BadFile."""
        ticket = self._waits_with(f)
        answered = [] if ticket is None else self._refuse(ticket, BadFile("this file was closed during the wait"))
        return answered + self.unlock(f)

    def cancel(self, ticket: Ticket) -> list[Ticket]:
        """Nobody wants this ticket any more: it ends, and if it was granted the handle has what it had before. Returns
        who is answered by that. Nothing happens if it has ended already: was refused, unlocked or converted."""
        if ticket.state is GONE:
            return []
        if ticket.state is WAITING:
            return self._leave(ticket)
        locks = self.files[ticket.ino]
        self._drop(locks, ticket.file)
        if ticket.before is not None:
            self._grant(locks, self._ticket(ticket.file, ticket.before, ticket.thread, ticket.lock))
        self._requeue(locks, ticket.file)
        return self._advance(locks, ticket.ino)

    def join(self, thread: Hashable, pid: int, child: int, under: Collection[int] = ()) -> list[Ticket]:
        """A thread of process `pid`, started under these locks, begins to wait for the end of a child. Returns who was
        refused or let in by that: what the child waits for may be the thread's own lock."""
        self.joins[thread] = Join(pid, child, under)
        graph = Graph(self.waiting, self.joins)
        return [t for ticket in graph.of_process(child) for t in self._break_deadlocks(ticket)]

    def joined(self, thread: Hashable) -> None:
        """It waits no more."""
        self.joins.pop(thread, None)

    # --- looking ---

    def mode_of(self, f: OpenFile) -> LockMode | None:
        """The lock that a handle has."""
        locks = self.files.get(f.inode.ino)
        held = None if locks is None else locks.held.get(f)
        return None if held is None else held.mode

    def is_held(self, ticket: Ticket) -> bool:
        """Whether the lock that somebody once asked for is held now, in whatever mode."""
        locks = self.files.get(ticket.ino)
        held = None if locks is None else locks.held.get(ticket.file)
        return held is not None and held.lock == ticket.lock

    def wanted_by(self, f: OpenFile) -> LockMode | None:
        """The lock that somebody waits for with this handle."""
        ticket = self._waits_with(f)
        return None if ticket is None else ticket.mode

    def holders(self, f: OpenFile) -> str:
        """Who else has a lock of this file, in words."""
        locks = self.files.get(f.inode.ino, FREE)
        others = [t for t in locks.held.values() if t.file is not f]
        if not others:
            return "nobody, but others asked before" if locks.queue else "nobody"
        pids = sorted({t.pid for t in others})
        return f"{'process' if len(pids) == 1 else 'processes'} {', '.join(map(str, pids))} ({others[0].mode})"

    def check_writer(self, f: OpenFile) -> None:
        """Raises Busy when another handle has this file exclusively."""
        locks = self.files.get(f.inode.ino, FREE)
        if any(t.mode == EXCLUSIVE and t.file is not f for t in locks.held.values()):
            raise Busy(f"this file is locked by {self.holders(f)}: wait for it with lock, or fork the file")

    # --- mechanism ---

    def _ticket(
        self, f: OpenFile, mode: LockMode, thread: Hashable, lock: int | None = None, under: Collection[int] = ()
    ) -> Ticket:
        self._n_tickets += 1
        return Ticket(f, mode, thread, self._n_tickets, lock, under)

    def _waits_with(self, f: OpenFile) -> Ticket | None:
        return next((t for t in self.files.get(f.inode.ino, FREE).queue if t.file is f), None)

    def _grant(self, locks: FileLocks, ticket: Ticket) -> None:
        """In the place of what the handle has."""
        if ticket.file in locks.held:
            ticket.before = self._drop(locks, ticket.file).mode
        ticket.state = HELD
        locks.held[ticket.file] = ticket
        self.n_held[ticket.thread] += 1

    def _drop(self, locks: FileLocks, f: OpenFile) -> Ticket:
        held = locks.held.pop(f)
        held.state = GONE
        self.n_held[held.thread] -= 1
        if not self.n_held[held.thread]:
            del self.n_held[held.thread]
        return held

    def _requeue(self, locks: FileLocks, f: OpenFile) -> None:
        """A handle may have lost its lock while another thread waited to go up from it: then that is a wait as any."""
        ticket = self._waits_with(f)
        if ticket is not None:
            locks.queue.remove(ticket)
            locks.enqueue(ticket)

    def _advance(self, locks: FileLocks, ino: int) -> list[Ticket]:
        """Grant what can be granted, in order."""
        granted = []
        while locks.queue and locks.can_grant(locks.queue[0]):
            ticket = locks.queue.popleft()
            self.waiting.pop(ticket.thread, None)  # it is not there when it is granted at once
            self._grant(locks, ticket)
            granted.append(ticket)
        if not locks.held:  # and so nobody waits
            del self.files[ino]
        return granted

    def _refuse(self, ticket: Ticket, error: SyscallError) -> list[Ticket]:
        ticket.error = error
        return [ticket, *self._leave(ticket)]

    def _leave(self, ticket: Ticket) -> list[Ticket]:
        locks = self.files[ticket.ino]
        locks.queue.remove(ticket)
        del self.waiting[ticket.thread]
        ticket.state = GONE
        return self._advance(locks, ticket.ino)

    # --- deadlocks ---

    def _break_deadlocks(self, ticket: Ticket) -> list[Ticket]:
        """Refuse one of each circle through a wait. Returns who is answered."""
        is_joined = any(join.child == ticket.pid for join in self.joins.values())
        if not self.n_held[ticket.thread] and not ticket.under and not is_joined:
            return []  # nobody waits for this thread who does not wait for whom it waits for anyway
        answered: list[Ticket] = []
        while ticket.state is WAITING and self.circle(ticket):
            circle = self.circle(ticket, FileLocks.waits)
            youngest = max(circle, key=lambda t: (t.pid, t.number))
            why = f"{self._story(circle)}: unlock what you have, and begin again"
            answered += self._refuse(youngest, Deadlock(why))
        return answered

    def _story(self, circle: list[Ticket]) -> str:
        graph = Graph(self.waiting, self.joins)
        joiners = {join.pid for join in self.joins.values() if not set(circle).isdisjoint(graph.of_process(join.child))}
        joining = joiners & {owner.pid for t in circle for owner in self.files[t.ino].waits()[t]}
        pids = sorted(joining | {t.pid for t in circle})
        if len(pids) == 1:
            return f"process {pids[0]} waits for a lock of its own"
        return f"processes {', '.join(map(str, pids))} wait for locks{' and ends' if joining else ''} of one another"

    def circle(self, start: Ticket, waits: Waits = FileLocks.waits_next) -> list[Ticket]:
        """A circle of waits through this one, the shortest if `waits` has all of them; empty when there is none.
        Breadth first."""
        of_file: dict[int, dict[Ticket, list[Ticket]]] = {}
        came_from: dict[Ticket, Ticket] = {}
        graph = Graph(self.waiting, self.joins)
        reached = deque([start])
        while reached:
            ticket = reached.popleft()
            if ticket.ino not in of_file:
                of_file[ticket.ino] = waits(self.files[ticket.ino])
            for owner in of_file[ticket.ino][ticket]:
                for next_ in graph.of_lock(owner, ticket.pid):
                    if next_ is start:
                        return _path(ticket, came_from)
                    if next_ not in came_from:
                        came_from[next_] = ticket
                        reached.append(next_)
        return []


class Graph:
    """What threads and processes wait for, at one moment."""

    def __init__(self, waiting: Mapping[Hashable, Ticket], joins: Mapping[Hashable, Join]) -> None:
        self._waiting = waiting
        self._joins = joins
        self._of_pid: dict[int, list[Ticket]] = {}
        self._children: dict[int, set[int]] = {}  # by pid: whom its threads join
        self._under: dict[int, list[Hashable]] = {}  # by lock: threads that were started under it, and wait
        for ticket in waiting.values():
            self._of_pid.setdefault(ticket.pid, []).append(ticket)
        for join in joins.values():
            self._children.setdefault(join.pid, set()).add(join.child)
        for waits in (waiting, joins):
            for thread, wait in waits.items():
                for lock in wait.under:
                    self._under.setdefault(lock, []).append(thread)

    def of_lock(self, lock: Ticket, seen_from: int) -> list[Ticket]:
        """What has to be answered before a lock is given back, as it looks to a process."""
        others = self._under.get(lock.lock, []) if lock.pid != seen_from else []
        return [ticket for thread in [lock.thread, *others] for ticket in self._of_thread(thread)]

    def _of_thread(self, thread: Hashable) -> list[Ticket]:
        if thread in self._waiting:
            return [self._waiting[thread]]
        return self.of_process(self._joins[thread].child) if thread in self._joins else []

    def of_process(self, pid: int) -> list[Ticket]:
        """What the threads of a process wait for, and of the children that they join in turn."""
        pids = [pid]  # children are younger, so this is a tree
        for parent in pids:
            pids += self._children.get(parent, ())
        return [ticket for each in pids for ticket in self._of_pid.get(each, ())]


def _path(ticket: Ticket, came_from: dict[Ticket, Ticket]) -> list[Ticket]:
    path = [ticket]
    while path[-1] in came_from:
        path.append(came_from[path[-1]])
    return path
