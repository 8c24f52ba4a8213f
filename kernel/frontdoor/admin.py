"""What is behind the unix socket: everything that this machine's owner may do. `sdk/client.py` is the other side.

    POST /run                run a file or an installed program; a line of JSON per event (see respond.Lines)
    POST /ps/PID/input       a line for the program's `input`, or the end of input
    GET  /ps                 running processes
    POST /kill/PID
    *    /fs/...             KV files: `files.py`
    GET  /workers            POST /workers/attach  /workers/detach
    GET  /programs           GET /describe  ?file= or ?program=
    GET  /last-end           why the kernel before this one ended, if it was not in order

Whoever may open the socket is trusted, and nobody else can: its mode is 0600 (`server.py`). Errors are the same
objects as on the port.
"""

from pathlib import Path
from typing import Any

from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from kernel.client import Client
from kernel.core import AttachError, Kernel
from kernel.frontdoor.body import Priority, TenantName, read_as
from kernel.frontdoor.errors import Refusal
from kernel.frontdoor.files import Files
from kernel.frontdoor.observe import Observe
from kernel.frontdoor.openai import json_response
from kernel.frontdoor.public import HANDLERS
from kernel.frontdoor.respond import Lines
from kernel.loader import LoadError, Program, installed, load_file, load_installed, options
from kernel.rundir import LastEnd, RunDirectory
from kernel.workers import Worker
from sdk.abi.values import Pid

OWNER = "local"  # of everything that is started through the socket


class RunRequest(Struct, forbid_unknown_fields=True):
    """`args` are JSON values by name, or the words of a command line."""

    file: str | None = None
    program: str | None = None
    args: dict[str, Any] | list[str] = {}
    interactive: bool = False  # the client will answer `input`
    detach: bool = False  # the program outlives the request, and nobody sees its events
    priority: Priority = 0
    tenant: TenantName | None = None  # default: the owner


class InputRequest(Struct, forbid_unknown_fields=True):
    line: str | None  # None: there will be no more


class WorkerRequest(Struct, forbid_unknown_fields=True):
    address: str


class DetachRequest(Struct, forbid_unknown_fields=True):
    address: str
    drain: bool = False  # move what is on it to the others first


class Admin:
    """The endpoints."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        given = kernel.config.run_directory
        self.directory = None if given is None else RunDirectory(given)  # what the next kernel will know
        self.routes = [
            Route("/run", self.run, methods=["POST"]),
            Route("/ps", self.ps),
            Route("/ps/{pid:int}/input", self.input, methods=["POST"]),
            Route("/kill/{pid:int}", self.kill, methods=["POST"]),
            Route("/workers", self.workers),
            Route("/workers/attach", self.attach, methods=["POST"]),
            Route("/workers/detach", self.detach, methods=["POST"]),
            Route("/programs", self.programs),
            Route("/describe", self.describe),
            Route("/last-end", self.last_end),
            *Files(kernel).routes,
            *Observe(kernel).routes,
        ]

    async def _read(self, request: Request, tp: Any) -> Any:
        return await read_as(request, self.kernel.config.max_body_bytes, tp)

    # --- programs ---

    async def run(self, request: Request) -> Response:
        kernel = self.kernel
        wanted: RunRequest = await self._read(request, RunRequest)
        program = _program(wanted.file, wanted.program)
        try:
            if isinstance(wanted.args, list):
                args = program.bind(options(wanted.args), text=True)
            else:
                args = program.bind(wanted.args, text=False)
        except LoadError as e:
            raise Refusal(400, str(e), code="EINVAL") from None
        terms: Any = {"owner": OWNER, "priority": wanted.priority, "tenant": wanted.tenant}
        if wanted.detach:
            return json_response({"pid": kernel.spawn(program, args, client=None, **terms).pid})
        client = Client(interactive=wanted.interactive, n_buffered_max=kernel.config.max_client_events)
        return Lines(kernel, program, args, client=client, **terms)

    async def programs(self, request: Request) -> Response:
        return json_response([{"name": name, "doc": doc} for name, doc in installed().items()])

    async def describe(self, request: Request) -> Response:
        query = request.query_params
        return json_response(_program(query.get("file"), query.get("program")).describe())

    async def last_end(self, request: Request) -> Response:
        end = None if self.directory is None else self.directory.kept(LastEnd)
        return json_response({"reason": None if end is None else end.reason})

    # --- processes ---

    async def ps(self, request: Request) -> Response:
        return json_response(self.kernel.ps())

    async def kill(self, request: Request) -> Response:
        self.kernel.kill(Pid(request.path_params["pid"]), "killed by the operator")
        return json_response({})

    async def input(self, request: Request) -> Response:
        pid = request.path_params["pid"]
        wanted: InputRequest = await self._read(request, InputRequest)
        process = self.kernel.processes.get(Pid(pid))
        client = None if process is None else process.client
        if client is None:
            raise Refusal(404, f"no process {pid} waits for input", code="ESRCH")
        if wanted.line is None:
            client.no_more_input()
        elif not client.answer(wanted.line):
            raise Refusal(409, f"process {pid} does not wait for input now", code="EBUSY")
        return json_response({})

    # --- workers ---

    async def workers(self, request: Request) -> Response:
        return json_response([self._worker(worker) for worker in self.kernel.workers])

    async def attach(self, request: Request) -> Response:
        wanted: WorkerRequest = await self._read(request, WorkerRequest)
        try:
            worker = await self.kernel.attach(wanted.address)
        except AttachError as e:
            raise Refusal(400, str(e), code="EINVAL") from None
        if self.directory is not None:
            self.directory.attached(wanted.address)
        return json_response(self._worker(worker))

    async def detach(self, request: Request) -> Response:
        wanted: DetachRequest = await self._read(request, DetachRequest)
        try:
            await self.kernel.detach(wanted.address, drain=wanted.drain)
        except AttachError as e:
            raise Refusal(400, str(e), code="EINVAL") from None
        if self.directory is not None:
            self.directory.detached(wanted.address)
        return json_response({})

    def _worker(self, worker: Worker) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "name": worker.name,
            "state": worker.state.value,
            "local_pid": worker.local_pid,
            "silent_s": self.kernel.now() - worker.heard,
            "n_batches": worker.n_batches,
            "n_tokens": worker.n_tokens,
            "step_s": worker.step_s,
        }
        if worker.welcome is not None:
            w = worker.welcome
            shown |= {"device": w.device, "attention": w.attention, "model": w.model.name, "dtype": w.model.dtype}
        usage = self.kernel.fs.devices().get(worker.name)
        return shown if usage is None else shown | usage._asdict()


def _program(file: str | None, name: str | None) -> Program:
    """Raises Refusal."""
    try:
        if file is not None and name is None:
            if not file.startswith("/"):
                raise LoadError(f"{file} is no absolute path, and the kernel does not know what it is relative to")
            return load_file(Path(file))
        if name is not None and file is None:
            return load_installed(name)
    except LoadError as e:
        raise Refusal(400, str(e), code="ENOENT") from None
    raise Refusal(400, "name either a file or a program", code="EINVAL")


def admin_app(kernel: Kernel) -> ASGIApp:
    return Starlette(routes=Admin(kernel).routes, exception_handlers=HANDLERS)
