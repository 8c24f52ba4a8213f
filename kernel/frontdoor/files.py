"""KV files behind the unix socket: what the commands of `sdk/cli_fs.py` ask.

    GET  /fs/ls  /fs/tree     ?path=    what is in a directory, or all that is below it
    GET  /fs/stat             ?path=
    GET  /fs/cat              ?path=    its tokens, and with &text=1 their text
    GET  /fs/export           ?path=    the file as bytes, as kvfs/store/format.py has it
    POST /fs/import           ?path=    such bytes, to be a new file; &name= its name, where the path is a directory
    POST /fs/rm  /fs/mv  /fs/mkdir  /fs/chmod
    GET  /fs/df  /fs/fsck  /fs/lsof

Whoever may open the socket is the operator: paths begin at the real root, and rights are not asked. What changes names
or rights is answered when it is on disk, where that is kept. However many files there are, programs have their turns
while they are listed or removed. `sdk/client.py` is the other side. Never add here what the kernel's own calls do not
do for programs.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any

import msgspec
from msgspec import Struct, to_builtins
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from kernel.core import Kernel
from kernel.frontdoor.body import read_as
from kernel.frontdoor.openai import json_response
from kernel.heart import heart
from kernel.porting import Porting
from kernel.sys_file import FileHandle, answer
from kvfs.access import OPERATOR
from kvfs.fsck import check, counts
from kvfs.inode import Inode
from kvfs.openfile import OpenFile
from sdk.abi.errors import FileNotFound, InvalidArgument, NotADirectory
from sdk.abi.values import FileKind, OpenMode, Stat

PIECE = 200  # files that are listed or removed between two turns of all others: some milliseconds


class RemoveRequest(Struct, forbid_unknown_fields=True):
    path: str
    recursive: bool = False


class DirectoryRequest(Struct, forbid_unknown_fields=True):
    path: str


class MoveRequest(Struct, forbid_unknown_fields=True):
    old: str
    new: str  # a directory: into it


class ModeRequest(Struct, forbid_unknown_fields=True):
    path: str
    mode: int


class Files:
    """The endpoints."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._porting = Porting(kernel.fleet, lambda: kernel.durable, self._close)
        self.routes = [
            Route("/fs/ls", self.ls),
            Route("/fs/tree", self.tree),
            Route("/fs/stat", self.stat),
            Route("/fs/cat", self.cat),
            Route("/fs/export", self.export),
            Route("/fs/import", self.take, methods=["POST"]),
            Route("/fs/rm", self.rm, methods=["POST"]),
            Route("/fs/mv", self.mv, methods=["POST"]),
            Route("/fs/mkdir", self.mkdir, methods=["POST"]),
            Route("/fs/chmod", self.chmod, methods=["POST"]),
            Route("/fs/df", self.df),
            Route("/fs/fsck", self.fsck),
            Route("/fs/lsof", self.lsof),
        ]

    @property
    def by(self) -> dict[str, Any]:
        """On whose behalf, and when."""
        return {"who": OPERATOR, "now": self.kernel.now()}

    async def _read(self, request: Request, tp: Any) -> Any:
        return await read_as(request, self.kernel.config.max_body_bytes, tp)

    # --- looking ---

    async def ls(self, request: Request) -> Response:
        """Entries of a directory with what `stat` says of each; of a file, the file itself."""
        path = _path(request)
        try:
            names = [entry.name for entry in self.kernel.fs.readdir(path, **self.by)]
        except NotADirectory:
            return json_response([{"name": path} | self._stat(path)])
        return self._listed((name, _join(path, name)) for name in names)

    async def tree(self, request: Request) -> Response:
        """The same of all that is below, each directory before what is in it; names are paths from the given one."""
        path = _path(request)
        self.kernel.fs.readdir(path, **self.by)  # to refuse what cannot be listed
        return self._listed(self._below(path))

    def _below(self, path: str, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Names and paths of all that is below a directory. Looks as it goes: what goes away meanwhile is left out."""
        entries = []
        with contextlib.suppress(FileNotFound, NotADirectory):
            entries = self.kernel.fs.readdir(path, **self.by)
        for entry in entries:
            name, below = f"{prefix}{entry.name}", _join(path, entry.name)
            yield name, below
            if entry.kind is FileKind.DIRECTORY:
                yield from self._below(below, f"{name}/")

    def _listed(self, named: Iterator[tuple[str, str]]) -> Response:
        """One JSON array of what `stat` says of these names and paths, piece by piece."""

        async def body() -> AsyncIterator[bytes]:
            before = b"["
            while piece := list(islice(named, PIECE)):
                found = []
                for name, path in piece:
                    with contextlib.suppress(FileNotFound, NotADirectory):  # it has gone meanwhile
                        found.append({"name": name} | self._stat(path))
                if found:
                    yield before + msgspec.json.encode(found)[1:-1]
                    before = b","
                await asyncio.sleep(0)
            yield b"[]" if before == b"[" else b"]"

        return StreamingResponse(body(), media_type="application/json")

    def _stat(self, path: str) -> dict[str, Any]:
        stat = self.kernel.fs.stat(path, **self.by)
        found: dict[str, Any] = {"path": path} | to_builtins(stat)
        found["n_bytes"] = self._n_bytes(stat)
        found["is_saved"] = self.kernel.durable is not None and stat.ino in self.kernel.durable.ledger.copies
        now, until = self.kernel.now(), found.pop("pinned_until_s")  # on a clock that means nothing outside
        found["pinned_for_s"] = None if until is None else until - now
        return found | {f"{name}_ago": now - found.pop(name) for name in ("created_s", "modified_s", "used_s")}

    def _n_bytes(self, stat: Stat) -> int:
        """Of KV, on the device and in main memory, with what is shared."""
        pool = self.kernel.fs.pools.get(stat.worker or "")
        return 0 if pool is None else pool.page_bytes * (stat.n_pages + stat.n_host_pages)

    async def stat(self, request: Request) -> Response:
        return json_response(self._stat(_path(request)))

    async def _opened(self, path: str) -> OpenFile:
        """A file with its tokens, which may have to be read from disk."""
        file = self.kernel.fs.open(path, OpenMode.READ, **self.by)
        try:
            if self.kernel.durable is not None:
                await asyncio.gather(*self.kernel.durable.read(file.inode))
        except BaseException:
            self._close(file)
            raise
        return file

    def _close(self, file: OpenFile) -> None:
        answer(self.kernel.fs.close(file, self.kernel.now()))

    async def export(self, request: Request) -> Response:
        """The file as bytes, piece by piece; it may be changed meanwhile."""
        file = await self._opened(_path(request))
        try:
            pieces = self._porting.export(file.inode)
            first = await anext(pieces)
        finally:
            self._close(file)

        async def body() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(pieces):
                yield first
                async for piece in pieces:
                    yield piece

        return StreamingResponse(body(), media_type="application/octet-stream")

    async def take(self, request: Request) -> Response:
        """A new file of what another kernel has exported; answered when it is on disk, where files are kept."""
        path = self._target(_path(request), request.query_params.get("name", ""))
        file = await self._porting.take(path, request.stream())
        durable = self.kernel.durable
        try:
            found = {"n_tokens": self.kernel.fs.length(file), "n_resident": file.inode.n_resident}
            save = durable.save(file.inode) if durable is not None else None
        finally:
            self._close(file)
        if save is not None:
            await save
        return json_response(found)

    async def cat(self, request: Request) -> Response:
        kernel = self.kernel
        file = await self._opened(_path(request))
        tokens = kernel.fs.tokens(file)
        self._close(file)
        text = kernel.language.decode(tokens) if request.query_params.get("text") else None
        return json_response({"tokens": tokens, "text": text})

    # --- changing ---

    async def rm(self, request: Request) -> Response:
        wanted: RemoveRequest = await self._read(request, RemoveRequest)
        fs = self.kernel.fs
        if fs.names.parse(wanted.path) in ([], ["~"]):
            raise InvalidArgument(f"{wanted.path!r} stays, with all that is in it: name something in it")
        if wanted.recursive and fs.stat(wanted.path, **self.by).kind is FileKind.DIRECTORY:
            below = reversed(list(self._below(wanted.path)))
            while piece := list(islice(below, PIECE)):
                for _, path in piece:
                    with contextlib.suppress(FileNotFound):  # somebody else has removed it
                        fs.unlink(path, **self.by)
                await asyncio.sleep(0)
        fs.unlink(wanted.path, **self.by)
        return await self._settled()

    async def mv(self, request: Request) -> Response:
        wanted: MoveRequest = await self._read(request, MoveRequest)
        kind = self.kernel.fs.stat(wanted.old, **self.by).kind
        new = self._target(wanted.new, wanted.old.rstrip("/").rpartition("/")[2], kind)
        self.kernel.fs.rename(wanted.old, new, **self.by)
        return await self._settled()

    def _target(self, path: str, name: str, kind: FileKind = FileKind.FILE) -> str:
        """Where something of this name and kind goes that is put at `path`: into it, if it is a directory."""
        with contextlib.suppress(FileNotFound):
            if self.kernel.fs.stat(path, **self.by).kind is FileKind.DIRECTORY:
                return _join(path, name)
        if path.endswith("/") and kind is FileKind.FILE:
            raise NotADirectory(f"{path!r} is no directory: make it first, or leave the '/' at its end out")
        return path

    async def mkdir(self, request: Request) -> Response:
        wanted: DirectoryRequest = await self._read(request, DirectoryRequest)
        self.kernel.fs.mkdir(wanted.path, **self.by)
        return await self._settled()

    async def chmod(self, request: Request) -> Response:
        wanted: ModeRequest = await self._read(request, ModeRequest)
        self.kernel.fs.chmod(wanted.path, wanted.mode, **self.by)
        return await self._settled()

    async def _settled(self) -> Response:
        if self.kernel.durable is not None:
            await asyncio.gather(*self.kernel.durable.settle())
        return json_response({})

    # --- the whole of it ---

    async def df(self, request: Request) -> Response:
        disk, durable, config = None, self.kernel.durable, self.kernel.config
        if durable is not None:
            disk = {
                "path": str(config.kv_dir),
                "n_bytes": durable.store.n_bytes,
                "n_bytes_max": None if config.kv_dir_size is None else int(config.kv_dir_size * 2**30),
                "n_files": len(durable.ledger.copies),
            }
        return json_response({"devices": self.kernel.fs.df(OPERATOR), "disk": disk})

    async def fsck(self, request: Request) -> Response:
        fs = self.kernel.fs
        with heart.loading():  # a second and more with 100,000 files
            problems = check(fs, self.kernel.processes)
        return json_response({"problems": problems, "checked": counts(fs)._asdict()})

    async def lsof(self, request: Request) -> Response:
        """Every open file of every process, with all its names."""
        names: dict[int, list[str]] = {}
        for path, node in self.kernel.fs.names.walk(self.kernel.fs.names.root):
            if isinstance(node, Inode):
                names.setdefault(node.ino, []).append(path)
        found = []
        for process in self.kernel.processes.values():
            for fd, handle in process.handles():
                if isinstance(handle, FileHandle):
                    opened = {"pid": process.pid, "name": process.name, "fd": fd}
                    found.append(opened | self._open(handle.file, names))
        return json_response(found)

    def _open(self, file: OpenFile, names: dict[int, list[str]]) -> dict[str, Any]:
        inode, locks = file.inode, self.kernel.fs.locks
        return {
            "ino": inode.ino,
            "paths": names.get(inode.ino, []),
            "mode": file.mode,
            "lock": locks.mode_of(file),
            "waits_for": locks.wanted_by(file),
            "is_written": inode.claimed,
            "n_tokens": len(inode.tokens),
        }


def _path(request: Request) -> str:
    return str(request.query_params.get("path", "/"))


def _join(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}"
