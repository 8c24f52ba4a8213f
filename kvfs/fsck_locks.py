"""fsck of who has what: locks, the waits for them, and the processes that files are open in. Part of fsck.py."""

from collections import Counter
from collections.abc import Collection, Hashable, Iterator

from kvfs.fs import Kvfs
from kvfs.locks import HELD, WAITING, FileLocks, Ticket
from sdk.abi.values import LockMode


def check_locks(fs: Kvfs) -> Iterator[str]:
    held: Counter[Hashable] = Counter()
    waiting: dict[Hashable, Ticket] = {}
    for ino, locks in fs.locks.files.items():
        yield from check_file_locks(fs, ino, locks)
        held.update(t.thread for t in locks.held.values())
        waiting |= {t.thread: t for t in locks.queue}
    if held != fs.locks.n_held or waiting != fs.locks.waiting:
        yield f"locks: {held.total()} are held and {len(waiting)} waited for, which is not what is counted"
    for ticket in waiting.values():
        if fs.locks.circle(ticket):
            yield f"locks of file #{ticket.ino}: process {ticket.pid} waits for itself"


def check_file_locks(fs: Kvfs, ino: int, locks: FileLocks) -> Iterator[str]:
    name, queue = f"locks of file #{ino}", locks.queue
    modes = [t.mode for t in locks.held.values()]
    if not modes or (len(modes) > 1 and LockMode.EXCLUSIVE in modes):
        yield f"{name}: held are {', '.join(modes) or 'none'}"
    if queue and locks.can_grant(queue[0]):
        yield f"{name}: process {queue[0].pid} waits and could have it"
    for ticket, state in [*((t, HELD) for t in locks.held.values()), *((t, WAITING) for t in queue)]:
        if ticket.file not in fs.open_files or ticket.ino != ino:
            yield f"{name}: process {ticket.pid} is there with a handle that is closed, or of another file"
        if ticket.state is not state:
            yield f"{name}: process {ticket.pid} has a ticket that is {ticket.state.value}, where it is {state.value}"


def check_processes(fs: Kvfs, pids: Collection[int] | None) -> Iterator[str]:
    for f in fs.open_files:
        if pids is not None and f.pid and f.pid not in pids:  # 0 is the kernel itself
            yield f"file #{f.inode.ino}: is open in process {f.pid}, which has ended"
    for join in fs.locks.joins.values():
        if pids is not None and join.pid not in pids:
            yield f"process {join.pid} has ended, and waits for its child {join.child}"
