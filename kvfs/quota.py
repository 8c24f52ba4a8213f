"""Quotas: what users and processes have of everything, and how much they may have.

A `Bill` is one user's or one process's. On a user's are the files and directories that belong to him; on a process's
the files that it has open, each once. Of a file counts

    files       1
    pages       those of its table, whoever shares them, as if he had it alone. So nobody's bill depends on what
                others do, and nobody can tell from his own what others have
    KV          the bytes of those pages, for as long as they are there: byte-seconds, the area under the curve

Pages are told by tier, device and host. The limit that calls are refused over is on both together, since it is the
kernel that moves them. Pages that a batch in flight may bring are *reserved*, and count as if they were there: usage
never exceeds that limit, but where it is lowered under it. One on host pages alone is the kernel's to keep, when it
moves some (`has_host_room`), and one on bytes on disk whose who saves (`need_disk`). Byte-seconds grow by themselves;
whoever is over that limit keeps what he has and gets no more.

Time is known as of the last call that said what it is (`Quotas.now`): byte-seconds are integrated at each change, up
to that. Called by `inode.py` and `lease.py`, once per change of a page table and not per token, and by the facade.
Never add here: who may see a bill, policy about what is to be done when pages are short.
"""

from collections.abc import Mapping
from typing import NamedTuple

from sdk.abi.errors import QuotaExceeded
from sdk.abi.values import Quota


class Allowed(NamedTuple):
    """Limits; None: without one."""

    files: int | None = None
    pages: int | None = None  # on the device and in host memory
    kv_byte_s: float | None = None
    host_pages: int | None = None
    disk_bytes: int | None = None


UNLIMITED = Allowed()


def allowed(files: int | None, pages: int | None, kv_byte_s: float | None) -> Allowed:
    """`UNLIMITED` itself, which is quick to tell, when there is no limit."""
    found = Allowed(files, pages, kv_byte_s)
    return UNLIMITED if found == UNLIMITED else found


class Held(NamedTuple):
    """What of one file is on a bill."""

    n_pages: int  # on the device
    n_host_pages: int
    n_bytes: int


NOTHING = Held(0, 0, 0)


class Clock:
    """The time of the last call that said what it is."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0


class Bill:
    """One user's or process's."""

    __slots__ = (
        "_byte_s",
        "_clock",
        "_since",
        "allowed",
        "n_bytes",
        "n_files",
        "n_host_pages",
        "n_pages",
        "n_reserved",
        "name",
    )

    def __init__(self, name: str, allowed: Allowed, clock: Clock) -> None:
        self.name = name  # for errors: "'ann'" or "process 7"
        self.allowed = allowed
        self.n_files = 0
        self.n_pages = 0
        self.n_host_pages = 0
        self.n_reserved = 0  # pages that leases in flight may bring
        self.n_bytes = 0
        self._clock = clock
        self._byte_s = 0.0  # until `_since`
        self._since = clock.now

    @property
    def kv_byte_s(self) -> float:
        """Byte-seconds so far."""
        return self._byte_s + self.n_bytes * (self._clock.now - self._since)

    def change(self, old: Held, new: Held) -> None:
        """A file on it has other pages now."""
        self._byte_s, self._since = self.kv_byte_s, self._clock.now
        self.n_pages += new.n_pages - old.n_pages
        self.n_host_pages += new.n_host_pages - old.n_host_pages
        self.n_bytes += new.n_bytes - old.n_bytes

    # --- before something is added; each raises QuotaExceeded with nothing changed ---

    def need_file(self) -> None:
        """For one more file."""
        self.need_directory()
        self.need_time()

    def need_directory(self) -> None:
        """For one more directory, which has no KV."""
        limit = self.allowed.files
        if limit is not None and self.n_files >= limit:
            raise QuotaExceeded(f"{self.name} has {self.n_files} files and may have {limit}: unlink or close some")

    def need_pages(self, n: int) -> None:
        """For so many pages more."""
        if not self.has_room(n):
            used, limit = self.n_pages + self.n_host_pages + self.n_reserved, self.allowed.pages
            raise QuotaExceeded(
                f"{self.name} has {used} pages of KV, may have {limit} and needs {n} more: close, truncate or unlink"
            )
        self.need_time()

    def has_room(self, n: int) -> bool:
        """Whether so many pages more are within the limit."""
        limit = self.allowed.pages
        return limit is None or n <= 0 or self.n_pages + self.n_host_pages + self.n_reserved + n <= limit

    def has_host_room(self, n: int) -> bool:
        """Whether so many pages more may be moved to host memory."""
        limit = self.allowed.host_pages
        return limit is None or self.n_host_pages + n <= limit

    def need_disk(self, used: int, n: int) -> None:
        """For so many bytes more on disk, beside those `used`."""
        limit = self.allowed.disk_bytes
        if limit is not None and used + n > limit:
            raise QuotaExceeded(
                f"{self.name} has {used} bytes on disk, may have {limit} and needs {n} more: unlink or truncate some"
            )

    def need_time(self) -> None:
        """For more KV over time."""
        limit = self.allowed.kv_byte_s
        if limit is not None and self.kv_byte_s >= limit:
            raise QuotaExceeded(
                f"{self.name} has used {self.kv_byte_s:.4g} byte-seconds of KV and may use {limit:.4g}: "
                "ask the operator for more, or go on with what there is"
            )

    def reserve(self, n: int) -> None:
        """Pages that a batch in flight will bring, until it ends."""
        if self.allowed is not UNLIMITED:
            self.need_pages(n)
        self.n_reserved += n


NOBODY = Bill("nobody", UNLIMITED, Clock())  # of files that are not in a file system yet


class Quotas:
    """All bills."""

    def __init__(self, allowed: Mapping[str, Allowed]) -> None:
        """Limits of users by name; all others have none."""
        self._allowed = allowed
        self.clock = Clock()
        self.users: dict[str, Bill] = {}
        self.processes: dict[int, Bill] = {}

    def user(self, name: str) -> Bill:
        bill = self.users.get(name)
        if bill is None:
            bill = self.users[name] = Bill(repr(name), self._allowed.get(name, UNLIMITED), self.clock)
        return bill

    def process(self, pid: int) -> Bill:
        bill = self.processes.get(pid)
        if bill is None:
            bill = self.processes[pid] = Bill(f"process {pid}", UNLIMITED, self.clock)
        return bill

    def tell(self, now: float) -> None:
        """It is `now`. Time does not go back."""
        if now > self.clock.now:
            self.clock.now = now


# --- how it is told ---


def quoted(user: str, bill: Bill) -> Quota:
    limits = bill.allowed
    return Quota(
        user,
        n_files=bill.n_files,
        n_files_max=limits.files,
        n_pages=bill.n_pages,
        n_host_pages=bill.n_host_pages,
        n_pages_max=limits.pages,
        kv_byte_s=bill.kv_byte_s,
        kv_byte_s_max=limits.kv_byte_s,
        n_host_pages_max=limits.host_pages,
        n_disk_bytes_max=limits.disk_bytes,
    )
