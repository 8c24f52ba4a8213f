"""Loading: K/V that is on disk is brought to a device when a call needs it, instead of being computed.

`kernel/fleet.py` asks before it gives a job to a worker. If K/V of the job's file is on disk, its own or that of a
relative it was forked from, the job is held, the pages are read, verified and stored behind the worker's batches, some
MiB at a time, and the job goes on. All jobs on forks of one file wait for one load. Whatever fails, the rest is
computed from the tokens, which is always right; but with `--kv-repair fail` damage fails the calls.

`kernel/advisor.py` has files loaded that no call asks for (`fetch`). For those nothing is moved away: they wait until
there is room.

Made by `kernel/boot.py`. Never add here: which pages go where (`kvfs/loads.py`), formats.
"""

import asyncio
import logging
from collections import deque

from kernel.attachment import Attached, WorkerLost
from kernel.durable import Durable, geometry_of
from kernel.fleet import Fleet
from kernel.jobs import Job
from kernel.workers import State
from kvfs.base import Handle
from kvfs.cow import n_pages_for
from kvfs.inode import Inode, Residency
from kvfs.loads import Load, n_common
from kvfs.store.format import Contents, Damaged
from kvfs.store.ledger import Copy
from sdk.abi.errors import Busy, Errno, NoDevice, NoSpace, SyscallError

CHUNK_BYTES = 4 << 20  # of pages at a time
N_AHEAD = 2  # chunks that are on their way to the worker while the next is read

log = logging.getLogger(__name__)


class Gone(Exception):
    """The job that a load was for has ended, and its file is closed; or what was loaded has been saved anew, or
    removed. Whoever still waits looks again."""


class Loading:
    """Of one kernel."""

    def __init__(self, fleet: Fleet, durable: Durable, *, repairs: bool) -> None:
        """`repairs`: damaged K/V is computed again, and no error."""
        self._fleet = fleet
        self._fs = fleet.fs
        self._durable = durable
        self._repairs = repairs
        self._waiting: dict[int, list[Job]] = {}  # for a version
        self._done: set[tuple[Job, Inode]] = set()  # for which nothing more of that file can be loaded

    def bring(self, job: Job, attached: Attached) -> bool:
        """Whether the job is held until K/V of its file has come from disk to its worker. For the fleet to ask."""
        job.look()
        self._durable.seen = attached
        inode = job.file.inode
        if (job, inode) in self._done:
            self._done.discard((job, inode))
            return False
        if inode.residency not in (Residency.PARTIAL, Residency.MOVING) or inode.n_leases:
            return False
        copy = self._best(inode)
        if copy is None or (inode.moving and copy.version not in self._waiting):
            return False
        self._fleet.hold([job])
        if copy.version in self._waiting:
            self._waiting[copy.version].append(job)
        else:
            self._waiting[copy.version] = [job]
            self._durable.spawn(self._bring(job, copy, attached))
        return True

    def fetch(self, inode: Inode, n_tokens: int) -> bool:
        """Whether a file has K/V on disk that is not on its device. That of its first `n_tokens` tokens is then on its
        way, if there is room that nobody waits for. For the advisor to ask, again and again until it is there."""
        attached = None if inode.pool is None else self._durable.attached(inode.pool.name)
        if attached is None or inode.residency is not Residency.PARTIAL or inode.n_leases:
            return False
        copy = self._best(inode)
        if copy is None or min(n_tokens, copy.n_kv or 0) <= inode.n_kv + 1:
            return False  # one token is computed, as the last of all has to be where its hidden state was not saved
        room = self._fs.pools[attached.worker.name]
        fits = room.n_free >= n_pages_for(n_tokens, room.page_size) and not attached.batcher.memory.tight
        if fits and copy.version not in self._waiting:
            self._waiting[copy.version] = []
            self._durable.spawn(self._fetch(inode, n_tokens, copy, attached))
        return True

    async def _fetch(self, inode: Inode, n_tokens: int, copy: Copy, attached: Attached) -> None:
        error: SyscallError | None = None
        file = self._fs.hold(inode)
        try:
            await self._load(file, n_tokens, copy, attached, None)
        except (Gone, WorkerLost, NoSpace, NoDevice, Busy) as e:
            log.info("a file could not be loaded that nobody waits for: %s", e)
        except SyscallError as e:
            error = e
            self._fs.give_up(inode.ino)
        finally:
            self._fs.close(file, self._fleet.now())
            self._fleet.unhold(self._waiting.pop(copy.version), error)  # of calls that have come meanwhile
            self._fleet.pump_soon(attached)

    def _best(self, inode: Inode) -> Copy | None:
        """What is on disk of a file or its relatives that has most of its K/V, if that is more than it has itself. The
        last token does not count: where it is missing alone, computing it is the cheaper, and may be the only, way."""
        best, n_best = None, inode.n_kv
        for other in self._fs.families.of(inode):
            copy = self._durable.ledger.copies.get(other.ino)
            if copy is None or (copy.n_kv or 0) <= n_best:
                continue
            n = min(copy.n_kv or 0, len(inode.tokens) - 1, n_common(inode, other.tokens, other.positions))
            if n > n_best:
                best, n_best = copy, n
        return best

    async def _bring(self, job: Job, copy: Copy, attached: Attached) -> None:
        error: SyscallError | None = None
        served = True
        try:
            await self._load(job.claim or job.file, len(job.file.inode.tokens), copy, attached, job)
        except Gone:
            served = False  # the others have another try
        except WorkerLost as e:
            served = attached.worker.state is not State.LOST  # elsewhere it is tried again
            log.warning("a file could not be loaded: %s", e)
        except (NoSpace, NoDevice, Busy) as e:
            log.info("a file is computed again and not loaded: %s", e)
        except SyscallError as e:
            error = e
        finally:
            jobs = self._waiting.pop(copy.version)
            done = {(job, job.file.inode) for job in jobs}
            if served:
                self._done.update(done)
            self._fleet.unhold(jobs, error)
            self._done.difference_update(done)

    async def _load(self, file: Handle, n_tokens: int, copy: Copy, attached: Attached, job: Job | None) -> None:
        """Load the K/V of the first tokens of a file, for a job or None. Raises Gone, WorkerLost; NoSpace, NoDevice and
        Busy when the K/V has to be computed; any other SyscallError when it cannot be had at all."""
        durable = self._durable
        contents = await self._read(copy)
        durable.need_fit(contents.head.geometry)
        if not contents.head.geometry.fits(geometry_of(attached)):
            raise NoDevice(f"what is on disk does not fit {attached.worker.name}")
        if job is not None and (job.cancelled or (job.claim is None and not job.file.is_open)):
            raise Gone
        n = min(n_tokens, contents.head.n_kv, n_common(file.live(), contents.tokens, contents.positions))
        tokens, positions = contents.tokens[:n], contents.positions[:n]
        now, page_size = self._fleet.now(), contents.head.geometry.page_size
        batcher = attached.batcher
        if job is not None:
            batcher.memory.drop_for(job, n_pages_for(n, page_size), batcher.jobs(), now)
        load = self._fs.load(file, attached.worker.name, tokens, positions, now)
        try:
            n_kv = await self._fill(load, contents, attached)
            if not load.is_out:
                raise WorkerLost(f"{attached.worker.name} was lost when all pages had been stored")
            if n_kv < n:
                self._need_counts(copy)
        except BaseException:
            self._fs.abandon_load(load)
            raise
        if not load.members:
            self._fs.abandon_load(load)
            raise Gone
        tail_valid = contents.head.tail_valid and n == contents.head.n_tokens
        self._fs.commit_load(load, n_kv, tail_valid, copy.edited, self._fleet.now())
        if n_kv < n:
            self._damaged(copy, n_kv)

    async def _read(self, copy: Copy) -> Contents:
        try:
            return await self._durable.run(self._durable.store.read_start, copy.version)
        except (OSError, Damaged) as e:
            self._need_counts(copy)
            self._damaged(copy, 0)
            raise Busy(f"it cannot be read: {e}") from None

    async def _fill(self, load: Load, contents: Contents, attached: Attached) -> int:
        """Fill the pages of a load; of how many tokens the K/V is there then. Raises WorkerLost."""
        geometry, pages, n_done = contents.head.geometry, load.pages_to, 0
        n_chunk = max(1, CHUNK_BYTES // geometry.page_bytes)
        sent: deque[asyncio.Task[None]] = deque()  # to the worker, while more is read
        try:
            for first in range(0, len(pages), n_chunk):
                chunk = pages[first : first + n_chunk]
                read = await self._read_pages(contents, first, len(chunk))
                n_read = len(read) // geometry.page_bytes
                if len(sent) == N_AHEAD:
                    await sent.popleft()
                if n_read:
                    sent.append(asyncio.ensure_future(attached.store(chunk[:n_read], read)))
                n_done = first + n_read
                if n_read < len(chunk):
                    break
            while sent:
                await sent.popleft()
        except SyscallError as e:
            raise WorkerLost(f"{attached.worker.name} refused to store pages: {e}") from None
        finally:
            await asyncio.gather(*sent, return_exceptions=True)
        self._fleet.counters.n_pages_loaded += n_done
        return min(len(load.tokens), n_done * geometry.page_size)

    async def _read_pages(self, contents: Contents, first: int, n: int) -> bytes:
        """As many as can be read."""
        try:
            return await self._durable.run(self._durable.store.read_pages, contents, first, n)
        except (OSError, Damaged) as e:
            log.warning("%d.kv on disk cannot be read: %s", contents.head.version, e)
            return b""

    def _need_counts(self, copy: Copy) -> None:
        """Raises Gone when it is no wonder that a version cannot be read: it does not count any more."""
        if all(other.version != copy.version for other in self._durable.ledger.copies.values()):
            raise Gone

    def _damaged(self, copy: Copy, n_kv: int) -> None:
        """Only the K/V of the first tokens of what is on disk is good. Raises a SyscallError with EIO unless that is
        repaired."""
        self._fleet.counters.n_pages_damaged += 1
        what = f"{copy.version}.kv on disk is damaged from token {n_kv} on"
        if not self._repairs:
            log.error("%s", what)
            raise SyscallError.make(
                Errno.EIO, f"{what}: remove the file with `lip rm`, or start with --kv-repair recompute"
            )
        log.warning("%s: the rest is computed again", what)
        for ino, other in self._durable.ledger.copies.items():
            if other.version == copy.version:
                self._durable.ledger.copies[ino] = other._replace(n_kv=n_kv)
                break
