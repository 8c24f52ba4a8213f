"""Durable files: the rim between the file system and its disk. There with `--kv-dir` alone.

Saving. A file that has a name and has changed is saved when a handle that may write it is closed, and on `sync`. What
is saved is a snapshot, so programs go on writing; its pages are fetched from the worker behind its batches, some MiB at
a time, and written by the thread. Then the version counts, under the names that the file has by then. A name that
comes, goes or moves is recorded before the call returns. What is on disk when is said in `kvfs/store/store.py`.

Reading. The start reads the journal and nothing else. The tokens of a file are read when it is first opened, its K/V
when a call first needs it (`kernel/loading.py`).

The disk blocks, so all of it is done by one thread, in the order in which it is asked to; but for the syncs of files,
which many saves wait for at the same time. `kvfs/store/ledger.py` decides here, in the loop, what the thread is to
record; the store is the thread's from the start on. What is to be recorded while the disk is busy is recorded together.

Made by `kernel/boot.py`. Never add here: formats, what a crash may lose.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from errno import EDQUOT, ENOSPC
from typing import Any, NamedTuple, TypeVar

from blake3 import blake3

from kernel.attachment import Attached, WorkerLost
from kernel.disk import RealDisk
from kernel.fleet import Fleet
from kernel.process import Process
from kernel.recorder import Recorder
from kvfs.inode import Edited, Inode
from kvfs.loads import n_common
from kvfs.openfile import OpenFile
from kvfs.store.format import Damaged, Geometry
from kvfs.store.ledger import Copy, Ledger
from kvfs.store.store import Commit, Store, Writer
from sdk.abi.errors import Errno, InvalidArgument, NoDevice, NoSpace, QuotaExceeded, Stale, SyscallError
from sdk.abi.trap import Pending

log = logging.getLogger(__name__)

N_SAVES = 16  # at a time: each has a chunk of pages in memory
CHUNK_BYTES = 4 << 20  # of pages that are fetched and written at a time
STOPPING = SyscallError.make(Errno.EIO, "the kernel stopped before it was on disk")

T = TypeVar("T")
Mark = tuple[float, bytes]  # what a file was when it was saved


class Saving(NamedTuple):
    """A save that is under way."""

    task: "asyncio.Task[None]"
    mark: Mark


class Durable:
    """Of one kernel."""

    def __init__(
        self, fleet: Fleet, disk: RealDisk, store: Store, ledger: Ledger, panic: Callable[[BaseException], None]
    ) -> None:
        self.fs = fleet.fs
        self.ledger = ledger
        self.store = store
        self._fleet = fleet
        self._disk = disk
        self._panic = panic
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "disk")
        self._syncs = ThreadPoolExecutor(N_SAVES, "sync")
        self._saving: dict[int, Saving] = {}  # by inode number, the newest
        self._marks: dict[int, Mark] = {}  # of what is on disk
        self._reading: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._slots = asyncio.Semaphore(N_SAVES)
        self._recorder = Recorder(store, self.run, self.spawn)
        self.seen: Attached | None = None  # a worker that had something to do, gone or not
        self._is_closed = False
        self.fs.n_durable = self.n_safe

    # --- the thread ---

    def run(self, act: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
        """Have the thread do something, after all that it was asked to do before."""
        return self._loop.run_in_executor(self._thread, act, *args)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """A task of the kernel's, whoever is calling. Errors other than SyscallError are bugs of ours."""
        task = self._loop.create_task(self._guarded(coroutine), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._done, context=Context())
        return task

    async def _guarded(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return await coroutine
        except SyscallError:
            raise
        except Exception as e:
            self._panic(e)
            raise

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it is told; if nobody does, the log was

    def answer(
        self,
        process: Process,
        call: str,
        tasks: "list[asyncio.Task[Any]]",
        result: Any = None,
        give_back: Callable[[Any], None] = lambda result: None,
    ) -> Any:
        """The result of a call, when all these tasks have ended; at once if there are none. `give_back` takes the
        result if they fail, or nobody waits for it any more."""
        if not tasks:
            return result
        future = process.park(call, lambda: give_back(result), "the disk")

        async def wait() -> None:
            await asyncio.wait(tasks)
            errors = [e for task in tasks if (e := STOPPING if task.cancelled() else task.exception()) is not None]
            if future.done():
                return
            if errors:
                give_back(result)
                error = errors[0] if isinstance(errors[0], SyscallError) else STOPPING
                process.fail(future, SyscallError.make(error.errno, error.detail))  # its own, without our traceback
            else:
                process.complete(future, result, give_back)

        self.spawn(wait())
        return Pending(future)

    async def close(self, seconds: float) -> None:
        """Finish what is under way, for so long at most, and let the directory go."""
        self.settle()
        self._is_closed = True
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()
        await self.run(self.store.close)
        self._syncs.shutdown()
        self._thread.shutdown()
        self._disk.end()

    # --- names ---

    def settle(self) -> "list[asyncio.Task[Any]]":
        """Record what has happened to names; the tasks that end when it is on disk."""
        if self._is_closed:
            return []
        taken = self.ledger.take()
        tasks: list[asyncio.Task[Any]] = []
        if taken.changes:
            recorded = self._recorder.record(Commit(taken.changes))
            tasks.append(self.spawn(self._recorded(recorded)))
        saves = [self.save(inode) for inode in taken.unsaved]
        return tasks + [task for task in saves if task is not None]

    async def _recorded(self, recorded: "asyncio.Future[None]") -> None:
        try:
            await recorded
        except OSError as e:
            log.warning("names could not be recorded: %s", e)
            raise disk_error(e, "it is done, but not on disk until the next change that is") from None

    # --- saving ---

    def save(self, inode: Inode) -> "asyncio.Task[None] | None":
        """Begin to save a file as it is now; the task that ends when it is on disk. None when there is nothing to do:
        it has not changed and the disk has all the K/V that it has, or it has no name that is kept."""
        self.settle()
        if self._is_closed or not self.ledger.is_kept(inode) or inode.n_unread:
            return None
        mark, before = mark_of(inode), self._saving.get(inode.ino)
        if before is not None and before.mark == mark:
            return before.task
        copy = self.ledger.copies.get(inode.ino)
        has_all = copy is not None and (copy.n_kv is None or copy.n_kv >= inode.n_kv)
        if before is None and has_all and self._marks.get(inode.ino) == mark:
            return None
        snapshot = self.fs.snapshot(inode, self._fleet.now())
        task = self.spawn(self._save(inode, snapshot, mark, None if before is None else before.task))
        self._saving[inode.ino] = Saving(task, mark)
        return task

    async def _save(self, inode: Inode, snapshot: OpenFile, mark: Mark, before: "asyncio.Task[None] | None") -> None:
        counters = self._fleet.counters
        try:
            if before is not None:
                await asyncio.wait([before])
            async with self._slots:
                writer = await self._write(inode, snapshot.inode)
            await self._publish(inode, snapshot.inode, writer)
            counters.n_saves += 1
            counters.n_pages_saved += writer.head.n_pages
            self._marks[inode.ino] = mark
        except (OSError, Damaged, WorkerLost, NoSpace, NoDevice, QuotaExceeded) as e:
            counters.n_saves_failed += 1
            log.warning("file #%d could not be saved: %s", inode.ino, e)
            if isinstance(e, SyscallError):
                raise
            text = "the file is not saved; what was saved before is as it was"
            raise disk_error(e, text) from None
        finally:
            self.fs.close(snapshot, self._fleet.now())
            saving = self._saving.get(inode.ino)
            if saving is not None and saving.task is asyncio.current_task():
                del self._saving[inode.ino]
            if inode.ino not in self.fs.files:
                self._marks.pop(inode.ino, None)

    async def _write(self, inode: Inode, child: Inode) -> Writer:
        """A finished version of the snapshot `child` of a file; with the K/V that a worker has, or that is on disk
        already where that is more. K/V that is lost meanwhile can be computed again, so it is saved without."""
        n_kv, copy = child.n_kv, self.ledger.copies.get(inode.ino)
        if copy is not None and (copy.n_kv or 0) > n_kv:
            try:
                contents = await self.run(self.store.read_start, copy.version)
                n_stored = min(contents.head.n_kv, n_common(child, contents.tokens, contents.positions))
                if n_stored > n_kv:
                    args = (inode.ino, copy.version, child.tokens, child.positions, n_stored)
                    return await self._finished(await self.run(self.store.rewrite, *args))
            except Damaged as e:
                log.warning("what is on disk of file #%d is damaged: %s", inode.ino, e)
        if n_kv:
            try:
                return await self._write_pages(inode, child, n_kv)
            except (WorkerLost, NoDevice) as e:
                log.warning("file #%d is saved without its K/V: %s", inode.ino, e)
        return await self._finished(await self._begin(inode, child, self.geometry(None), 0))

    async def _write_pages(self, inode: Inode, child: Inode, n_kv: int) -> Writer:
        """Raises WorkerLost when the pages cannot be had."""
        assert child.pool is not None
        geometry = self.geometry(child.pool.name)
        writer = await self._begin(inode, child, geometry, n_kv)
        try:
            n_chunk = max(1, CHUNK_BYTES // geometry.page_bytes)
            for first in range(0, writer.head.n_pages, n_chunk):
                n_pages = min(n_chunk, writer.head.n_pages - first)
                contents = await self._fetch(child, geometry, first, n_pages)
                await self.run(writer.add, contents)
        except BaseException:
            self.run(writer.discard)
            raise
        return await self._finished(writer)

    async def _fetch(self, child: Inode, geometry: Geometry, first: int, n: int) -> "bytes | memoryview":
        """The contents of pages of a snapshot, on whatever worker and tier they are by now. Raises WorkerLost."""
        entries = child.table[first : first + n]
        attached = None if child.pool is None else self.attached(child.pool.name)
        if attached is None or len(entries) < n or not geometry_of(attached).fits(geometry):
            raise WorkerLost("its K/V has been dropped meanwhile")
        try:
            return await attached.fetch(entries)
        except SyscallError as e:
            raise WorkerLost(f"{attached.worker.name} refused to send pages: {e}") from None

    async def _begin(self, inode: Inode, child: Inode, geometry: Geometry, n_kv: int) -> Writer:
        tail_valid = child.tail_valid and n_kv == len(child.tokens)
        edited_at = child.edited.at if child.edited is not None and child.edited.at < n_kv else None
        args = (inode.ino, geometry, child.tokens, child.positions, n_kv, tail_valid, edited_at)
        return await self.run(self.store.begin, *args)

    async def _finished(self, writer: Writer) -> Writer:
        try:
            await self._loop.run_in_executor(self._syncs, writer.sync)
        except BaseException:
            self.run(writer.discard)
            raise
        await self.run(writer.finish)
        return writer

    async def _publish(self, inode: Inode, child: Inode, writer: Writer) -> None:
        """A version that is whole on disk counts from now on, under the names that the file has by now."""
        self.settle()
        head, before = writer.head, self.ledger.copies.get(inode.ino)
        edited = None if head.edited_at is None else child.edited or Edited(head.edited_at)
        copy = Copy(head.version, writer.n_bytes, head.n_kv, edited)
        try:
            self._need_room(inode, writer.n_bytes)
        except QuotaExceeded:
            self.run(writer.discard)
            raise
        changes = self.ledger.saved(inode, head.n_tokens, copy)
        if not changes:
            await self.run(writer.discard)
            return
        try:
            await self._recorder.record(Commit(changes, writer))
        except OSError:
            self.ledger.unsaved(inode, before)
            raise

    def _need_room(self, inode: Inode, n_bytes: int) -> None:
        """For a version of a file beside all that its owner has, in place of the one before. Raises QuotaExceeded."""
        bill, before = self.fs.quotas.user(inode.owner), self.ledger.copies.get(inode.ino)
        if bill.allowed.disk_bytes is not None:
            used = self.ledger.n_bytes(inode.owner)
            bill.need_disk(used, n_bytes - (before.n_bytes if before is not None else 0))

    def n_safe(self, inode: Inode) -> int:
        """How many of a file's tokens have their K/V on disk, if it is still what was saved; to be asked often."""
        mark, copy = self._marks.get(inode.ino), self.ledger.copies.get(inode.ino)
        return copy.n_kv or 0 if copy is not None and mark is not None and mark[0] == inode.modified_s else 0

    # --- reading ---

    def read(self, inode: Inode) -> "list[asyncio.Task[Any]]":
        """A file was opened: the task that ends when its tokens are here, if they are not."""
        if not inode.n_unread:
            if inode.ino in self.ledger.copies and inode.ino not in self._marks and inode.ino not in self._saving:
                self._marks[inode.ino] = mark_of(inode)  # it was saved empty
            return []
        task = self._reading.get(inode.ino)
        if task is None:
            task = self._reading[inode.ino] = self.spawn(self._read(inode))
        return [task]

    async def _read(self, inode: Inode) -> None:
        """Raises Stale, or a SyscallError with EIO."""
        try:
            copy = self.ledger.copies.get(inode.ino)
            if copy is None:
                raise SyscallError.make(Errno.EIO, "this file was unlinked before its tokens were read: it is lost")
            try:
                contents = await self.run(self.store.read_start, copy.version)
            except (OSError, Damaged) as e:
                log.error("%d.kv on disk, file #%d, cannot be read: %s", copy.version, inode.ino, e)
                raise SyscallError.make(
                    Errno.EIO,
                    f"what is on disk of this file ({copy.version}.kv) cannot be read: {e}; remove it with `lip rm`",
                ) from None
            self.need_fit(contents.head.geometry)
            edited = None
            if self.ledger.copies.get(inode.ino) == copy:
                edited = self.ledger.read(inode, contents.head)
            self.fs.read_back(inode, contents.tokens, contents.positions, edited)
            self._marks[inode.ino] = mark_of(inode)
        finally:
            del self._reading[inode.ino]

    # --- the model ---

    def attached(self, device: str) -> Attached | None:
        """The worker of that name, if it serves."""
        return next((a for a in self._fleet.all_attached() if a.worker.name == device), None)

    def geometry(self, device: str | None) -> Geometry:
        """What pages of a device are like; of any, if none is named. Raises NoDevice."""
        for attached in self._fleet.all_attached():
            if device in (None, attached.worker.name):
                return geometry_of(attached)
        if device is None and self.seen is not None:
            return geometry_of(self.seen)
        raise NoDevice("no worker serves a model, so nobody knows what this file is of: attach one")

    def need_fit(self, stored: Geometry) -> None:
        """Raises Stale when what is stored is of another model than is served, or fits no worker."""
        here = [geometry_of(attached) for attached in self._fleet.all_attached()]
        if here and not any(stored.fits(geometry) for geometry in here):
            raise Stale(
                f"this file was saved with {stored}, and this kernel serves {here[0]}: start it with that model, or "
                "remove the file with `lip rm`"
            )


def geometry_of(attached: Attached) -> Geometry:
    """What the pages of a worker are like."""
    welcome = attached.worker.welcome
    assert welcome is not None
    model = welcome.model
    return Geometry(model.name, model.fingerprint, model.dtype, model.page_size, welcome.page_bytes)


def mark_of(inode: Inode) -> Mark:
    """Tells whether a file is as it was."""
    digest = blake3(memoryview(inode.tokens).cast("B"))
    digest.update(memoryview(inode.positions).cast("B"))
    return inode.modified_s, digest.digest()


def disk_error(error: Exception, text: str) -> SyscallError:
    """What a program is told."""
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        return NoSpace(f"the disk of --kv-dir is full: {text}; make room there and `sync` again")
    if isinstance(error, InvalidArgument):
        return error
    return SyscallError.make(Errno.EIO, f"the disk of --kv-dir failed ({error}): {text}")
