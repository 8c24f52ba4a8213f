"""The kernel itself: processes, files, channels, the model's language and the fleet of workers, tied together.

System calls reach everything through this object; front doors start and end programs through it. Decisions are
made by kvfs, `kernel/scheduler.py`, `kernel/batcher.py` and `kernel/workers.py`, worker I/O by `kernel/fleet.py`.
Never add a policy here.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from contextvars import Context
from typing import Any

import msgspec
from msgspec.structs import asdict

from kernel.advisor import Advisor
from kernel.attachment import AttachError
from kernel.channels import Channels
from kernel.client import Client
from kernel.config import Config
from kernel.counters import Counters
from kernel.credentials import credentials, tenant_of
from kernel.durable import Durable
from kernel.fleet import Fleet
from kernel.guard import XCPU
from kernel.guard import clock as guard_clock
from kernel.jobs import Job
from kernel.language import Language
from kernel.link import Transport
from kernel.loader import LoadError, Program, load_installed
from kernel.mover import Mover, rebalance_forever
from kernel.process import KILLED, Process
from kernel.ready import Ready
from kernel.scheduler import Scheduler
from kernel.tracing import Trace
from kernel.waits import History
from kernel.workers import Worker, Workers
from kvfs.fs import Kvfs
from kvfs.quota import Allowed
from sdk.abi.errors import Busy, FileNotFound, InvalidArgument, NoDevice, NoSuchProcess, QuotaExceeded
from sdk.abi.table import Syscall
from sdk.abi.trap import door
from sdk.abi.values import ModelInfo, Pid, ProcessInfo

__all__ = ["AttachError", "Kernel"]

DoorMaker = Callable[["Kernel", Process], Callable[[Syscall[Any]], Any]]


class Kernel:
    """One running kernel. Make it inside its event loop; `kernel/boot.py` does."""

    def __init__(
        self, config: Config, make_door: DoorMaker, transport: Transport, *, clock: Callable[[], float] = guard_clock
    ) -> None:
        """`clock` measures steps of programs. It is the loop's, but exact; in a simulation just the loop's."""
        self.config = config
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.scheduler = Scheduler(config.scheduling_policy, ageing_s=config.ageing_s, shares=config.tenant_share)
        self.ready = Ready(self.loop, self.scheduler.rank, budget_s=config.pass_budget_ms / 1000, clock=clock)
        self.history = History()
        self.fs = Kvfs(
            max_files=config.max_files,
            max_pinned_share=config.max_pinned_share,
            quotas={user: Allowed(**asdict(quota)) for user, quota in config.quota.items()},
            now=self.began,
            secret=random.Random(config.seed).randbytes(32),
        )
        self.channels = Channels(config.max_channel_messages, config.max_channels)
        self.counters = Counters()
        self.processes: dict[Pid, Process] = {}
        self.panicked: asyncio.Future[BaseException] = self.loop.create_future()
        self.fleet = Fleet(
            config,
            self.fs,
            self.counters,
            transport,
            order=self.scheduler.order,
            holder=lambda pid: self.processes.get(Pid(pid)),
            kill=lambda pid, reason: self.kill(Pid(pid), reason),
            panic=self.panic,
            flush=self.ready.flush,
            clock=self.clock,
        )
        self.mover = Mover(self.fleet)
        self.fleet.spawn(rebalance_forever(self.mover, config.rebalance_s))
        self.advisor = Advisor(self.fleet, self.scheduler, config.tenant_share)
        self.fleet.spawn(self.advisor.look_forever())
        self.durable: Durable | None = None  # with --kv-dir
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
        """Facts of the served model. Raises NoDevice before the first worker has come."""
        info = self.fleet.workers.model
        if info is None:
            raise NoDevice("no worker serves a model: attach one with `lip worker attach tcp://HOST:PORT`")
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
        """Queue model work of a process. Raises NoDevice, DeviceLost, Busy, AccessDenied, QuotaExceeded."""
        process.bill.need_time()
        process.account.enter()
        self.fleet.submit(job, process.account, claim=claim, again=again)
        if process.trace is not None:
            process.trace.submitted(job, process.pid, self.clock())

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

    async def detach(self, name: str, *, drain: bool = False) -> None:
        """Let a worker go; what is on it moves to the others first, or is computed again there. Raises AttachError."""
        if drain:
            await self.mover.drain(name)
        else:
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
        detach: bool = False,
        priority: int = 0,
        tenant: str | None = None,
    ) -> Process:
        """Start a program with arguments that `bind` has checked. Raises QuotaExceeded.

        A child has its parent's priority, tenant and limits, whatever is said here; `detach`: it is not `parent`'s
        child, but has those all the same. The tenant is the owner unless it is named; see `kernel/credentials.py`."""
        if self.stopping:
            raise QuotaExceeded("the kernel is stopping")
        if len(self.processes) >= self.config.max_processes:
            raise QuotaExceeded(f"{self.config.max_processes} processes are running; raise --max-processes")
        now, pid = self.now(), Pid(self._next_pid)
        who = credentials(owner, tenant or owner, pid, parent=parent, groups=self.config.groups)
        process = Process(
            pid,
            program.name,
            who=who,
            bill=self.fs.quotas.process(pid),
            program=program,
            parent=None if detach else parent,
            client=client,
            began=now,
            seed=self._dice.getrandbits(64),
            n_handles_max=self.config.max_handles,
            account=self.scheduler.open(
                program.name,
                now,
                tenant=tenant_of(who),
                priority=priority,
                parent=None if parent is None else parent.account,
                limits=None if parent is None else parent.limits_left(),
                detached=detach,
            ),
            ready=self.ready,
            history=self.history,
            clock=self.clock,
            on_done=self._process_done,
        )
        self._next_pid += 1
        self.counters.n_spawned += 1
        self.processes[process.pid] = process
        self._empty.clear()
        if process.parent is not None:
            process.parent.children[process.pid] = process
        trace = self.fleet.trace
        if trace is not None and (trace.everybody or (parent is not None and parent.trace is trace)):
            process.record(trace, self.clock())
        context = Context()
        context.run(door.set, self._make_door(self, process))
        process.start(program.main(**args), context)
        return process

    def kill(self, pid: Pid, reason: str) -> None:
        """Begin to end a process. Raises NoSuchProcess."""
        process = self.processes.get(pid)
        if process is None:
            raise NoSuchProcess(f"no process {pid} is running")
        process.end(KILLED, reason)

    @property
    def n_ready(self) -> int:
        """Calls that are answered, and programs that begin, and wait for their turn."""
        return len(self.ready)

    def service_by_program(self) -> dict[str, float]:
        """Seconds of devices that programs have had since the start, with all that they started, by name."""
        found = dict(self.scheduler.ended_s)
        for process in self.processes.values():
            label = self.scheduler.label(process.account)
            found[label] = found.get(label, 0.0) + process.account.device_s
        return found

    def ps(self) -> list[ProcessInfo]:
        """All running processes, oldest first."""
        now = self.now()
        return [process.info(now) for process in self.processes.values()]

    # --- recording ---

    def record(self, pid: Pid | None) -> Trace:
        """Begin to record a process and all that it starts, or everybody. Raises NoSuchProcess, Busy."""
        if self.fleet.trace is not None:
            raise Busy("somebody is recording already: one trace at a time")
        if pid is not None and pid not in self.processes:
            raise NoSuchProcess(f"no process {pid} is running")
        now = self.clock()
        trace = self.fleet.trace = Trace(now, everybody=pid is None)
        traced = list(self.processes.values()) if pid is None else [self.processes[pid]]
        for process in traced:
            process.record(trace, now)
            if pid is not None:
                traced += process.children.values()
        for job in self.fleet.jobs():
            trace.submitted(job, job.file.pid, now)
        return trace

    def stop_recording(self) -> None:
        """From now on nothing is recorded. Safe to call twice."""
        self.fleet.trace = None
        for process in self.processes.values():
            process.trace = None

    def _process_done(self, process: Process) -> None:
        del self.processes[process.pid]
        self.fs.end_process(process.who, self.now())
        self.scheduler.close(process.account)
        self.counters.n_ended += 1
        self.counters.program_s.add(self.now() - process.began)
        assert process.status is not None
        self.counters.n_guard_kills += process.status.code == XCPU
        if not self.processes:
            self._empty.set()
        parent = process.parent
        if parent is None or parent.children.pop(process.pid, None) is None or parent.dying:
            return
        parent.children_cpu_s += process.tree_cpu_s
        parent.child_ended(process.status)

    # --- the end ---

    async def stop(self, grace_s: float) -> None:
        """End every program, then let the workers go. Nothing is left behind."""
        self.stopping = True
        for process in list(self.processes.values()):
            process.end(KILLED, "the kernel is stopping")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        if self.durable is not None:
            await self.durable.close(grace_s)
        await self.fleet.stop()
