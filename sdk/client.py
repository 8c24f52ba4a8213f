"""The other side of the kernel's unix socket, for `lip` and for scripts of this machine's owner.

    async with Client() as kernel:
        async for event in kernel.run(program="chat", args={"prompt": "Hello"}):
            ...

One method for each endpoint of `kernel/frontdoor/admin.py`; answers are plain dicts and lists, as they came. Every
failure is a `KernelError` of one line.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx
import msgspec
from msgspec import UNSET, Struct, UnsetType

from sdk.abi.paths import check_private, socket_path

CONNECT_S = 5.0

PIECE_BYTES = 1 << 20  # of a file that is imported


class KernelError(Exception):
    """The kernel refused a request or could not be asked; the text is one line. `status` is HTTP's, 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class KernelLost(KernelError):
    """The kernel ended in the middle of a request."""


class NoKernel(KernelError):
    """Nothing listens on the socket."""


class Exit(Struct, frozen=True):
    """How a program ended, as `ExitStatus`, with the result decoded."""

    pid: int
    code: int
    result: Any = None
    error: str = ""
    traceback: str = ""


class Event(Struct, frozen=True):
    """One thing that happened to a program; exactly one of `pid`, `emit`, `prompt` and `exit` is set."""

    pid: int | None = None  # it was started
    emit: Any | UnsetType = UNSET  # it emitted this, on `stream`
    stream: str | None = None
    prompt: str | None = None  # it wants a line: answer with `Client.input`
    exit: Exit | None = None  # it ended; the last event


class Client:
    """A connection to the kernel that listens at `path` (default: where it listens unless told otherwise)."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = socket_path() if path is None else path
        transport = httpx.AsyncHTTPTransport(uds=str(self.path), limits=httpx.Limits(max_connections=None))
        timeout = httpx.Timeout(None, connect=CONNECT_S)  # a program may be silent for as long as it likes
        self._http = httpx.AsyncClient(transport=transport, base_url="http://kernel", timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    # --- programs ---

    async def run(
        self,
        *,
        file: Path | None = None,
        program: str | None = None,
        args: Mapping[str, Any] | Sequence[str] = {},
        interactive: bool = False,
        priority: int = 0,
        tenant: str | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Run a file or an installed program and follow it to its end; leaving the loop ends it.

        `args` are values by name, or the words of a command line. With `interactive` the program may ask for
        lines. `priority`: lower goes first. `tenant`: whose share of the machine it uses (default: the owner's).
        Raises KernelError (status 400 for a program that cannot be loaded or arguments that do not fit).
        """
        body = _run_request(file, program, args, priority, tenant) | {"interactive": interactive}
        self._check()
        try:
            async with self._http.stream("POST", "/run", content=msgspec.json.encode(body)) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refusal(response)
                async for line in response.aiter_lines():
                    yield msgspec.json.decode(line, type=Event)
        except httpx.TransportError as e:
            raise self._lost(e) from None

    async def start(
        self,
        *,
        file: Path | None = None,
        program: str | None = None,
        args: Mapping[str, Any] | Sequence[str] = {},
        priority: int = 0,
        tenant: str | None = None,
    ) -> int:
        """Start a program that goes on without us; returns its pid. Otherwise as `run`."""
        found = await self._post("/run", _run_request(file, program, args, priority, tenant) | {"detach": True})
        pid: int = found["pid"]
        return pid

    async def input(self, pid: int, line: str | None) -> None:
        """Answer a prompt; None: there will be no more lines."""
        await self._post(f"/ps/{pid}/input", {"line": line})

    async def programs(self) -> list[dict[str, Any]]:
        """Installed programs: `name` and `doc`."""
        found: list[dict[str, Any]] = await self._get("/programs")
        return found

    async def describe(self, *, file: Path | None = None, program: str | None = None) -> dict[str, Any]:
        """What a program takes: `name`, `doc`, `parameters`, `schema`."""
        query = {"file": str(file.absolute())} if file is not None else {"program": program or ""}
        found: dict[str, Any] = await self._get("/describe", **query)
        return found

    async def last_end(self) -> str | None:
        """Why the kernel before this one ended, if its supervisor has restarted it."""
        found: dict[str, str | None] = await self._get("/last-end")
        return found["reason"]

    # --- processes ---

    async def ps(self) -> list[dict[str, Any]]:
        """Running processes, as `ProcessInfo`."""
        found: list[dict[str, Any]] = await self._get("/ps")
        return found

    async def kill(self, pid: int) -> None:
        """Begin to end a process."""
        await self._post(f"/kill/{pid}", {})

    # --- files: paths begin at the real root, whatever tenants see ---

    async def ls(self, path: str = "/") -> list[dict[str, Any]]:
        """Entries of a directory, or the file itself: `name` and what `stat` has."""
        found: list[dict[str, Any]] = await self._get("/fs/ls", path=path)
        return found

    async def tree(self, path: str = "/") -> list[dict[str, Any]]:
        """The same of all that is below a directory; names are paths from there."""
        found: list[dict[str, Any]] = await self._get("/fs/tree", path=path)
        return found

    async def stat(self, path: str) -> dict[str, Any]:
        """Of one file or directory: `path`, the fields of `Stat`, `n_bytes` of KV with what is shared, `is_saved` (a
        version of it is on disk). Times are seconds from now: `created_s_ago`, `modified_s_ago`, `used_s_ago`, and
        `pinned_for_s` (None: while it is open)."""
        found: dict[str, Any] = await self._get("/fs/stat", path=path)
        return found

    async def cat(self, path: str, *, text: bool = True) -> dict[str, Any]:
        """The `tokens` of a file, and their `text`."""
        found: dict[str, Any] = await self._get("/fs/cat", path=path, **({"text": "1"} if text else {}))
        return found

    async def export(self, path: str, target: IO[bytes]) -> int:
        """Write a file, as it can be imported, to `target`; returns the number of bytes."""
        self._check()
        n_bytes = 0
        try:
            async with self._http.stream("GET", "/fs/export", params={"path": path}) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refusal(response)
                async for piece in response.aiter_bytes():
                    n_bytes += target.write(piece)
        except httpx.TransportError as e:
            raise self._lost(e) from None
        return n_bytes

    async def import_file(self, path: str, source: IO[bytes], name: str = "") -> dict[str, Any]:
        """Make a new file of what `export` has written: its `n_tokens`, and `n_resident` of them with K/V. `name` is
        what it is called where `path` is a directory."""

        async def pieces() -> AsyncGenerator[bytes, None]:
            while piece := source.read(PIECE_BYTES):
                yield piece

        found: dict[str, Any] = await self._request(
            "POST", "/fs/import", params={"path": path, "name": name}, content=pieces()
        )
        return found

    async def rm(self, path: str, *, recursive: bool = False) -> None:
        """Remove the name of a file, or an empty directory; with `recursive` all that is in it first."""
        await self._post("/fs/rm", {"path": path, "recursive": recursive})

    async def mv(self, old: str, new: str) -> None:
        """Give a file or directory another path, or move it into the directory `new`."""
        await self._post("/fs/mv", {"old": old, "new": new})

    async def mkdir(self, path: str) -> None:
        """Make a directory in one that is there."""
        await self._post("/fs/mkdir", {"path": path})

    async def chmod(self, path: str, mode: int) -> None:
        """Set the nine mode bits."""
        await self._post("/fs/chmod", {"path": path, "mode": mode})

    async def df(self) -> dict[str, Any]:
        """`devices`, as `DeviceSpace`; and the `disk`, None without `--kv-dir`: its `path`, the `n_bytes` and `n_files`
        that are saved there, and `n_bytes_max` (None: no limit)."""
        found: dict[str, Any] = await self._get("/fs/df")
        return found

    async def fsck(self) -> dict[str, Any]:
        """`problems`: what is wrong with the file system, a line each; `checked`: how much of everything there is."""
        found: dict[str, Any] = await self._get("/fs/fsck")
        return found

    async def lsof(self) -> list[dict[str, Any]]:
        """The open files of all processes, with their locks."""
        found: list[dict[str, Any]] = await self._get("/fs/lsof")
        return found

    # --- workers ---

    async def workers(self) -> list[dict[str, Any]]:
        """Attached workers, with what they have done."""
        found: list[dict[str, Any]] = await self._get("/workers")
        return found

    async def attach(self, address: str) -> dict[str, Any]:
        """Attach the worker that listens at `address`."""
        found: dict[str, Any] = await self._post("/workers/attach", {"address": address})
        return found

    async def detach(self, address: str, *, drain: bool = False) -> None:
        """Let a worker go; with `drain`, when its files are on the other workers."""
        await self._post("/workers/detach", {"address": address, "drain": drain})

    # --- looking on ---

    async def top(self) -> dict[str, Any]:
        """How things stand: uptime, totals since the start, calls, workers, processes."""
        found: dict[str, Any] = await self._get("/top")
        return found

    async def trace(self, pid: int | None, seconds: float) -> AsyncGenerator[bytes, None]:
        """Record a process and its children (None: all) for so long; an empty piece when the recording has begun,
        then the file. Leaving the loop ends it. Raises KernelError."""
        body = msgspec.json.encode({"pid": pid, "seconds": seconds})
        self._check()
        try:
            async with self._http.stream("POST", "/trace", content=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refusal(response)
                yield b""
                async for piece in response.aiter_bytes():
                    yield piece
        except httpx.TransportError as e:
            raise self._lost(e) from None

    async def stop_trace(self) -> None:
        """End the recording now."""
        await self._post("/trace/stop", {})

    # --- the wire ---

    async def _get(self, endpoint: str, /, **query: str) -> Any:
        return await self._request("GET", endpoint, params=query)

    async def _post(self, path: str, body: Any) -> Any:
        return await self._request("POST", path, content=msgspec.json.encode(body))

    async def _request(self, method: str, path: str, **options: Any) -> Any:
        self._check()
        try:
            response = await self._http.request(method, path, **options)
        except httpx.TransportError as e:
            raise self._lost(e) from None
        if response.status_code != 200:
            raise _refusal(response)
        return msgspec.json.decode(response.content)

    def _check(self) -> None:
        """That whatever listens there is ours. Raises KernelError."""
        try:
            check_private(self.path)
        except FileNotFoundError:
            raise self._no_kernel() from None
        except PermissionError as e:
            raise KernelError(str(e)) from None

    def _lost(self, error: httpx.TransportError) -> KernelError:
        if isinstance(error, httpx.ConnectError):
            return self._no_kernel()
        return KernelLost("the kernel went away in the middle of the request")

    def _no_kernel(self) -> NoKernel:
        return NoKernel("no kernel is running; start one with `python -m kernel`")


def _run_request(
    file: Path | None, program: str | None, args: Mapping[str, Any] | Sequence[str], priority: int, tenant: str | None
) -> dict[str, Any]:
    return {
        "file": None if file is None else str(file.absolute()),
        "program": program,
        "args": dict(args) if isinstance(args, Mapping) else list(args),
        "priority": priority,
        "tenant": tenant,
    }


def _refusal(response: httpx.Response) -> KernelError:
    try:
        message = msgspec.json.decode(response.content)["error"]["message"]
    except (msgspec.DecodeError, KeyError, TypeError):
        message = f"the kernel answered {response.status_code}"
    return KernelError(message, response.status_code)
