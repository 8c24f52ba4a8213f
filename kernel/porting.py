"""Porting: one KV file as bytes, to be carried to another machine, and back into a file. The format is that on disk.

What is exported is a snapshot, with the K/V that a worker has or, where there is more of it, the disk; the rest is
computed again wherever it is imported. An import verifies all of it: a file that does not verify, or is of another
model, is refused as a whole. Bytes come and go in pieces of some MiB, so a file of any size takes little memory.

Called by `kernel/frontdoor/files.py`. Never add here: paths of the machine's own file system.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial

from kernel.attachment import Attached, WorkerLost
from kernel.durable import Durable, geometry_of
from kernel.fleet import Fleet
from kvfs.access import OPERATOR
from kvfs.inode import Edited, Inode
from kvfs.loads import n_common
from kvfs.openfile import OpenFile
from kvfs.store import format as layout
from kvfs.store.format import Contents, Damaged, Geometry, Head
from sdk.abi.errors import Errno, InvalidArgument, NoDevice, NoSpace, Stale, SyscallError

CHUNK_BYTES = 4 << 20  # of pages at a time
N_TOKENS_MAX = 1 << 24  # of a file that is imported; a model's context is far less

Read = Callable[[int, int], Awaitable["bytes | memoryview"]]  # index of the first page, how many


class Porting:
    """Of one fleet."""

    def __init__(
        self, fleet: Fleet, durable: Callable[[], Durable | None], close: Callable[[OpenFile], object]
    ) -> None:
        """`close` gives a handle back."""
        self._fleet = fleet
        self._fs = fleet.fs
        self._durable = durable
        self._close = close

    # --- out ---

    async def export(self, inode: Inode) -> AsyncGenerator[bytes, None]:
        """All bytes of a file. Raises NoDevice, before the first of them."""
        snapshot = self._fs.snapshot(inode, self._fleet.now())
        child = snapshot.inode
        try:
            geometry, n_kv, head, read = await self._source(inode, child)
            if head is not None:
                has_tail, edited_at = head.tail_valid and n_kv == head.n_tokens == len(child.tokens), head.edited_at
            else:
                has_tail = child.tail_valid and n_kv == len(child.tokens)
                edited_at = child.edited.at if child.edited is not None else None
            edited_at = edited_at if edited_at is not None and edited_at < n_kv else None
            head = Head(0, geometry, len(child.tokens), n_kv, has_tail, edited_at)
            start, seal = layout.encode_start(head, child.tokens, child.positions)
            yield start
            n_chunk = max(1, CHUNK_BYTES // geometry.page_bytes)
            for first in range(0, head.n_pages, n_chunk):
                n = min(n_chunk, head.n_pages - first)
                contents = await read(first, n)
                yield layout.encode_pages(seal, first, geometry.page_bytes, contents)
                if len(contents) < n * geometry.page_bytes:
                    return  # what was sent is good, and the rest is computed again
        finally:
            self._close(snapshot)

    async def _source(self, inode: Inode, child: Inode) -> tuple[Geometry, int, Head | None, Read]:
        """Where most of the K/V of a snapshot is: what its pages are like, how many tokens have their K/V there, the
        head of what is on disk if it is that, and how to read pages; fewer when they cannot be had. Raises NoDevice."""
        attached = next(
            (a for a in self._fleet.all_attached() if child.pool and a.worker.name == child.pool.name), None
        )
        n_kv = 0 if attached is None else child.n_kv
        stored = await self._stored(inode, child)
        if stored is not None:
            n_stored = min(stored.head.n_kv, n_common(child, stored.tokens, stored.positions))
            if n_stored > n_kv:
                return stored.head.geometry, n_stored, stored.head, partial(self._from_disk, stored)
        holder = attached or next(iter(self._fleet.all_attached()), None)
        if holder is None:
            raise NoDevice("no worker serves a model, so nobody knows what this file is of: attach one")
        return geometry_of(holder), n_kv, None, partial(self._from_device, child, holder)

    async def _stored(self, inode: Inode, child: Inode) -> Contents | None:
        """What is on disk of a file."""
        durable = self._durable()
        copy = durable.ledger.copies.get(inode.ino) if durable is not None else None
        if durable is None or copy is None:
            return None
        try:
            return await durable.run(durable.store.read_start, copy.version)
        except (OSError, Damaged):
            return None

    async def _from_disk(self, stored: Contents, first: int, n: int) -> "bytes | memoryview":
        durable = self._durable()
        assert durable is not None
        try:
            return await durable.run(durable.store.read_pages, stored, first, n)
        except (OSError, Damaged):
            return b""

    async def _from_device(self, child: Inode, attached: Attached, first: int, n: int) -> "bytes | memoryview":
        entries = child.table[first : first + n]
        if child.pool is None or child.pool.name != attached.worker.name or len(entries) < n:
            return b""  # they were dropped or moved meanwhile
        try:
            return await attached.fetch(entries)
        except (WorkerLost, SyscallError):
            return b""

    # --- in ---

    async def take(self, path: str, body: AsyncIterator[bytes]) -> OpenFile:
        """A new file at `path`, of the operator's, with what `export` gave; open. Raises Stale, FileExists and what
        `create` raises, InvalidArgument when it is no such file; EIO when it is damaged."""
        source = Source(body)
        try:
            contents = await source.start()
        except Damaged as e:
            raise InvalidArgument(f"this is not a KV file that `lip cp` has written: {e}") from None
        here = list(self._fleet.all_attached())
        if not here:
            raise NoDevice("no worker serves a model: attach one, and try again")
        attached = next((a for a in here if contents.head.geometry.fits(geometry_of(a))), None)
        if attached is None:
            raise Stale(f"this file is of {contents.head.geometry}, and this kernel serves {geometry_of(here[0])}")
        file = self._fs.create(path, who=OPERATOR, now=self._fleet.now())
        try:
            self._fs.read_back(file.inode, contents.tokens, contents.positions)
            await self._fill(file, contents, source, attached)
        except BaseException:
            self._close(file)
            self._fs.unlink(path, who=OPERATOR, now=self._fleet.now())
            raise
        return file

    async def _fill(self, file: OpenFile, contents: Contents, source: "Source", attached: Attached) -> None:
        """Give the file its K/V, as far as it comes along and there is room for it. Raises EIO."""
        head, n = contents.head, contents.head.n_kv
        if not n:
            return
        try:
            device = attached.worker.name
            load = self._fs.load(file, device, contents.tokens[:n], contents.positions[:n], self._fleet.now())
        except NoSpace:
            return
        n_done = 0
        try:
            pages = load.pages_to
            n_chunk = max(1, CHUNK_BYTES // head.geometry.page_bytes)
            for first in range(0, len(pages), n_chunk):
                chunk = pages[first : first + n_chunk]
                good = await source.pages(contents, first, len(chunk))
                n_good = len(good) // head.geometry.page_bytes
                if n_good:
                    await attached.store(chunk[:n_good], good)
                n_done += n_good
                if n_good < len(chunk):
                    break
            if not load.is_out:
                raise WorkerLost(f"{device} is gone")
        except WorkerLost:
            self._fs.abandon_load(load)
        except BaseException:
            self._fs.abandon_load(load)
            raise
        else:
            edited = Edited(head.edited_at) if head.edited_at is not None else None
            n_kv = min(n, n_done * head.geometry.page_size)
            self._fs.commit_load(load, n_kv, head.tail_valid, edited, self._fleet.now())


class Source:
    """Bytes that come in pieces, read as a stored file."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._have = bytearray()

    async def _read(self, n: int) -> bytes:
        """So many bytes, or fewer at the end."""
        while len(self._have) < n:
            try:
                self._have += await anext(self._body)
            except StopAsyncIteration:
                break
        taken = bytes(self._have[:n])
        del self._have[:n]
        return taken

    async def start(self) -> Contents:
        """All before the pages. Raises Damaged."""
        prefix = await self._read(layout.PREFIX_BYTES)
        length = layout.head_length(prefix)
        packed = await self._read(length)
        head = layout.decode_head(packed)
        if head.n_tokens > N_TOKENS_MAX:
            raise Damaged(f"it says that it has {head.n_tokens} tokens")
        n_more = layout.start_bytes(head, length) - len(prefix) - len(packed)
        return layout.decode_start(head, length, prefix + packed + await self._read(n_more))

    async def pages(self, contents: Contents, first: int, n: int) -> bytes:
        """The contents of the next pages; fewer where they end. Raises a SyscallError with EIO when one is damaged."""
        step = layout.stride(contents.head.geometry)
        raw = await self._read(n * step)
        good = b"".join(layout.verified(contents, first, raw))
        if len(good) // contents.head.geometry.page_bytes < len(raw) // step:
            raise SyscallError.make(Errno.EIO, "a page of this file is damaged: copy it again")
        return good
