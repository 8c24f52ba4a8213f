"""Tiers: what could leave a device, and what it takes to move it. Facts for those who decide, plans of their decisions.

A page leaves the device with its last table. So what is gained by moving files away are the pages that nobody beside
them needs: all their holders are among those files, or are files that could not be used as they are anyway (not
RESIDENT, and no batch or move has them). The latter go along, since a page is in one place for all who share it. A
page that somebody else computes with stays, in the tables of those who leave too; it costs nothing to keep.

Of a file whose beginning is to stay, because it is pinned (`pins.py`) or for another reason of the caller's, only
the pages behind that leave; and whoever shares the beginning keeps it too. `kept` has the number of leading pages on
the device that stay, by inode number.

Host pages come back for all who share them at once, for the same reason.

Called by fs.py. Never add here: which files should go, or when. That is policy, and the kernel's.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

from kvfs.family import Families
from kvfs.inode import Inode, Residency
from kvfs.moves import Migration, Move, MoveKind
from kvfs.pages import PagePool
from kvfs.table import is_host
from sdk.abi.errors import Busy, CrossDevice, KernelPanic, NoSpace

Kept = Mapping[int, int]
NOTHING_KEPT: Kept = MappingProxyType({})


class FileFacts(NamedTuple):
    """What somebody who has to choose among files wants to know of one."""

    ino: int
    pids: tuple[int, ...]  # the processes that have it open; the kernel's own handles are 0
    n_tokens: int
    n_kv: int  # of those, how many have their KV in pages
    n_pages: int  # on the device
    n_host_pages: int
    claimed: bool
    n_leases: int  # batches in flight
    moving: bool
    used_s: float  # when it was last opened or forked, or a batch of it was committed
    tenant: str  # whose it is
    edited: bool = False  # computing its tokens again would give another KV
    n_durable: int = 0  # leading tokens whose KV is on disk as well


def facts(inode: Inode, n_durable: int = 0) -> FileFacts:
    return FileFacts(
        ino=inode.ino,
        pids=tuple(sorted(set(inode.pids))) if inode.pids else (),
        n_tokens=len(inode.tokens),
        n_kv=inode.n_kv,
        n_pages=len(inode.table) - inode.n_host,
        n_host_pages=inode.n_host,
        claimed=inode.claimed,
        n_leases=inode.n_leases,
        moving=inode.moving,
        used_s=max(inode.used_s, inode.modified_s),
        tenant=inode.tenant,
        edited=inode.edited is not None,
        n_durable=n_durable,
    )


def reclaimable(files: Sequence[Inode], families: Families, kept: Kept = NOTHING_KEPT) -> int:
    """Device pages that would be free if all these files left. Those that a batch or a move has stay as they are."""
    idle = [inode for inode in files if not inode.n_leases and not inode.moving]
    pool = _pool_of(idle)
    return len(_movable(pool, idle, _bystanders(pool, idle, families), kept)) if pool is not None else 0


def leaving(files: Sequence[Inode], families: Families, kept: Kept = NOTHING_KEPT) -> list[Inode]:
    """Those of the files that would bring a page, by themselves or together, if all of them left."""
    pool = _pool_of(files)
    if pool is None:
        return []
    pages = set(_movable(pool, files, _bystanders(pool, files, families), kept))
    return [inode for inode in files if not pages.isdisjoint(inode.table)]


def n_distinct(files: Iterable[Inode], *, in_host: bool = False) -> int:
    """Pages of one tier that these files of one device have, each once."""
    return len({entry for inode in files for entry in inode.table if is_host(entry) is in_host})


def n_leading(inode: Inode, n_kept: int) -> int:
    """How many leading entries of a file's table there are up to its `n_kept`th page on the device."""
    if not inode.n_host or not n_kept:
        return min(n_kept, len(inode.table))
    on_device = (i for i, entry in enumerate(inode.table, 1) if not is_host(entry))
    return next(islice(on_device, n_kept - 1, None), len(inode.table))


def swap_out(files: Sequence[Inode], families: Families, kept: Kept = NOTHING_KEPT) -> Move | None:
    """Move what these files alone need to host memory; None when that is nothing. Raises NoSpace with nothing
    changed; KernelPanic when a batch or a move has one of them."""
    _need_idle(files)
    pool = _pool_of(files)
    if pool is None:
        return None
    bystanders = _bystanders(pool, files, families)
    pages = _movable(pool, files, bystanders, kept)
    if not pages:
        return None
    entries = array("I", pages)
    moved = set(pages)
    members = [inode for inode in (*files, *bystanders) if not moved.isdisjoint(inode.table)]
    return Move(MoveKind.OUT, pool, entries, pool.host.alloc(len(entries)), members)


def swap_in(inode: Inode, families: Families) -> Move:
    """Move the host pages of a file back to its device, for all who share them. Raises NoSpace with nothing changed;
    Busy when a move has one of those files; KernelPanic when none of its pages is in host memory."""
    if inode.residency is Residency.MOVING:
        inode.need_resident()
    if not inode.n_host or inode.pool is None:
        raise inode.panic("none of its pages is in host memory, and they are to be moved back")
    entries = array("I", [entry for entry in inode.table if is_host(entry)])
    moved = set(entries)
    relatives = [other for other in families.of(inode) if other.pool is inode.pool]
    members = [other for other in relatives if other.n_host and not moved.isdisjoint(other.table)]
    if any(other.moving for other in members):
        raise Busy("a file that shares pages with this one is being moved: wait for the end of that")
    first = inode.table.index(entries[0])
    before = inode.table[first - 1] if first else None
    return Move(MoveKind.IN, inode.pool, entries, inode.pool.alloc(len(entries), after=before), members)


def migrate(files: Sequence[Inode], pool: PagePool) -> Migration:
    """Move the pages of these files to another device; those that others share are copied. A page goes to the tier
    that it is on, or to the other one where that is full. Raises NoSpace with nothing changed; KernelPanic when a batch
    or a move has one of them, when they are on no device, on several or there already; CrossDevice when the other
    device has pages of another size."""
    _need_idle(files)
    origin = files[0].pool if files else None
    for inode in files:
        if inode.pool is pool or inode.pool is not origin or origin is None:
            raise inode.panic(f"it cannot be migrated to {pool.name} as it is")
    if origin is None:
        raise KernelPanic("no file is to be migrated")
    if (n_longest := max(len(inode.table) for inode in files)) > pool.n_pages:
        raise NoSpace(f"a file has {n_longest} pages, and {pool.name} has {pool.n_pages}: it could never be used there")
    if origin.page_size != pool.page_size:
        raise CrossDevice(f"pages of {origin.name} do not fit {pool.name}: drop these files, and compute them there")
    entries = sorted(dict.fromkeys(entry for inode in files for entry in inode.table), key=is_host)
    n_below = max(sum(map(is_host, entries)), len(entries) - pool.n_free)
    n_below = min(n_below, pool.host.n_free)
    room = pool.alloc(len(entries) - n_below) + pool.host.alloc(n_below)
    return Migration(origin, array("I", entries), pool, room, list(files))


def _need_idle(files: Iterable[Inode]) -> None:
    for inode in files:
        if inode.n_leases or inode.moving:
            raise inode.panic("it is to be moved, and a batch or a move has it")


def _pool_of(files: Iterable[Inode]) -> PagePool | None:
    """The device that these files have their pages on; None when they have none. Raises KernelPanic on several."""
    pool = None
    for inode in files:
        if inode.table and inode.pool is not pool:
            if pool is not None:
                raise inode.panic(f"it is to be moved together with files on {pool.name}")
            pool = inode.pool
    return pool


def _bystanders(pool: PagePool, files: Sequence[Inode], families: Families) -> list[Inode]:
    """Relatives with pages on the same device that cannot be used as they are, and that nothing in flight has."""
    taken = {inode.ino for inode in files}
    found = []
    for number in dict.fromkeys(inode.family for inode in files):
        for other in families.members.get(number, {}).values():
            if other.ino in taken or other.pool is not pool or other.moving or other.n_leases:
                continue
            if other.residency is not Residency.RESIDENT:
                found.append(other)
    return found


def _movable(pool: PagePool, files: Sequence[Inode], bystanders: Sequence[Inode], kept: Kept) -> list[int]:
    """The device pages of these files that only they and the bystanders hold, file by file. A page that one of them
    keeps is held by that one, which does not give it up."""
    held: Counter[int] = Counter()
    for inode in (*files, *bystanders):
        held.update(inode.table[n_leading(inode, kept.get(inode.ino, 0)) :])
    own = dict.fromkeys(entry for inode in files for entry in inode.table[n_leading(inode, kept.get(inode.ino, 0)) :])
    return [entry for entry in own if not is_host(entry) and held[entry] == pool.refs[entry]]
