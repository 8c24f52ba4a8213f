"""fsck: every invariant of the KV file system, as one function, and the counts that a leak would change.

Tests call `check` after every step, and the kernel when it is idle. It reads everything and changes nothing;
the time is proportional to what is there. The invariants, in words:

Pages (`check_pool`)
  1. A page's reference count is the number of tables that hold it: one for each file whose table has it, one for
     each tail lease, and one for the fresh pages of an appending lease.
  2. Free pages and used pages are all pages: `n_free` counts the pages without references.
  3. The free extents on file are exactly the maximal runs of free pages, each in the class of its length.

Files (`check_file`, `check_holders`)
  4. A file has as many positions as tokens; its table covers them exactly, and has no page twice. A file without
     a device has no page; a lost one has tokens, and none of its pages can be leased.
  5. Only a file with tokens has a valid tail; a lost one has none.
  6. An inode that nobody holds is gone. `n_open`, `n_leases`, `claimed` and `n_links` are the numbers of open
     handles, leases, claims and names that there are.

Sharing (`check_sharing`)
  7. A page that two files share has the same place in both tables, with the same pages before it: files share
     beginnings. As far as both go, their tokens and positions are the same.
  8. A page that is being written in place is written by one, and nobody needs what is overwritten: files that
     came to share it since end before the first new token and have no tail; no lease reads its tail.

Work in flight (`check_lease`)
  9. A lease that is out is of a living inode, on its device, at its present length; its table covers what it
     says, begins with the file's pages, and ends with its fresh ones; its copies start from the file's last page.
 10. A claim is held, its inode is claimed, and its lease is one of those that are out.

Names (`check_names`)
 11. The directories are a tree; every path in it is within the limits and resolves to what is there.
 12. Every file that has a name is known, and no number stands for two things.

Devices (`check_devices`)
 13. A file is placed on a device that exists, which counts it.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from kvfs.cow import n_pages_for
from kvfs.fs import Kvfs
from kvfs.inode import Inode
from kvfs.lease import Claim, Lease, LeaseState
from kvfs.namespace import Directory
from kvfs.pages import PagePool
from sdk.abi.errors import SyscallError


class Counts(NamedTuple):
    """What is held. All zero in an empty file system, and again when everything was given back."""

    pages: int  # used, on all devices
    inodes: int
    directories: int  # beside the root
    open_files: int
    claims: int
    leases: int


def counts(fs: Kvfs) -> Counts:
    return Counts(
        pages=sum(pool.n_pages - pool.n_free for pool in fs.pools.values()),
        inodes=len(fs.files),
        directories=fs.names.n_directories - 1,
        open_files=len(fs.open_files),
        claims=len(fs.claims),
        leases=len(fs.leases),
    )


def check(fs: Kvfs) -> list[str]:
    """Every broken invariant, one line each; empty when all hold."""
    return [
        *(line for pool in fs.pools.values() for line in check_pool(fs, pool)),
        *(line for inode in fs.files.values() for line in check_file(inode)),
        *check_holders(fs),
        *check_sharing(fs),
        *(line for lease in fs.leases for line in check_lease(fs, lease)),
        *(line for claim in fs.claims for line in check_claim(fs, claim)),
        *check_names(fs),
        *check_devices(fs),
    ]


def check_pool(fs: Kvfs, pool: PagePool) -> Iterator[str]:
    held: Counter[int] = Counter()
    for inode in fs.files.values():
        if inode.pool is pool:
            held.update(inode.table)
    for lease in fs.leases:
        if lease.pool is pool:
            held.update(lease.pages if lease.claim is None else lease.fresh)
    for page in held.keys() - range(pool.n_pages):
        yield f"{pool.name}: page {page} does not exist and is in a table"
    for page, n in enumerate(pool.refs):
        if n != held[page]:
            yield f"{pool.name}: page {page} counts {n} references and {held[page]} tables hold it"
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


def check_file(inode: Inode) -> Iterator[str]:
    name = f"file #{inode.ino}"
    n_tokens, n_pages = len(inode.tokens), len(inode.table)
    if len(inode.positions) != n_tokens:
        yield f"{name}: {n_tokens} tokens with {len(inode.positions)} positions"
    if len(set(inode.table)) != n_pages:
        yield f"{name}: a page twice in the table {inode.table.tolist()}"
    if inode.pool is not None and n_pages != n_pages_for(n_tokens, inode.pool.page_size):
        yield f"{name}: {n_pages} pages of {inode.pool.page_size} for {n_tokens} tokens"
    if inode.pool is None and (n_pages or (n_tokens and not inode.lost)):
        yield f"{name}: {n_tokens} tokens in {n_pages} pages on no device, lost {inode.lost}"
    if inode.lost and not n_tokens:
        yield f"{name}: lost without a token"
    if inode.tail_valid and (inode.lost or not n_tokens):
        yield f"{name}: a valid tail of {n_tokens} tokens, lost {inode.lost}"


def check_holders(fs: Kvfs) -> Iterator[str]:
    n_open = Counter(f.inode.ino for f in fs.open_files)
    n_leases = Counter(lease.inode.ino for lease in fs.leases)
    n_claims = Counter(claim.inode.ino for claim in fs.claims)
    for ino, inode in fs.files.items():
        if not inode.is_held:
            yield f"file #{ino}: nobody holds it and it is there"
        if (inode.n_open, inode.n_leases, int(inode.claimed)) != (n_open[ino], n_leases[ino], n_claims[ino]):
            yield (
                f"file #{ino}: says open {inode.n_open}, leases {inode.n_leases}, claimed {inode.claimed}; "
                f"there are {n_open[ino]} handles, {n_leases[ino]} leases, {n_claims[ino]} claims"
            )
    for ino in (n_open.keys() | n_leases.keys() | n_claims.keys()) - fs.files.keys():
        yield f"file #{ino}: is gone and somebody holds it"


def check_sharing(fs: Kvfs) -> Iterator[str]:
    holders: dict[tuple[str, int], list[tuple[Inode, int]]] = {}
    for inode in fs.files.values():
        for index, page in enumerate(inode.table):
            if inode.pool is not None:
                holders.setdefault((inode.pool.name, page), []).append((inode, index))
    for (device, page), held in holders.items():
        yield from _check_shared(f"{device}: page {page}", held)
    for lease in fs.leases:
        if lease.claim is None or lease.copies or lease.n_before >= len(lease.inode.table) * lease.pool.page_size:
            continue  # writes no page that was there before
        for page in lease.inode.table[-1:]:
            name = f"{lease.device}: page {page} is written in place for file #{lease.inode.ino}"
            for inode, _ in holders.get((lease.device, page), ()):
                if len(inode.tokens) > lease.n_before + lease.n_again or inode.tail_valid:
                    yield f"{name} and file #{inode.ino} needs what is there"
            readers = [reader for reader in fs.leases if reader.claim is None and reader.pool is lease.pool]
            if any(reader.pages[-1] == page for reader in readers):
                yield f"{name} and a lease reads its tail"


def _check_shared(name: str, held: list[tuple[Inode, int]]) -> Iterator[str]:
    """One page against all files that have it, each with the place of the page in its table."""
    a, i = max(held, key=lambda h: len(h[0].tokens))
    for b, j in held:
        if i != j or a.table[max(i - 1, 0) : i] != b.table[max(i - 1, 0) : i]:
            yield f"{name} is not of a common beginning of files #{a.ino} and #{b.ino}"
            continue
        assert b.pool is not None
        slots = slice(i * b.pool.page_size, min(len(b.tokens), (i + 1) * b.pool.page_size))
        if a.tokens[slots] != b.tokens[slots] or a.positions[slots] != b.positions[slots]:
            yield f"{name} is shared by files #{a.ino} and #{b.ino}, which differ in their tokens"


def check_lease(fs: Kvfs, lease: Lease) -> Iterator[str]:
    name, inode = f"lease on file #{lease.inode.ino}", lease.inode
    if lease.state is not LeaseState.OUT:
        yield f"{name}: is {lease.state.value} and counted as out"
    if inode.ino not in fs.files:
        yield f"{name}: the file is gone"
    if fs.pools.get(lease.device) is not lease.pool:
        yield f"{name}: its device {lease.device} is gone"
    if len(lease.pages) != n_pages_for(lease.n_before + lease.n_new, lease.pool.page_size):
        yield f"{name}: {len(lease.pages)} pages for {lease.n_before} and {lease.n_new} tokens"
    if not lease.n_new == len(lease.tokens) == len(lease.positions):
        yield f"{name}: {lease.n_new} new tokens, {len(lease.tokens)} given with {len(lease.positions)} positions"
    if lease.claim is None:
        if lease.n_new or lease.fresh or lease.copies:
            yield f"{name}: reads the tail and would write"
        return
    if not lease.n_new:
        yield f"{name}: appends nothing"
    if lease.claim.lease is not lease or lease.claim not in fs.claims:
        yield f"{name}: its claim does not know it"
    if lease.n_before + lease.n_again != len(inode.tokens) or lease.pool is not inode.pool:
        yield f"{name}: the file has moved on under it"
    kept = inode.table[:-1] if lease.copies else inode.table
    if lease.pages != kept + lease.fresh:
        yield f"{name}: its table is not the file's with the fresh pages"
    if lease.copies and lease.copies != [(inode.table[-1], lease.fresh[0])]:
        yield f"{name}: copies {lease.copies}, and the last page is {inode.table[-1]}"


def check_claim(fs: Kvfs, claim: Claim) -> Iterator[str]:
    name = f"claim on file #{claim.inode.ino}"
    if not claim.is_held or not claim.inode.claimed or claim.inode.ino not in fs.files:
        yield f"{name}: is released, or its file is gone"
    if claim.lease is not None and (claim.lease not in fs.leases or claim.lease.claim is not claim):
        yield f"{name}: its lease is not out"


def check_names(fs: Kvfs) -> Iterator[str]:
    names = fs.names
    links: Counter[int] = Counter()
    directories = {names.root.ino}
    for path, node in names.walk(names.root):
        try:
            if names.find(path) is not node:
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
