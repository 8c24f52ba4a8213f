"""What all parts of the file system stand on: its state, its devices, and how an inode comes and goes.

The state is a handful of sets and dictionaries that `fsck.py` checks against one another. An inode is in `files`
exactly while somebody holds it (`inode.py`); whoever lets go of one calls `_reap` afterwards.

The file system is one class in three layers, each in a file: `Base` here, `Work` in work.py, `Kvfs` in fs.py. Never
add here: what programs or the batcher call, except for the devices.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from kvfs import lease as leases
from kvfs import moves
from kvfs.directory import Directory, Node
from kvfs.family import Families
from kvfs.inode import Inode
from kvfs.lease import Claim, Lease
from kvfs.locks import Locks
from kvfs.moves import Transfer
from kvfs.namespace import ROOT_INO, Namespace
from kvfs.openfile import OpenFile
from kvfs.pages import DeviceUsage, PagePool
from kvfs.pins import Pins
from kvfs.quota import Allowed, Quotas
from sdk.abi.errors import FileExists, KernelPanic, NoDevice, QuotaExceeded

Handle = OpenFile | Claim  # either will do to look at a file; a claim outlives the handle it was made with


class Base:
    """The state of the file system. The attributes are for fsck and tests to read; only the methods change them."""

    def __init__(
        self,
        *,
        max_files: int = 100_000,
        max_path: int = 255,
        max_depth: int = 16,
        max_pinned_share: float = 0.5,
        quotas: Mapping[str, Allowed] = MappingProxyType({}),
        now: float = 0.0,
        secret: bytes = b"",
    ) -> None:
        """At most `max_files` files and directories together; paths of `max_path` bytes and `max_depth` names; of a
        device's pages at most the share `max_pinned_share` pinned. `quotas` are limits of users by name. `now`: when
        the root directory is made. `secret`: see `seen.py`."""
        self.max_files = max_files
        self.pools: dict[str, PagePool] = {}
        self.quotas = Quotas(quotas)
        self.names = Namespace(
            max_path=max_path, max_depth=max_depth, new_ino=self._new_ino, bill_of=self.quotas.user, now=now
        )
        self.files: dict[int, Inode] = {}  # all that are held, with names or without
        self.open_files: set[OpenFile] = set()
        self.claims: set[Claim] = set()
        self.leases: set[Lease] = set()  # out
        self.transfers: dict[Transfer, None] = {}  # moves and migrations that are out, oldest first
        self.families = Families()
        self.pins = Pins(max_pinned_share)
        self.n_durable: Callable[[Inode], int] = lambda inode: 0  # tokens whose K/V is on disk; told by who saves them
        self.locks = Locks()
        self._secret = secret
        self._last_ino = ROOT_INO

    # --- devices ---

    def add_device(
        self, name: str, *, n_pages: int, page_size: int, n_host_pages: int = 0, page_bytes: int = 0
    ) -> None:
        """A worker has come; its pages 0 … n_pages-1 are ours to give, and so are those in its main memory. A page has
        `page_size` slots for tokens, and `page_bytes` bytes of K/V.

        Raises FileExists, InvalidArgument."""
        if name in self.pools:
            raise FileExists(f"device {name} is there already: remove it first")
        self.pools[name] = PagePool(name, n_pages, page_size, n_host_pages, page_bytes)

    def remove_device(self, name: str, *, now: float) -> None:
        """A worker is gone, and its pages. Its files are as they were, without KV and on no device; they can be
        placed on another and computed again. Leases, moves and migrations that are still out on it end here; their
        owners may abandon them, but need not. Files that were to migrate to it stay where they are.

        Raises NoDevice."""
        self.quotas.tell(now)
        pool = self._pool(name)
        for transfer in [t for t in self.transfers if pool in (t.pool_from, t.pool_to)]:
            moves.lose(transfer)
            del self.transfers[transfer]
        for lease in [lease for lease in self.leases if lease.pool is pool]:
            leases.lose(lease)
            self.leases.remove(lease)
        for inode in [inode for inode in self.files.values() if inode.pool is pool]:
            inode.leave()
            inode.note(f"device {name} removed", now)
            self._reap(inode)
        del self.pools[name]

    def devices(self) -> dict[str, DeviceUsage]:
        return {name: pool.usage() for name, pool in self.pools.items()}

    def _pool(self, name: str) -> PagePool:
        pool = self.pools.get(name)
        if pool is None:
            raise NoDevice(f"no device {name!r}: choose one of {sorted(self.pools)}")
        return pool

    # --- inodes ---

    def _new_ino(self) -> int:
        if len(self.files) + self.names.n_directories > self.max_files:  # the root is not counted
            raise QuotaExceeded(f"there are {self.max_files} files, as many as can be: unlink or close some")
        self._last_ino += 1
        return self._last_ino

    def restore(self, directory: Directory, name: str, node: Node) -> None:
        """Put back a file or directory that was kept on disk, under one of its names. For the start of a kernel: no
        right or limit is asked, and the number of the node is taken."""
        directory.entries[name] = node
        self._last_ino = max(self._last_ino, node.ino)
        if isinstance(node, Directory):
            self.names.n_directories += 1
            self.quotas.user(node.owner).n_files += 1
        else:
            node.n_links += 1
            if node.ino not in self.files:
                self._admit(node)

    def _admit(self, inode: Inode) -> None:
        """A file is there, and its owner pays for it."""
        self.files[inode.ino] = inode
        inode.bill = self.quotas.user(inode.owner)
        inode.bill.n_files += 1

    def _reap(self, inode: Inode) -> None:
        """Let go of an inode that nobody holds."""
        if not inode.is_held:
            self._leave(inode)
            self.families.leave(inode)
            self.pins.forget(inode)
            inode.bill.n_files -= 1
            del self.files[inode.ino]

    def _leave(self, inode: Inode) -> None:
        """Take a file off its device, and out of the move that has it."""
        self._leave_move(inode)
        inode.leave()

    def _leave_move(self, inode: Inode) -> None:
        if inode.moving:
            self._transfer_of(inode).leave(inode)

    def _transfer_of(self, inode: Inode) -> Transfer:
        return next(t for t in self.transfers if inode.ino in t.members)

    def _inodes(self, inos: Iterable[int]) -> list[Inode]:
        """Each once. Raises KernelPanic when there is no such file."""
        found = []
        for ino in dict.fromkeys(inos):
            inode = self.files.get(ino)
            if inode is None:
                raise KernelPanic(f"there is no file #{ino}")
            found.append(inode)
        return found
