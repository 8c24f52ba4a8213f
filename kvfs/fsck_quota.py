"""fsck of quotas: bills say what is there, and nobody has more than he may have. Part of fsck.py."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from kvfs.directory import Directory
from kvfs.fs import Kvfs
from kvfs.inode import Inode
from kvfs.quota import Bill, Held


def check_bills(fs: Kvfs) -> Iterator[str]:
    users: defaultdict[str, list[Inode]] = defaultdict(list)
    processes: defaultdict[int, list[Inode]] = defaultdict(list)
    for inode in fs.files.values():
        yield from _check_file(fs, inode)
        users[inode.owner].append(inode)
        for pid in inode.holders:
            processes[pid].append(inode)
    n_directories = Counter(directory.owner for directory in _directories(fs))
    n_reserved: Counter[str] = Counter()
    for lease in fs.leases:
        n_reserved[lease.inode.owner] += lease.n_reserved
    for name, bill in fs.quotas.users.items():
        yield from _check_sum(bill, users[name], n_directories[name], n_reserved[name])
    for pid, bill in fs.quotas.processes.items():
        yield from _check_sum(bill, processes[pid], 0, 0)
    if gone := processes.keys() - fs.quotas.processes.keys():
        yield f"processes {sorted(gone)} have files open and no bill"


def _directories(fs: Kvfs) -> Iterator[Directory]:
    """All but the root, each once."""
    found, todo = {fs.names.root.ino}, [fs.names.root]
    while todo:
        for node in todo.pop().entries.values():
            if isinstance(node, Directory) and node.ino not in found:
                found.add(node.ino)
                todo.append(node)
                yield node


def _check_file(fs: Kvfs, inode: Inode) -> Iterator[str]:
    n = len(inode.table)
    held = Held(n - inode.n_host, inode.n_host, 0 if inode.pool is None else n * inode.pool.page_bytes)
    if inode.billed != held:
        yield f"file #{inode.ino}: it has {held}, and {inode.billed} is on its owner's bill"
    if fs.quotas.users.get(inode.owner) is not inode.bill:
        yield f"file #{inode.ino}: it belongs to {inode.owner!r} and is on the bill of {inode.bill.name}"
    if inode.holders.keys() != {pid for pid in inode.pids if pid}:
        yield f"file #{inode.ino}: open by {inode.pids}, and on the bills of {sorted(inode.holders)}"


def _check_sum(bill: Bill, files: list[Inode], n_directories: int, n_reserved: int) -> Iterator[str]:
    found = (bill.n_files, bill.n_pages, bill.n_host_pages, bill.n_bytes, bill.n_reserved)
    n_pages, n_host_pages, n_bytes = (sum(f.billed[i] for f in files) for i in range(3))
    if found != (len(files) + n_directories, n_pages, n_host_pages, n_bytes, n_reserved):
        summed = (len(files) + n_directories, n_pages, n_host_pages, n_bytes, n_reserved)
        yield f"{bill.name}: the bill says {found}, and it sums up to {summed} (files, pages, host, bytes, reserved)"
    allowed = bill.allowed
    if allowed.files is not None and bill.n_files > allowed.files:
        yield f"{bill.name}: {bill.n_files} files, and {allowed.files} are allowed"
    if allowed.pages is not None and bill.n_pages + bill.n_host_pages + bill.n_reserved > allowed.pages:
        yield f"{bill.name}: {bill.n_pages} + {bill.n_host_pages} pages, and {allowed.pages} are allowed"
