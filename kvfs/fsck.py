"""fsck: every invariant of the KV file system, as one function, and the counts that a leak would change.

Tests call `check` after every step, and the kernel when it is idle. It reads everything and changes nothing;
the time is proportional to what is there. The invariants, in words:

Pages (`check_pool`, `check_host_pool`)
  1. A page's reference count is the number of its holders: each file whose table has it, each lease that reads a tail
     or edits, each other lease for its fresh pages, and each move or migration for the pages at both of its ends.
  2. Free pages and used pages are all pages: `n_free` counts the pages without references.
  3. The free extents on file are exactly the maximal runs of free pages, each in the class of its length. Free host
     pages are on the stack once each.

Files (`check_file`, `check_holders`)
  4. A file has as many positions as tokens; its table covers the first `n_kv` of them exactly, and has no entry
     twice; `n_host` counts its host entries. A file without a device has no page.
  5. Only a file with tokens, and the K/V of all of them, has a valid tail. A file is edited from one of its tokens on.
  6. An inode that nobody holds is gone. `pids`, `n_leases`, `claimed` and `n_links` agree with the open handles,
     leases, claims and names that there are.

Sharing (`check_sharing`, `check_families`)
  7. In a page that two files share, their tokens and positions are the same as far as both go. It has the same place
     in both tables, with the same pages before it: files share beginnings, and beyond them only what is edited. They
     are of one family, and all families of two and more are known.
  8. A page that is being written in place is written by one claim, or one rebuild, and nobody needs what is
     overwritten: the K/V of others ends before the first new token; and no tail that is valid, or read by a lease, is
     where a batch in flight stores another.

Work in flight (`check_lease`, `check_claim`)
  9. A lease that is out is of a living inode, on its device, and uses no host page. Its table covers what it says,
     begins with the pages that it stands on, and ends with its fresh ones; its copies start from the last of those.
     An appending one stands on a resident file, or on the older one of its claim; one that rebuilds is alone, and
     begins where the file's K/V ends, unless the file was cut. One that edits has sources that are resident; its table
     is pages of those and its fresh ones, and its runs fill each slot of these once, from those.
 10. A claim is held, its inode is claimed, and its leases, two at most and in order, are out.

Moves (`check_transfer`, `check_members`)
 11. A transfer that is out has as many pages to copy from as to copy to, each once, on the tiers and devices it says.
 12. A file is MOVING exactly when it is a member of a transfer, of one; then no batch has it. Whoever has an old page
     of a move is a member. All pages of a file that migrates do.

Locks, processes (`fsck_locks.py`)
 13. A lock, and a wait for one, is of an open handle. Who has a file exclusively is alone. Nobody waits who is first
     and could have it, or for himself by way of others. Handles are of processes that there are.

Names (`check_names`)
 14. The directories are a tree; every path in it is within the limits and resolves to what is there.
 15. Every file that has a name is known, and no number stands for two things.

Devices (`check_devices`)
 16. A file is placed on a device that exists, which counts it.

Quotas (`fsck_quota.py`)
 17. Each file is on its owner's bill, and on that of each process that has it open, once, with the pages of its table.
 18. A bill adds up: its files and, for users, directories, their pages by tier, bytes, and the pages that leases in
     flight have reserved. It has no more files and pages, those reserved included, than are allowed.

Pins (`fsck_pins.py`)
 19. A pin is of a file that is there, and of an open handle, each of which has one at most, or has a time. Advice is on
     files that are there. No more of a device is kept than may be.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

from kvfs.access import KERNEL
from kvfs.cow import n_pages_for, overwrites_tail
from kvfs.directory import Directory
from kvfs.editing import EditLease
from kvfs.fs import Kvfs
from kvfs.fsck_locks import check_locks, check_processes
from kvfs.fsck_pins import check_pins
from kvfs.fsck_quota import check_bills
from kvfs.inode import Inode, Residency
from kvfs.lease import N_APPENDS, Claim, Lease, LeaseKind, LeaseState
from kvfs.loads import Load
from kvfs.moves import Migration, Move, MoveKind, Transfer, TransferState
from kvfs.pages import PagePool
from kvfs.table import PageTable, host_entry, is_host, n_host
from sdk.abi.errors import SyscallError


class Counts(NamedTuple):
    """What is held. All zero in an empty file system, and again when everything was given back."""

    pages: int  # used, on all devices
    host_pages: int
    inodes: int
    directories: int  # beside the root
    open_files: int
    claims: int
    leases: int
    transfers: int


def counts(fs: Kvfs) -> Counts:
    return Counts(
        pages=sum(pool.n_pages - pool.n_free for pool in fs.pools.values()),
        host_pages=sum(pool.n_host_used for pool in fs.pools.values()),
        inodes=len(fs.files),
        directories=fs.names.n_directories - 1,
        open_files=len(fs.open_files),
        claims=len(fs.claims),
        leases=len(fs.leases),
        transfers=len(fs.transfers),
    )


def check(fs: Kvfs, pids: Collection[int] | None = None) -> list[str]:
    """Every broken invariant, one line each; empty when all hold. `pids` are the processes that there are, if known."""
    return [
        *(line for pool in fs.pools.values() for line in check_pool(fs, pool)),
        *(line for pool in fs.pools.values() for line in check_host_pool(fs, pool)),
        *(line for inode in fs.files.values() for line in check_file(inode)),
        *check_holders(fs),
        *check_sharing(fs),
        *check_families(fs),
        *(line for lease in fs.leases for line in check_lease(fs, lease)),
        *(line for claim in fs.claims for line in check_claim(fs, claim)),
        *(line for transfer in fs.transfers for line in check_transfer(fs, transfer)),
        *check_members(fs),
        *check_locks(fs),
        *check_processes(fs, pids),
        *check_names(fs),
        *check_devices(fs),
        *check_bills(fs),
        *check_pins(fs),
    ]


# --- pages ---


def _held(fs: Kvfs, pool: PagePool) -> "Counter[int]":
    """Holders of each entry of a device, of both tiers."""
    held: Counter[int] = Counter()
    for inode in fs.files.values():
        if inode.pool is pool:
            held.update(inode.table)
    for lease in fs.leases:
        if lease.pool is pool:
            held.update(lease.pages if lease.kind in (LeaseKind.TAIL, LeaseKind.EDIT) else lease.fresh)
    for transfer in fs.transfers:
        if transfer.pool_from is pool:
            held.update(transfer.entries_from)
        if transfer.pool_to is pool:
            held.update(transfer.entries_to)
    return held


def check_pool(fs: Kvfs, pool: PagePool) -> Iterator[str]:
    held = _held(fs, pool)
    for page in sorted(held):
        if not is_host(page) and page >= pool.n_pages:
            yield f"{pool.name}: page {page} does not exist and is in a table"
    for page, n in enumerate(pool.refs):
        if n != held[page]:
            yield f"{pool.name}: page {page} counts {n} references and has {held[page]} holders"
    n_free = pool.refs.count(0)
    if pool.n_free != n_free:
        yield f"{pool.name}: {pool.n_free} pages are counted free and {n_free} are"
    filed = sorted(pool.extents())
    found = [(first, last, (last - first + 1).bit_length() - 1) for first, last in _free_runs(pool.refs)]
    if filed != found:
        yield f"{pool.name}: the free extents are {found}, on file are {filed} (first, last, class)"


def _free_runs(refs: list[int]) -> Iterator[tuple[int, int]]:
    first = None
    for page, n in enumerate([*refs, 1]):
        if n == 0 and first is None:
            first = page
        elif n and first is not None:
            yield first, page - 1
            first = None


def check_host_pool(fs: Kvfs, pool: PagePool) -> Iterator[str]:
    held, host = _held(fs, pool), pool.host
    for entry in sorted(held):
        if entry >= host_entry(host.n_pages):
            yield f"{pool.name}: host entry {entry:#x} does not exist and is in a table"
    for page, n in enumerate(host.refs):
        if n != held[host_entry(page)]:
            yield f"{pool.name}: host page {page} counts {n} references and has {held[host_entry(page)]} holders"
    if sorted(host.free) != [page for page, n in enumerate(host.refs) if not n]:
        yield f"{pool.name}: the free host pages are {sorted(host.free)}, and that is wrong"


# --- files ---


def check_file(inode: Inode) -> Iterator[str]:
    name = f"file #{inode.ino}"
    n_tokens, n_pages = len(inode.tokens), len(inode.table)
    if len(inode.positions) != n_tokens:
        yield f"{name}: {n_tokens} tokens with {len(inode.positions)} positions"
    if len(set(inode.table)) != n_pages:
        yield f"{name}: a page twice in the table {inode.table.tolist()}"
    if inode.n_kv > n_tokens:
        yield f"{name}: KV of {inode.n_kv} tokens, and there are {n_tokens}"
    if inode.pool is not None and n_pages != n_pages_for(inode.n_kv, inode.pool.page_size):
        yield f"{name}: {n_pages} pages of {inode.pool.page_size} for the KV of {inode.n_kv} tokens"
    if inode.pool is None and (n_pages or inode.n_kv):
        yield f"{name}: KV of {inode.n_kv} tokens in {n_pages} pages on no device"
    if inode.n_host != n_host(inode.table):
        yield f"{name}: {inode.n_host} of its pages are counted in host memory and {n_host(inode.table)} are"
    if inode.edited is not None and not 0 <= inode.edited.at < n_tokens:
        yield f"{name}: edited from token {inode.edited.at} of {n_tokens} on"
    if inode.tail_valid and not 0 < n_tokens == inode.n_kv:
        yield f"{name}: a valid tail of {n_tokens} tokens with the KV of {inode.n_kv}"


def check_holders(fs: Kvfs) -> Iterator[str]:
    pids: dict[int, list[int]] = {}
    for f in fs.open_files:
        pids.setdefault(f.inode.ino, []).append(f.pid)
    n_leases = Counter(inode.ino for lease in fs.leases for inode in lease.inodes)
    n_claims = Counter(claim.inode.ino for claim in fs.claims)
    for ino, inode in fs.files.items():
        if not inode.is_held:
            yield f"file #{ino}: nobody holds it and it is there"
        opened = sorted(pids.get(ino, []))
        if (sorted(inode.pids), inode.n_leases, int(inode.claimed)) != (opened, n_leases[ino], n_claims[ino]):
            yield (
                f"file #{ino}: says open by {inode.pids}, leases {inode.n_leases}, claimed {inode.claimed}; "
                f"there are {opened}, {n_leases[ino]} leases, {n_claims[ino]} claims"
            )
    for ino in (pids.keys() | n_leases.keys() | n_claims.keys()) - fs.files.keys():
        yield f"file #{ino}: is gone and somebody holds it"


# --- sharing ---

Holders = dict[tuple[str, int], list[tuple[Inode, int]]]  # (device, entry) → files that have it, and where
Writers = dict[tuple[str, int], Claim | Lease]  # (device, page) → who writes it in place


def check_sharing(fs: Kvfs) -> Iterator[str]:
    holders: Holders = {}
    for inode in fs.files.values():
        for index, entry in enumerate(inode.table):
            if inode.pool is not None:
                holders.setdefault((inode.pool.name, entry), []).append((inode, index))
    for (device, entry), held in holders.items():
        yield from _check_shared(f"{device}: page {entry:#x}", held)
    writers: Writers = {}
    for lease in fs.leases:
        is_cut = lease.kind is LeaseKind.REBUILD and not lease.inode.n_rebuilt  # what it writes is nobody's any more
        if lease.n_new and not is_cut:
            yield from _check_write(fs, lease, holders, writers)


def _check_shared(name: str, held: list[tuple[Inode, int]]) -> Iterator[str]:
    """One page against all files that have it, each with the place of the page in its table."""
    assert held[0][0].pool is not None
    size = held[0][0].pool.page_size
    a, i = max(held, key=lambda h: h[0].n_kv - h[1] * size)
    for b, j in held:
        is_edited = any(f.edited is not None and f.edited.at <= at * size for f, at in ((a, i), (b, j)))
        if not is_edited and (i != j or a.table[max(i - 1, 0) : i] != b.table[max(i - 1, 0) : i]):
            yield f"{name} is not of a common beginning of files #{a.ino} and #{b.ino}"
        n = min(size, b.n_kv - j * size)
        here, there = (slice(at * size, at * size + n) for at in (i, j))
        if a.tokens[here] != b.tokens[there] or a.positions[here] != b.positions[there]:
            yield f"{name} is shared by files #{a.ino} and #{b.ino}, which differ in their tokens"
        if a.family != b.family:
            yield f"{name} is shared by files #{a.ino} and #{b.ino}, which are no relatives"


def _check_write(fs: Kvfs, lease: Lease, holders: Holders, writers: Writers) -> Iterator[str]:
    """What the batch of a lease writes over."""
    first, last, me = lease.n_before // lease.pool.page_size, lease.pages[-1], f"for file #{lease.inode.ino}"
    for inode, _ in holders.get((lease.device, last), ()):
        if inode.tail_valid and overwrites_tail(lease.pages, lease.n_end, inode.table, inode.n_kv):
            yield f"{lease.device}: page {last} gets a tail {me} over that of file #{inode.ino}"
    for reader in fs.leases:
        read = reader.kind is LeaseKind.TAIL and reader.pool is lease.pool
        if read and overwrites_tail(lease.pages, lease.n_end, reader.pages, reader.n_before):
            yield f"{lease.device}: page {last} gets a tail {me} and a lease reads another there"
    for page in lease.pages[first : first + 1]:
        if page in lease.fresh:
            continue
        writer = lease.claim or lease
        if writers.setdefault((lease.device, page), writer) is not writer:
            yield f"{lease.device}: page {page} is written in place {me} and for somebody else"
        size, is_again = lease.pool.page_size, lease.n_again if lease.inode.edited is None else 0
        for inode, at in holders.get((lease.device, page), ()):
            if inode.n_kv - at * size > lease.n_before - first * size + is_again:
                yield f"{lease.device}: page {page} is written in place {me} and file #{inode.ino} needs what is there"


def check_families(fs: Kvfs) -> Iterator[str]:
    found: dict[int, dict[int, Inode]] = {}
    for ino, inode in fs.files.items():
        found.setdefault(inode.family, {})[ino] = inode
    known = fs.families.members
    for number in sorted(found.keys() | known.keys()):
        members = found.get(number, {})
        if known.get(number, {}) != (members if len(members) > 1 else {}):
            yield f"family {number} is {sorted(members)}, and is on record as {sorted(known.get(number, {}))}"


# --- work in flight ---


def check_lease(fs: Kvfs, lease: Lease) -> Iterator[str]:
    name, inode = f"lease on file #{lease.inode.ino}", lease.inode
    if lease.state is not LeaseState.OUT:
        yield f"{name}: is {lease.state.value} and counted as out"
    if inode.ino not in fs.files:
        yield f"{name}: the file is gone"
    if fs.pools.get(lease.device) is not lease.pool:
        yield f"{name}: its device {lease.device} is gone"
    n_end = len(lease.edit.tokens) if isinstance(lease, EditLease) else lease.n_end
    if len(lease.pages) != n_pages_for(n_end, lease.pool.page_size) or n_host(lease.pages):
        yield f"{name}: the pages {lease.pages.tolist()} for {lease.n_before} and {lease.n_new} tokens"
    if not lease.n_new == len(lease.tokens) == len(lease.positions):
        yield f"{name}: {lease.n_new} new tokens, {len(lease.tokens)} given with {len(lease.positions)} positions"
    if lease.kind is LeaseKind.TAIL:
        if lease.fresh or lease.copies:
            yield f"{name}: reads the tail and would write"
    elif lease.kind is LeaseKind.APPEND:
        yield from _check_append(name, lease)
    elif isinstance(lease, EditLease):
        yield from _check_edit(name, lease)
    elif inode.n_rebuilt:
        slots = slice(inode.n_kv, inode.n_rebuilt)
        if inode.n_leases != 1 or (lease.n_before, lease.n_end) != (inode.n_kv, inode.n_rebuilt):
            yield f"{name}: computes {lease.n_before} … {lease.n_end} again, beside others or other than it should"
        if (lease.tokens, lease.positions) != (inode.tokens[slots], inode.positions[slots]):
            yield f"{name}: computes other tokens again than the file has"
        yield from _check_pages(name, lease, inode.table)


def _check_append(name: str, lease: Lease) -> Iterator[str]:
    inode, claim = lease.inode, lease.claim
    if claim is None or lease not in claim.leases:
        yield f"{name}: its claim does not know it"
        return
    if not lease.n_new or (lease.chained and lease.n_new != 1):
        yield f"{name}: appends {lease.n_new} tokens, chained {lease.chained}"
    if inode.residency is not Residency.RESIDENT:
        yield f"{name}: the file is {inode.residency.value} under it"
    older = claim.leases[0]
    if older is not lease and lease.n_again:
        yield f"{name}: computes again what is not committed yet"
    table, n_end = (inode.table, len(inode.tokens)) if older is lease else (older.pages, older.n_end)
    if lease.n_before + lease.n_again != n_end or lease.pool is not inode.pool:
        yield f"{name}: the file has moved on under it"
    yield from _check_pages(name, lease, table)


def _check_edit(name: str, lease: EditLease) -> Iterator[str]:
    edit, size = lease.edit, lease.pool.page_size
    for source in edit.sources:
        if source.residency is not Residency.RESIDENT or source.pool is not lease.pool:
            yield f"{name}: its source #{source.ino} is {source.residency.value}, or elsewhere"
    if not edit.claim.is_held or lease.inode.moving:
        yield f"{name}: its target is moving, or not claimed"
    theirs = {page for source in edit.sources for page in source.table}
    if not theirs.issuperset(set(lease.pages) - set(lease.fresh)) or not theirs.isdisjoint(lease.fresh):
        yield f"{name}: its table is other than pages of its sources and fresh ones"
    read = {page for page, *_ in lease.runs}
    written = sorted((page, slot_to + i) for _, _, page, slot_to, n, _ in lease.runs for i in range(n))
    n_tokens, fresh = len(edit.tokens), set(lease.fresh)
    slots = [(p, i) for k, p in enumerate(lease.pages) for i in range(min(size, n_tokens - k * size)) if p in fresh]
    if not theirs.issuperset(read) or written != sorted(slots):
        yield f"{name}: its runs do not fill its fresh pages from those of its sources"


def _check_pages(name: str, lease: Lease, table: "PageTable[int]") -> Iterator[str]:
    """A lease against the table that it stands on."""
    if lease.pages != (table[:-1] if lease.copies else table) + lease.fresh:
        yield f"{name}: its table is not what it stands on with the fresh pages"
    if lease.copies and lease.copies != [(table[-1], lease.fresh[0])]:
        yield f"{name}: copies {lease.copies}, and the last page is {table[-1]}"


def check_claim(fs: Kvfs, claim: Claim) -> Iterator[str]:
    name = f"claim on file #{claim.inode.ino}"
    if not claim.is_held or not claim.inode.claimed or claim.inode.ino not in fs.files:
        yield f"{name}: is released, or its file is gone"
    if len(claim.leases) > N_APPENDS or any(x not in fs.leases or x.claim is not claim for x in claim.leases):
        yield f"{name}: of its {len(claim.leases)} leases one is not out, or it is one too many"


# --- moves ---


def check_transfer(fs: Kvfs, transfer: Transfer) -> Iterator[str]:
    name = f"move from {transfer.pool_from.name} to {transfer.pool_to.name}"
    if transfer.state is not TransferState.OUT:
        yield f"{name}: is {transfer.state.value} and counted as out"
    for pool, entries in ((transfer.pool_from, transfer.entries_from), (transfer.pool_to, transfer.entries_to)):
        if fs.pools.get(pool.name) is not pool:
            yield f"{name}: device {pool.name} is gone"
        n_paired = len(entries) if isinstance(transfer, Load) else len(transfer.entries_from)
        if len(set(entries)) != len(entries) or len(entries) != n_paired:
            yield f"{name}: {len(transfer.entries_from)} pages, and {len(set(entries))} different ones at one end"
    kind = transfer.kind if isinstance(transfer, Move) else None
    for entries, is_right in (
        (transfer.entries_from, kind is MoveKind.IN),
        (transfer.entries_to, kind is MoveKind.OUT),
    ):
        if not isinstance(transfer, Migration) and n_host(entries) != (len(entries) if is_right else 0):
            yield f"{name}: {n_host(entries)} of {len(entries)} pages at one end are in host memory"
    old = set(transfer.entries_from)
    for inode in fs.files.values():
        if inode.pool is not transfer.pool_from:
            continue
        if isinstance(transfer, Migration):
            if inode.ino in transfer.members and not old.issuperset(inode.table):
                yield f"{name}: file #{inode.ino} migrates with pages that do not"
        elif inode.ino not in transfer.members and not old.isdisjoint(inode.table):
            yield f"{name}: file #{inode.ino} has pages of it and is not a member"


def check_members(fs: Kvfs) -> Iterator[str]:
    n_moves = Counter(ino for transfer in fs.transfers for ino in transfer.members)
    for ino, inode in fs.files.items():
        if int(inode.moving) != n_moves[ino]:
            yield f"file #{ino}: says moving {inode.moving}, and is in {n_moves[ino]} moves"
        if inode.moving and inode.n_leases:
            yield f"file #{ino}: is moving and has {inode.n_leases} leases out"
    for transfer in fs.transfers:
        for ino, inode in transfer.members.items():
            if fs.files.get(ino) is not inode or inode.pool is not transfer.pool_from:
                yield f"file #{ino}: is in a move, and gone or on another device"


# --- names and devices ---


def check_names(fs: Kvfs) -> Iterator[str]:
    names = fs.names
    links: Counter[int] = Counter()
    directories = {names.root.ino}
    for path, node in names.walk(names.root):
        try:
            if names.find(path, KERNEL, 0.0) is not node:
                yield f"{path}: resolves to something else"
        except SyscallError as e:
            yield f"{path}: cannot be reached: {e}"
        if isinstance(node, Directory):
            if node.ino in directories:
                yield f"{path}: directory #{node.ino} is in the tree twice"
                return
            directories.add(node.ino)
        else:
            links[node.ino] += 1
            if fs.files.get(node.ino) is not node:
                yield f"{path}: names file #{node.ino}, which is gone"
    if len(directories) != names.n_directories:
        yield f"{names.n_directories} directories are counted and {len(directories)} are there"
    if both := directories & fs.files.keys():
        yield f"numbers {sorted(both)} stand for a directory and a file"
    for ino, inode in fs.files.items():
        if inode.ino != ino or inode.n_links != links[ino]:
            yield f"file #{ino}: says number {inode.ino} and {inode.n_links} links, it has {links[ino]} names"


def check_devices(fs: Kvfs) -> Iterator[str]:
    n_files = Counter(inode.pool.name for inode in fs.files.values() if inode.pool is not None)
    for inode in fs.files.values():
        if inode.pool is not None and fs.pools.get(inode.pool.name) is not inode.pool:
            yield f"file #{inode.ino}: is on device {inode.pool.name}, which is gone"
    for name, pool in fs.pools.items():
        if pool.n_files != n_files[name]:
            yield f"{name}: {pool.n_files} files are counted and {n_files[name]} are placed on it"
