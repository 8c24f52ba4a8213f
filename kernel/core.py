"""The kernel itself: processes, files, channels, the model's language and the fleet of workers, tied together.

System calls reach everything through this object; front doors start and end programs through it. Decisions are
made by kvfs, `kernel/batcher.py` and `kernel/workers.py`, worker I/O by `kernel/fleet.py`. Never add a policy here.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from contextvars import Context
from typing import Any

import msgspec

from kernel.channels import Channels
from kernel.client import Client
from kernel.config import Config
from kernel.fleet import AttachError, Counters, Fleet
from kernel.jobs import Job
from kernel.language import Language
from kernel.loader import LoadError, Program, load_installed
from kernel.process import KILLED, Process
from kernel.workers import Worker, Workers
from kvfs.fs import Kvfs
from sdk.abi.errors import FileNotFound, InvalidArgument, NoDevice, NoSuchProcess, QuotaExceeded
from sdk.abi.table import Syscall
from sdk.abi.trap import door
from sdk.abi.values import ExitStatus, ModelInfo, Pid, ProcessInfo

__all__ = ["AttachError", "Kernel"]

DoorMaker = Callable[["Kernel", Process], Callable[[Syscall[Any]], Any]]


class Kernel:
    """One running kernel. Make it inside its event loop; `kernel/boot.py` does."""

    def __init__(self, config: Config, make_door: DoorMaker) -> None:
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.fs = Kvfs(max_files=config.max_files)
        self.channels = Channels(config.max_channel_messages, config.max_channels)
        self.counters = Counters()
        self.processes: dict[Pid, Process] = {}
        self.panicked: asyncio.Future[BaseException] = self.loop.create_future()
        self.fleet = Fleet(config, self.fs, self.counters, self.panic)
        self.stopping = False
        self._make_door = make_door
        self._dice = random.Random(config.seed)
        self._next_pid = 1
        self._empty = asyncio.Event()
        self._empty.set()

    def now(self) -> float:
        """Seconds on the kernel's monotonic clock."""
        return self.loop.time()

    def panic(self, error: BaseException) -> None:
        """An invariant is broken: stop, with the story."""
        if not self.panicked.done():
            self.panicked.set_result(error)

    # --- the model ---

    def model_info(self) -> ModelInfo:
        """Facts of the served model. Raises NoDevice while no worker is there."""
        serving = self.fleet.workers.serving
        if serving is None or serving.welcome is None:
            raise NoDevice("no worker serves a model: attach one with `lip worker attach tcp://HOST:PORT`")
        info = serving.welcome.model
        name = self.config.served_model_name[0] if self.config.served_model_name else info.name
        return msgspec.structs.replace(info, name=name)

    @property
    def model_names(self) -> list[str]:
        """The names under which clients may ask for the model."""
        return self.config.served_model_name or [self.model_info().name]

    @property
    def language(self) -> Language:
        """Raises NoDevice while no worker has brought the tokenizer."""
        if self.fleet.language is None:
            raise NoDevice("no worker has brought a tokenizer yet: attach one with `lip worker attach tcp://HOST:PORT`")
        return self.fleet.language

    @property
    def healthy(self) -> bool:
        """A worker is there that has answered a batch, and not been silent since."""
        return self.fleet.workers.healthy

    def submit(self, job: Job, process: Process, *, claim: bool, again: bool) -> None:
        """Queue model work of a process. Raises NoDevice, DeviceLost, Busy, AccessDenied."""
        self.fleet.submit(job, process, claim=claim, again=again)

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more."""
        self.fleet.cancel(job)

    # --- workers ---

    @property
    def workers(self) -> Workers:
        return self.fleet.workers

    async def attach(self, address: str) -> Worker:
        """Attach the worker that listens at `address`. Raises AttachError."""
        return await self.fleet.attach(address)

    async def detach(self, name: str) -> None:
        """Let a worker go; programs with files on it get EIO. Raises AttachError."""
        await self.fleet.detach(name)

    # --- processes ---

    def installed(self, name: str) -> Program:
        """An installed program. Raises FileNotFound."""
        try:
            return load_installed(name)
        except LoadError as e:
            raise FileNotFound(str(e)) from None

    def bind(self, program: Program, args: dict[str, Any]) -> dict[str, Any]:
        """Check arguments against a program's parameters. Raises InvalidArgument."""
        try:
            return program.bind(args, text=False)
        except LoadError as e:
            raise InvalidArgument(str(e)) from None

    def spawn(
        self,
        program: Program,
        args: dict[str, Any],
        *,
        owner: str,
        client: Client | None,
        parent: Process | None = None,
    ) -> Process:
        """Start a program with arguments that `bind` has checked. Raises QuotaExceeded."""
        if self.stopping:
            raise QuotaExceeded("the kernel is stopping")
        if len(self.processes) >= self.config.max_processes:
            raise QuotaExceeded(f"{self.config.max_processes} processes are running; raise --max-processes")
        process = Process(
            Pid(self._next_pid),
            program.name,
            owner=owner,
            program=program,
            parent=parent,
            client=client,
            began=self.now(),
            seed=self._dice.getrandbits(64),
            n_handles_max=self.config.max_handles,
            on_done=self._process_done,
        )
        self._next_pid += 1
        self.counters.n_spawned += 1
        self.processes[process.pid] = process
        self._empty.clear()
        if parent is not None:
            parent.children[process.pid] = process
        context = Context()
        context.run(door.set, self._make_door(self, process))
        process.start(program.main(**args), context, self.loop)
        return process

    def kill(self, pid: Pid, reason: str) -> None:
        """Begin to end a process. Raises NoSuchProcess."""
        process = self.processes.get(pid)
        if process is None:
            raise NoSuchProcess(f"no process {pid} is running")
        process.end(KILLED, reason)

    def ps(self) -> list[ProcessInfo]:
        """All running processes, oldest first."""
        now = self.now()
        return [process.info(now) for process in self.processes.values()]

    def _process_done(self, process: Process) -> None:
        del self.processes[process.pid]
        self.counters.n_ended += 1
        if not self.processes:
            self._empty.set()
        parent = process.parent
        if parent is None or parent.children.pop(process.pid, None) is None or parent.dying:
            return
        assert process.status is not None
        self._tell_parent(parent, process.status)

    def _tell_parent(self, parent: Process, status: ExitStatus) -> None:
        for entry in parent.child_waiters:
            pid, future = entry
            if pid in (None, status.pid) and not future.done():
                parent.child_waiters.remove(entry)
                future.set_result(status)
                return
        parent.unwaited[Pid(status.pid)] = status

    # --- the end ---

    async def stop(self, grace_s: float) -> None:
        """End every program, then let the workers go. Nothing is left behind."""
        self.stopping = True
        for process in list(self.processes.values()):
            process.end(KILLED, "the kernel is stopping")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        await self.fleet.stop()
