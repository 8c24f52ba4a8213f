"""What the model of kvfs knows, and the devices."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
)

from kvfs.access import OPERATOR, RWX, W, Who, X
from kvfs.fs import Kvfs
from kvfs.fsck import counts
from kvfs.inode import Residency
from kvfs.lease import Claim, LeaseState
from kvfs.locks import Ticket
from kvfs.moves import Transfer
from kvfs.openfile import OpenFile
from kvfs.quota import UNLIMITED, Allowed
from kvfs.table import is_host
from sdk.abi.errors import (
    AccessDenied,
    FileExists,
    FileNotFound,
    IsADirectory,
    NotADirectory,
    QuotaExceeded,
    SyscallError,
)
from sdk.abi.values import LockMode

PAGE_SIZE = 3
N_FILES = 8
N_PAGES = 9
N_HOST_PAGES = 5
PATHS = ["/a", "/a", "/a", "/b", "/b", "/b", "/c", "/d/a", "~/a", "/tmp/a", "/shared/a"]
DIRECTORIES = ["/d", "/d/e", "~/d"]
Slot = tuple[int, int]  # a token and its position
PICK = st.integers(0, 1000)
USERS = {
    "ann": Who("ann", ("acme", "team"), pid=1),
    "bob": Who("bob", ("acme", "team"), pid=2, umask=0o027),
    "eve": Who("eve", ("crew",), pid=3),
    "mia": Who("mia", ("moon", "crew"), tenant="moon", pid=4),
    OPERATOR.user: OPERATOR,
}
ANN = USERS["ann"]
WHO = st.sampled_from([ANN, ANN, *USERS.values()])
GROUPS = [None, "acme", "team", "crew"]
MODES = st.sampled_from([0o777, 0o777, 0o666, 0o666, 0o755, 0o750, 0o711, 0o700, 0o733, 0o577, 0o077, 0o007])
QUOTAS = {"ann": Allowed(files=8, pages=11), "eve": Allowed(files=4, pages=3)}  # two of the files are ~ and /tmp
N_OPEN = {ANN.pid: 5}  # files that a process may have open
CHOSEN = st.sets(st.integers(-2, 2), min_size=1)  # files, by their place in some list
FEW = st.sampled_from([1, 1, 1, 2, 2, 3, 4, 7, 12])


@dataclass(eq=False)
class File:
    """What the model knows of a file."""

    owner: str
    group: str
    mode: int
    tenant: str = ""
    slots: list[Slot] = field(default_factory=list)
    origins: list[frozenset[Any]] = field(default_factory=list)  # of each token with KV: the flights it is there by
    tail_gone: bool = False  # until the next commit
    device: str | None = None
    ino: int = 0
    n_links: int = 0
    n_open: int = 0
    n_leases: int = 0
    claimed: bool = False
    family: object = field(default_factory=object)
    rebuild: Any = None  # the flight that computes its tokens again
    transfer: Transfer | None = None
    edited: "Edited | None" = None

    @property
    def is_held(self) -> bool:
        return bool(self.n_links + self.n_open + self.n_leases or self.claimed)

    @property
    def is_whole(self) -> bool:
        return len(self.origins) == len(self.slots)

    def lose(self, n_kv: int) -> None:
        del self.origins[n_kv:]
        self.rebuild = None
        self.tail_gone = True


@dataclass(eq=False)
class Edited:
    """K/V from a token on that was computed in another context. Files that have the same one share it."""

    at: int


@dataclass(eq=False)
class Directory:
    owner: str
    group: str
    mode: int


Node = File | Directory
Refusal = type[SyscallError] | None


@dataclass(eq=False)
class Pin:
    """What a handle said of where the beginning of its file should stay, and until when."""

    handle: OpenFile | None  # None: it is closed
    file: File
    tenant: str
    n_pages: int
    until_s: float
    is_named: bool


def top_of(who: Who) -> str:
    """The real path of what a caller sees as the root."""
    return f"/tenants/{who.tenant}" if who.tenant else ""


class State(RuleBasedStateMachine):
    simulated: SimpleNamespace
    undo: Callable[[Kvfs], None]

    def __init__(self) -> None:
        super().__init__()
        self.fs = Kvfs(quotas=QUOTAS)
        self.now = 0.0
        self.next_token = 0
        self.devices: dict[str, Any] = {}
        self.shadows: dict[str, Any] = {}
        self.files: dict[int, File] = {}
        self.nodes: dict[str, Node] = {"": Directory("kernel", "kernel", 0o755)}  # by their paths from the real root
        self.handles: list[tuple[OpenFile, File]] = []
        self.rights: dict[OpenFile, int] = {}  # of handles
        self.claims: list[tuple[Claim, File]] = []
        self.flights: list[Any] = []  # out
        self.early: list[Any] = []  # committed before their batch has run
        self.shifts: list[Any] = []  # moves that are out
        self.shipments: list[Any] = []  # migrations that are out
        self.orphans: list[Callable[[], None]] = []  # how to abandon what remove_device ended
        self.locked: dict[OpenFile, Ticket] = {}
        self.waiting: list[Ticket] = []
        self.pins: list[Pin] = []  # oldest first
        self.add_device("w0")
        for who in USERS.values():
            self.settle_in(who)
        self.nodes["/shared"] = Directory(OPERATOR.user, OPERATOR.group, 0o755)
        for path in ("/", "/shared"):
            self.fs.chmod(path, 0o777, who=OPERATOR, now=0.0)
            self.nodes[path.rstrip("/")].mode = 0o777

    # --- what the machine is made of ---

    def attempt(self, expected: Refusal, call: Callable[[], object]) -> bool:
        """Do it, or see it refused as expected with nothing changed. True when done."""
        self.now += 1
        if expected is None:
            call()
            return True
        before = self.snapshot()
        with pytest.raises(expected):
            call()
        assert self.snapshot() == before
        return False

    def snapshot(self) -> object:
        files = [
            (f.stat(), f.tokens.tolist(), f.table.tolist(), f.n_kv, f.tail_valid, f.claimed, f.n_leases, f.moving)
            for f in self.fs.files.values()
        ]
        pools = [(list(p.refs), sorted(p.extents()), p.usage(), list(p.host.free)) for p in self.fs.pools.values()]
        bills = [
            (b.n_files, b.n_pages, b.n_host_pages, b.n_reserved) for b in self.fs.quotas.users.values() if b.n_files
        ]
        paths = [path for path, _ in self.fs.names.walk(self.fs.names.root)]
        locks = [(ino, list(x.held.values()), list(x.queue)) for ino, x in self.fs.locks.files.items()]
        return files, pools, bills, counts(self.fs), paths, locks, list(self.fs.pins.pins)

    def reap(self, file: File) -> None:
        if not file.is_held:
            self.files = {ino: f for ino, f in self.files.items() if f is not file}
            self.pins = [pin for pin in self.pins if pin.file is not file]

    def opened(self, f: OpenFile, file: File, rights: int) -> None:
        self.files[f.inode.ino] = file
        file.ino = f.inode.ino
        file.n_open += 1
        self.handles.append((f, file))
        self.rights[f] = rights

    def answered(self, tickets: list[Ticket], closed: OpenFile | None = None) -> None:
        """Somebody's waits for locks have ended, with a lock or without; and so have the locks of a closed handle."""
        if closed is not None:
            self.locked.pop(closed, None)
        for ticket in tickets:
            self.waiting.remove(ticket)
            if ticket.error is None:
                self.locked[ticket.file] = ticket

    def is_locked(self, f: OpenFile) -> bool:
        """Whether another handle has the file exclusively."""
        return any(t.mode == LockMode.EXCLUSIVE for g, t in self.locked.items() if g is not f and g.inode is f.inode)

    # --- paths: each tenant sees a part of the tree as the whole ---

    def settle_in(self, who: Who) -> None:
        """Where the paths of a user begin is made when it is first needed."""
        top = top_of(who)
        for path in ("/", "~", "/tmp") if who.pid else ("/", "~"):
            self.fs.stat(path, who=who, now=self.now)
        if top:
            self.nodes.setdefault("/tenants", Directory(OPERATOR.user, OPERATOR.group, 0o755))
            self.nodes.setdefault(top, Directory(OPERATOR.user, who.tenant, 0o775))
        for name in ("home", "tmp") if who.pid else ("home",):
            self.nodes.setdefault(f"{top}/{name}", Directory(OPERATOR.user, OPERATOR.group, 0o755))
            own = f"{top}/{name}/{who.user if name == 'home' else who.pid}"
            self.nodes.setdefault(own, Directory(who.user, who.group, 0o700))
        if who.pid in N_OPEN:
            self.fs.quotas.process(who.pid).allowed = Allowed(files=N_OPEN[who.pid])

    def start(self, path: str, who: Who) -> tuple[str, list[str]]:
        """The directory that a path begins in, and the names that are left."""
        first, *rest = path.strip("/").split("/")
        top = top_of(who)
        if first == "~":
            return f"{top}/home/{who.user}", rest
        if first == "tmp" and who.pid:
            return f"{top}/tmp/{who.pid}", rest
        if first == "shared" and top:
            return "/shared", rest
        return top, [first, *rest] if first else []

    def real(self, path: str, who: Who) -> str:
        start, names = self.start(path, who)
        return "/".join([start, *names])

    def node(self, path: str, who: Who) -> Node | None:
        return self.nodes.get(self.real(path, who))

    def allowed(self, who: Who, node: Node | None) -> int:
        """The bits of the class that somebody is in."""
        assert node is not None
        if who.root:
            return RWX
        shift = 6 if who.user == node.owner else 3 if node.group in who.groups else 0
        return node.mode >> shift & 7

    def no_way(self, path: str, who: Who) -> Refusal:
        """Why the directory of a path cannot be reached, or not be passed."""
        at, names = self.start(path, who)
        for name in names[:-1]:
            if not self.allowed(who, self.nodes[at]) & X:
                return AccessDenied
            at = f"{at}/{name}"
            if at not in self.nodes:
                return FileNotFound
            if isinstance(self.nodes[at], File):
                return NotADirectory
        return None if self.allowed(who, self.nodes[at]) & X or not names else AccessDenied

    def no_write(self, path: str, who: Who) -> Refusal:
        directory, _, _ = self.real(path, who).rpartition("/")
        return None if self.allowed(who, self.nodes[directory]) & W else AccessDenied

    def no_vacancy(self, path: str | None, who: Who) -> Refusal:
        if path is None:
            return None
        return self.no_way(path, who) or (FileExists if self.node(path, who) else None) or self.no_write(path, who)

    def no_node(self, path: str, who: Who) -> Refusal:
        return self.no_way(path, who) or (None if self.node(path, who) else FileNotFound)

    def no_file(self, path: str, who: Who) -> Refusal:
        return self.no_node(path, who) or (IsADirectory if isinstance(self.node(path, who), Directory) else None)

    # --- limits ---

    def n_open(self, who: Who) -> int:
        """Files that a process has open."""
        return len({id(file) for f, file in self.handles if f.pid == who.pid})

    def no_handle(self, who: Who, file: File | None = None) -> Refusal:
        """Whether a process may not have one more file open."""
        has_it = any(f.pid == who.pid and x is file for f, x in self.handles)
        return QuotaExceeded if who.pid in N_OPEN and not has_it and self.n_open(who) >= N_OPEN[who.pid] else None

    def used(self, user: str) -> tuple[int, int, int]:
        """Files and directories, pages in the tables of files, and pages that batches in flight bring."""
        files = [f for f in self.files.values() if f.owner == user]
        n_directories = sum(isinstance(node, Directory) and node.owner == user for node in self.nodes.values())
        n_reserved = sum(flight.n_more for flight in self.flights if flight.file.owner == user)
        return len(files) + n_directories, sum(len(self.table(f)) for f in files), n_reserved

    def no_quota(self, who: Who, n_pages: int, *, n_files: int = 0) -> Refusal:
        limits = QUOTAS.get(who.user, UNLIMITED)
        held, in_tables, reserved = self.used(who.user)
        over = limits.files is not None and held + n_files > limits.files and n_files
        over = over or (limits.pages is not None and n_pages > 0 and in_tables + reserved + n_pages > limits.pages)
        return QuotaExceeded if over else None

    def table(self, file: File) -> list[int]:
        return self.fs.files[file.ino].table.tolist()

    def residency(self, file: File) -> Residency:
        if file.transfer is not None:
            return Residency.MOVING
        if any(map(is_host, self.table(file))):
            return Residency.SWAPPED
        return Residency.RESIDENT if file.is_whole else Residency.PARTIAL

    def has_tail(self, file: File) -> bool:
        if not file.slots or not file.is_whole or file.tail_gone or file.device is None:
            return False
        return bool(self.shadows[file.device].tail(self.table(file), len(file.slots)) == file.slots)

    def holders(self, entry: int, device: str | None) -> list[File]:
        """Files whose tables have a page."""
        return [f for f in self.files.values() if f.device == device and entry in self.table(f)]

    # --- devices ---

    @rule(name=st.sampled_from(["w0", "w1"]), dice=st.integers(0, 3))
    def devices_come_and_go(self, name: str, dice: int) -> None:
        if name not in self.devices:
            self.add_device(name)
        elif dice == 0:
            self.remove_device(name)
        else:
            self.attempt(FileExists, lambda: self.fs.add_device(name, n_pages=1, page_size=1))

    def add_device(self, name: str) -> None:
        self.fs.add_device(name, n_pages=N_PAGES, page_size=PAGE_SIZE, n_host_pages=N_HOST_PAGES)
        self.devices[name] = self.simulated.Device(N_PAGES, PAGE_SIZE, N_HOST_PAGES)
        self.shadows[name] = self.simulated.Device(N_PAGES, PAGE_SIZE, N_HOST_PAGES)

    def remove_device(self, name: str) -> None:
        self.fs.remove_device(name, now=self.now)
        del self.devices[name], self.shadows[name]
        for flight in [flight for flight in self.flights if flight.lease.device == name]:
            assert flight.lease.state is LeaseState.LOST
            self.orphans.append(lambda lease=flight.lease: self.fs.abandon(lease))  # type: ignore[misc]
            flight.file.n_leases -= 1
            self.flights.remove(flight)
        self.early = [flight for flight in self.early if flight.lease.device != name]
        for move in [shift.transfer for shift in self.shifts if shift.transfer.device == name]:
            self.orphans.append(lambda move=move: self.fs.abandon_move(move))  # type: ignore[misc]
            self.ended(move)
        for m in [s.transfer for s in self.shipments if name in (s.transfer.device_from, s.transfer.device_to)]:
            self.orphans.append(lambda m=m: self.fs.abandon_migration(m))  # type: ignore[misc]
            self.ended(m)
        for file in list(self.files.values()):
            if file.device == name:
                file.device = None
                file.lose(0)
            self.reap(file)

    def ended(self, transfer: Transfer) -> None:
        self.shifts = [shift for shift in self.shifts if shift.transfer is not transfer]
        self.shipments = [shipment for shipment in self.shipments if shipment.transfer is not transfer]
        for file in self.files.values():
            if file.transfer is transfer:
                file.transfer = None

    @precondition(lambda self: self.orphans)
    @rule()
    def abandon_orphan(self) -> None:
        self.orphans.pop()()
