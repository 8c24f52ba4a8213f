"""One simulated machine room: a kernel, its network, its workers, an operator and clients. The kernel is the real one.

`World` puts them together for a plan; `Host` is a place where worker processes run, one after another; the operator
attaches whatever process is there and not attached, as a person or a supervisor would; a client reads what its
program emits, sometimes slowly. `Trace` hashes all that crosses the network and every exit: two runs of one seed are
the same run if their hashes are.

Never add here: what goes wrong (`faults.py`), and what may not (`checks.py`).
"""

import asyncio
import hashlib
import logging
import random
import struct
import traceback
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from gpuworker import wire
from gpuworker.null import NullBackend
from kernel import dispatch, stepper
from kernel.boot import SYSTEM_CALLS  # noqa: F401  (imports the handlers)
from kernel.client import Client
from kernel.config import Config
from kernel.core import AttachError, Kernel
from kernel.loader import Program
from kernel.process import Process
from kvfs.access import KERNEL
from tests.sim.loop import SimLoop
from tests.sim.material import KINDS, Main
from tests.sim.plan import VOCAB_SIZE, Plan, Start
from tests.sim.sometimes import Observer
from tests.sim.transport import Network, SimTransport
from tests.sim.worker import SimWorker

logging.getLogger("kernel").addHandler(logging.NullHandler())  # it has much to say of lost workers

ATTACH_EVERY_S = 0.1  # how often the operator looks


@cache
def program_of(main: Main) -> Program:
    """A coroutine function as a program that can be spawned."""
    return Program(main.__name__, main, Path(__file__), main.__doc__ or "")


class Trace:
    """The hash of a run, and its story if somebody wants to read it."""

    def __init__(self, clock: Callable[[], float], *, keeps: bool = False) -> None:
        self._clock = clock
        self._hash = hashlib.blake2b(digest_size=16)
        self.lines: list[str] | None = [] if keeps else None

    def message(self, what: str, address: str, frames: wire.Frames) -> None:
        self._hash.update(struct.pack("<d", self._clock()))
        self._hash.update(what.encode() + address.encode())
        for frame in frames:
            self._hash.update(frame)
        if self.lines is not None:
            self.note(f"{what} {address} {spell(frames)}")

    def event(self, text: str) -> None:
        self._hash.update(struct.pack("<d", self._clock()))
        self._hash.update(text.encode())
        self.note(text)

    def note(self, text: str) -> None:
        """For the reader alone."""
        if self.lines is not None:
            self.lines.append(f"{self._clock():10.6f} {text}")

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def spell(frames: wire.Frames) -> str:
    """A message for a reader."""
    if frames[0][:1] == b"{":
        return bytes(frames[0]).decode()[:60]
    head: dict[str, Any] = msgspec.msgpack.decode(frames[0])
    if head.get("type") == "assets":
        return "assets"
    return str(head)[:300]


class Host:
    """A place for a worker process."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.address = f"sim://{number}"
        self.wanted = True  # the operator attaches what is here
        self.busy = False  # with attaching
        self.n_started = 0
        self.worker = self.start()

    def start(self) -> SimWorker:
        """A new process, which knows nothing."""
        plan, world = self.world.plan, self.world
        self.n_started += 1
        self.worker = SimWorker(
            world.network,
            self.address,
            f"{self.address}/{self.n_started}",
            lambda: NullBackend(
                n_pages=world.n_pages,
                n_host_pages=world.n_host_pages,
                page_size=plan.page_size,
                vocab_size=VOCAB_SIZE,
                max_model_len=plan.max_model_len,
                max_rows=max(plan.max_rows, 4),
                max_batch_tokens=plan.max_tokens,
                verify=plan.verify,
            ),
            plan.cost,
            complain=world.complain,
            saw=world.saw,
        )
        return self.worker

    @property
    def is_up(self) -> bool:
        return self.worker.is_alive and not self.worker.is_hung


class SimClient:
    """Somebody who started a program and reads what it says."""

    def __init__(self, world: "World") -> None:
        self.client = Client(interactive=True, n_buffered_max=4)
        self.streams: dict[str, str] = {}  # what came so far
        self._n_answers = 0
        self._pause_s = world.plan.slow_client_s
        self.task = world.loop.create_task(self._read())

    async def _read(self) -> None:
        while (event := await self.client.next()) is not None:
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
            if event.prompt is not None:
                self._n_answers += 1
                self.client.answer(f"answer {self._n_answers}")
            else:
                name = event.stream or ""
                self.streams[name] = self.streams.get(name, "") + event.data


class Run:
    """A program of the plan."""

    def __init__(self, index: int, kind: str, variant: int, process: Process, client: SimClient) -> None:
        self.index = index
        self.kind = kind
        self.variant = variant
        self.process = process
        self.client = client
        self.killed = ""  # why somebody outside has ended it


class World:
    """All of it."""

    def __init__(self, loop: SimLoop, plan: Plan, *, n_tokens: int, keeps_story: bool = False, **settings: Any) -> None:
        """`n_tokens`: how many each worker has room for; `settings`: options of the kernel's, beside the plan's."""
        self.loop = loop
        self.plan = plan
        self.n_pages = -(-n_tokens // plan.page_size)  # of each worker
        self.n_host_pages = int(self.n_pages * plan.host_share)
        self.trace = Trace(loop.time, keeps=keeps_story)
        self.broken: list[str] = []
        self.sometimes: Counter[str] = Counter()
        self.observer = Observer(self)
        dice = random.Random(f"network {plan.seed}")
        self.network = Network(loop, dice, plan.weather, self.trace.message, self.observer)
        self.transport = SimTransport(self.network)
        self.hosts: list[Host] = []
        self.closing = False  # the operator goes home
        self.runs: list[Run] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        stepper.install(loop)
        options: dict[str, Any] = {
            "heartbeat_s": plan.heartbeat_s,
            "worker_suspect_s": plan.suspect_s,
            "worker_silence_s": plan.silence_s,
            "preemption_mode": plan.preemption_mode,
            "max_pinned_share": plan.max_pinned_share,
            "scheduling_policy": plan.scheduling_policy,
            "pass_budget_ms": plan.pass_budget_ms,
            "max_num_seqs": plan.max_rows,
            "max_num_batched_tokens": plan.max_tokens,
            "attach_timeout_s": 2.0,
            "proof_timeout_s": 5.0,
            "kernel_name": "kernel-sim",
            "seed": plan.seed,
            "local_worker": False,
            "http": False,
            "socket": Path("/nonexistent"),
        }
        self.config = Config(**options | settings)
        self.kernel = Kernel(self.config, dispatch.make_door, self.transport, clock=loop.time)

    def saw(self, name: str) -> None:
        """Something rare has happened."""
        self.sometimes[name] += 1

    def complain(self, text: str) -> None:
        """Something happened that must not."""
        if not self.broken:
            self.trace.note(f"BROKEN {text}")
        if text not in self.broken:
            self.broken.append(text)

    # --- the operator ---

    async def attach_all(self) -> None:
        """The first workers of a plan, in undisturbed air."""
        for _ in range(self.plan.n_workers):
            host = self.add_host()
            await self.kernel.attach(host.address)

    def add_host(self) -> Host:
        host = Host(self, len(self.hosts))
        self.hosts.append(host)
        return host

    def watch_over(self) -> None:
        """Attach what is there and not attached, from now on."""
        for host in self.hosts:
            if (
                host.wanted
                and not host.busy
                and not self.closing
                and host.is_up
                and host.address not in self.kernel.workers
            ):
                self.background(self._attach(host))
        self.loop.call_later(ATTACH_EVERY_S, self.watch_over)

    async def _attach(self, host: Host) -> None:
        host.busy = True
        try:
            await self.kernel.attach(host.address)
            self.saw("a worker is attached under load")
        except AttachError as e:
            self.trace.note(f"cannot attach {host.address}: {e}")
        finally:
            host.busy = False

    def background(self, work: Any) -> None:
        """Run something of the world's own."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: "asyncio.Task[Any]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            frames = traceback.extract_tb(error.__traceback__)[:-5:-1]
            where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames)
            self.complain(f"{error!r} at {where}")

    def remove_names(self) -> None:
        """All names that programs have left, and the directories made for them."""
        fs = self.kernel.fs
        for path, _ in reversed(list(fs.names.walk(fs.names.root))):
            fs.unlink(path, who=KERNEL, now=self.loop.time())

    # --- programs ---

    def start(self, index: int, what: Start) -> Run:
        """Start a program for a client of its own."""
        client = SimClient(self)
        process = self.kernel.spawn(
            program_of(KINDS[what.kind]),
            {"seed": what.variant, "tag": f"p{index}"},
            owner="tester",
            client=client.client,
            tenant=what.tenant,
            priority=what.priority,
        )
        run = Run(index, what.kind, what.variant, process, client)
        self.trace.event(f"process {process.pid} is {what.kind} {what.variant}")
        self.runs.append(run)
        self.background(self._await_exit(run))
        return run

    async def _await_exit(self, run: Run) -> None:
        status = await run.process.wait_exit()
        self.trace.event(f"exit {status.pid} {status.code} {status.error} {status.result.decode()}")
        await run.client.task

    def end(self, run: Run, reason: str, *, leaves: bool) -> None:
        """Somebody outside ends a program: its client `leaves`, or the operator kills it."""
        if run.process.status is not None or run.killed:
            return
        run.killed = reason
        self.trace.event(f"process {run.process.pid}: {reason}")
        if self.observer.is_in_flight(run.process):
            self.saw("a program is killed while its batch is in flight")
        if leaves:
            run.client.client.leave()
        self.kernel.kill(run.process.pid, reason)
