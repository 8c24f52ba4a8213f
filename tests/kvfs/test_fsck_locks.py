"""Each invariant of locks is broken by hand once, and fsck must see it."""

from collections.abc import Callable

import pytest

from kvfs.access import OPERATOR
from kvfs.fs import Kvfs
from kvfs.fsck import check
from kvfs.locks import GONE, Ticket
from kvfs.openfile import OpenFile
from sdk.abi.values import LockMode, OpenMode

SHARED, EXCLUSIVE = LockMode.SHARED, LockMode.EXCLUSIVE


class Scene:
    """One file that 1 and 2 read and 3 and 4 wait for, and one that 3 has."""

    def __init__(self) -> None:
        self.fs = Kvfs()
        for path in ("/f", "/g"):
            self.fs.close(self.fs.create(path, who=OPERATOR, now=0.0), 0.0)
        self.files = [self.open("/f", pid) for pid in (1, 2, 3, 4)]
        self.other = self.open("/g", 3)
        self.lock(self.other, EXCLUSIVE)
        modes = [SHARED, SHARED, EXCLUSIVE, SHARED]
        self.tickets = [self.lock(f, mode) for f, mode in zip(self.files, modes, strict=True)]
        self.locks = self.fs.locks.files[self.files[0].inode.ino]

    def open(self, path: str, pid: int) -> OpenFile:
        return self.fs.open(path, OpenMode.WRITE, who=OPERATOR._replace(pid=pid), now=0.0)

    def lock(self, f: OpenFile, mode: LockMode) -> Ticket:
        return self.fs.lock(f, mode, thread=f.pid)[0]


def close_behind_its_back(s: Scene) -> None:
    s.fs.open_files.remove(s.files[1])
    s.files[1].close()


def forget_the_readers(s: Scene) -> None:
    for ticket in s.tickets[:2]:
        del s.locks.held[ticket.file]
    s.fs.locks.n_held.clear()
    s.fs.locks.n_held[3] = 1


def wait_in_a_circle(s: Scene) -> None:
    """As if nobody looked: 1 waits for what 3 has, which waits for what 1 has."""
    ticket = Ticket(s.open("/g", 1), EXCLUSIVE, 1, 99)
    s.fs.locks.files[s.other.inode.ino].queue.append(ticket)
    s.fs.locks.waiting[1] = ticket


BREAKS: dict[str, tuple[Callable[[Scene], object], str]] = {
    "a handle that is closed": (close_behind_its_back, "process 2 is there with a handle that is closed"),
    "a writer beside a reader": (lambda s: setattr(s.tickets[0], "mode", EXCLUSIVE), "held are exclusive, shared"),
    "a lock that nobody has": (forget_the_readers, "held are none"),
    "one who could go on": (lambda s: s.locks.queue.popleft(), "process 4 waits and could have it"),
    "a ticket that is no more": (lambda s: setattr(s.tickets[3], "state", GONE), "process 4 has a ticket that is gone"),
    "a wait that nobody knows": (lambda s: s.fs.locks.waiting.pop(4), "3 are held and 2 waited for"),
    "locks miscounted": (lambda s: s.fs.locks.n_held.update([1]), "which is not what is counted"),
    "a deadlock": (wait_in_a_circle, "process 1 waits for itself"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_fsck_sees(name: str) -> None:
    scene = Scene()
    assert check(scene.fs) == []
    damage, message = BREAKS[name]
    damage(scene)
    assert any(message in line for line in check(scene.fs)), check(scene.fs)


def test_handles_are_of_processes_that_there_are() -> None:
    scene = Scene()
    assert check(scene.fs, [1, 2, 3, 4, 5]) == []
    (line,) = check(scene.fs, [1, 2, 3])
    assert line.endswith("is open in process 4, which has ended")


def test_who_waits_for_a_child_is_there() -> None:
    scene = Scene()
    scene.fs.locks.join("a thread", 6, 7)
    assert check(scene.fs, [1, 2, 3, 4, 5, 6]) == []
    assert check(scene.fs, [1, 2, 3, 4, 5]) == ["process 6 has ended, and waits for its child 7"]
    scene.fs.locks.joined("a thread")
    assert check(scene.fs, [1, 2, 3, 4, 5]) == []
