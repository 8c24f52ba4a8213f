"""The fleet: attaching workers, feeding them batches, and going on without those that are gone. The rim of level 2.

Every message of a worker and every submitted job ends in `_pump`, which asks the worker's batcher for the next
batch. It runs once per loop pass, after all programs that were ready have had their turn, so what they ask for
together is computed together. What to send is `kernel/batcher.py`'s to decide, whom to take and where a file goes
`kernel/workers.py`'s.

A worker that is lost takes KV along and nothing else: its jobs are taken back as if their last steps had never been
asked for, and go to another worker, where their files are computed again from their tokens. Draws are keyed by seed
and position, so what comes next is what would have come. While there is no worker at all jobs wait, for
`no_worker_s`; then they fail with ENODEV.
"""

import asyncio
import logging
import math
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

from gpuworker.wire import (
    Assets,
    BatchDone,
    BatchFailed,
    Bye,
    Detach,
    Fetched,
    FromWorker,
    GetAssets,
    PagesFailed,
    Ping,
    Pong,
    Stored,
)
from kernel import watch
from kernel.attachment import Attached, AttachError
from kernel.batcher import CLOCK_S, WorkerFault
from kernel.config import Config
from kernel.counters import Counters
from kernel.heart import heart
from kernel.holders import Holder
from kernel.jobs import Job
from kernel.joining import equip, greet, prove, speak
from kernel.language import Language
from kernel.link import Transport
from kernel.local import LocalWorker
from kernel.orphans import Orphans
from kernel.pulse import sick
from kernel.recovery import Recovery
from kernel.tracing import Trace
from kernel.turns import Order
from kernel.workers import State, Worker, Workers
from kvfs.fs import Kvfs
from sdk.abi.errors import NoDevice, SyscallError

log = logging.getLogger(__name__)

TIMERS_PER_S = 1000  # a timer for a time between two of the loop's is early, and would be set again and again
GOODBYE_MS = 500  # for the last message to a worker that is let go


class Fleet:
    """All attached workers."""

    def __init__(
        self,
        config: Config,
        fs: Kvfs,
        counters: Counters,
        transport: Transport,
        *,
        order: Order,
        holder: Callable[[int], Holder | None],
        kill: Callable[[int, str], None],
        panic: Callable[[BaseException], None],
        flush: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """`clock`: the loop's, but exact. `flush`: hand out the answers that a batch brought (`kernel/ready.py`)."""
        self.config = config
        self.fs = fs
        self.counters = counters
        self.workers = Workers()
        self.language: Language | None = None  # from the first worker's assets on
        self.trace: Trace | None = None  # while somebody records
        self.bring: Callable[[Job, Attached], bool] | None = None  # from disk; whether the job is held for that
        self._order, self._holder, self._kill, self._panic, self._flush = order, holder, kill, panic, flush
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._name = config.kernel_name or f"kernel-{uuid.uuid4().hex[:12]}"
        self._attached: dict[str, Attached] = {}
        self._jobs: dict[Job, Attached | None] = {}  # None: no worker is there for it
        self._orphans = Orphans(fs)  # those
        self._n_local = 0
        self._n_requests = 0
        self._nonce = 0
        self._transport = transport
        self._tasks: set[asyncio.Task[Any]] = set()
        self.recovery = Recovery(self.spawn, self._attach, self.start_local)
        self._stopping = False
        self.spawn(self._beat())

    def spawn(self, coroutine: Any) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- attaching ---

    async def start_local(self, directory: Path) -> Worker:
        """Start a worker of our own and attach it. Raises WorkerFailed or AttachError."""
        self.recovery.directory = directory
        local = await LocalWorker.start(directory, self.config.worker_options(), self._n_local)
        self._n_local += 1
        try:
            return await self.attach(local.address, local)
        except BaseException:
            await local.end()
            raise

    async def attach(self, address: str, local: LocalWorker | None = None) -> Worker:
        """Attach the worker that listens at `address`. Raises AttachError."""
        if address in self.workers:
            raise AttachError(f"{address} is attached already")
        self.recovery.give_up(address)
        return await self._attach(address, local)

    async def _attach(self, address: str, local: LocalWorker | None = None) -> Worker:
        worker = self.workers.join(address, self._clock(), local.process.pid if local is not None else None)
        link = self._transport.link(
            address,
            on_message=lambda message: self._message(attached, message),
            on_lost=lambda reason: self._gone(attached, reason),
        )
        attached = Attached(worker, link, local)
        self._attached[address] = attached
        try:
            welcome = worker.welcome = await greet(link, self._name, self.workers, self.config.attach_timeout_s)
            link.start()
            if self.language is None:
                link.send(GetAssets())
                async with asyncio.timeout(self.config.attach_timeout_s):
                    assets = await attached.assets
                if self.language is None:
                    with heart.loading():
                        self.language = speak(assets, self.config.tokenizer)
            if self._attached.get(address) is not attached:
                raise AttachError(f"worker {address} was lost while it was being attached")
        except BaseException as e:
            link.close()
            if self._attached.get(address) is attached:
                del self._attached[address]
                self.workers.remove(address)
            if isinstance(e, TimeoutError):
                raise AttachError(f"worker {address} does not send its tokenizer") from None
            raise
        worker.heard = self._clock()
        attached.batcher = equip(
            self.config, self.fs, self.counters, address, welcome, order=self._order, holder=self._holder
        )
        self.workers.welcome(worker)
        if local is not None:
            self.spawn(self._watch(attached, local))
        try:
            await prove(attached, self.fs, self.submit, self.cancel, self._clock, self.config.proof_timeout_s)
        except SyscallError as e:
            self._gone(attached, f"it did not compute its first tokens: {e}")
            raise AttachError(f"worker {address} did not compute its first tokens: {e}") from None
        except BaseException:  # nobody wants it any more
            self._gone(attached, "it was let go before it had computed", expected=True)
            raise
        for job in self._orphans.waiting():
            self._orphans.take(job)
            self._assign(job)
        return worker

    # --- letting go ---

    async def detach(self, name: str) -> None:
        """Let a worker go at once; what is on it is computed again elsewhere. Raises AttachError."""
        if self.recovery.give_up(name):
            return
        attached = self.attached(name)
        attached.link.send(Detach("detached by the operator"))
        self._gone(attached, "it was detached", expected=True)
        if attached.local is not None:
            await attached.local.end()

    def jobs(self) -> Iterable[Job]:
        """All that have not ended."""
        return self._jobs

    def all_attached(self) -> list[Attached]:
        """Those that have been greeted."""
        return [a for a in self._attached.values() if a.worker.state is not State.JOINING]

    def now(self) -> float:
        return self._clock()

    def attached(self, name: str) -> Attached:
        """Raises AttachError."""
        attached = self._attached.get(name)
        if attached is None or attached.worker.state is State.JOINING:
            raise AttachError(f"no worker {name} is attached; `lip worker list` shows those that are")
        return attached

    async def stop(self) -> None:
        """Detach all and end our own."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        attached = list(self._attached.values())
        for a in attached:
            a.link.send(Detach("the kernel is stopping"))
            self._gone(a, "the kernel is stopping", expected=True)
        for job in self._orphans.waiting():
            self._fail(job, NoDevice("the kernel is stopping"))
        await asyncio.gather(*(a.local.end() for a in attached if a.local is not None))
        self._transport.close()

    # --- life signs ---

    async def _beat(self) -> None:
        config = self.config
        while True:
            before = self._clock()
            await asyncio.sleep(config.heartbeat_s)
            now = self._clock()
            if now - before > 2 * config.heartbeat_s:
                self.workers.excuse(now)  # this process was held up, by a debugger perhaps: it did not listen either
            for attached in list(self._attached.values()):
                reason = sick(attached, self.workers, config, now)
                if reason is not None:
                    self._gone(attached, reason)
            for job in self._orphans.late(now):
                self._fail(job, NoDevice(f"no worker came within {config.no_worker_s:g} s: attach one"))
            self._nonce += 1
            for attached in self._attached.values():
                if attached.worker.state is not State.JOINING:
                    attached.link.send(Ping(self._nonce))

    async def _watch(self, attached: Attached, local: LocalWorker) -> None:
        status = await local.process.wait()
        self._gone(attached, f"its process ended with status {status}")

    def lost(self, name: str, reason: str) -> None:
        """The worker of that name is gone."""
        attached = self._attached.get(name)
        if attached is not None:
            self._gone(attached, reason)

    def _gone(self, attached: Attached, reason: str, *, expected: bool = False) -> None:
        """An attachment has ended: its jobs go elsewhere, its pages vanish, the worker may come back."""
        worker = attached.worker
        if self._attached.get(worker.name) is not attached:
            return
        was_joining = worker.state is State.JOINING
        del self._attached[worker.name]
        attached.close(reason, GOODBYE_MS if expected else 0)
        worker.move("lost")
        self.workers.remove(worker.name)
        if was_joining:
            return
        if self.trace is not None:
            self.trace.lost(worker.name, perf_counter())
        now = self._clock()
        jobs = self._decide(attached, attached.batcher.evacuate, now)[0] or []
        self.fs.remove_device(worker.name, now=now)
        if not expected:
            self.counters.n_workers_lost += 1
            log.warning("worker %s was lost: %s; its %d calls go on elsewhere", worker.name, reason, len(jobs))
            if not self._stopping and attached.local is not None:
                self.recovery.restart(attached.local)
            elif not self._stopping:
                self.recovery.seek(worker.name)
        for job in jobs:
            self._assign(job)
        for other in self.all_attached():  # files that were on their way here stay where they are, with their jobs
            self.pump_soon(other)
        attached.batcher.deliver()

    # --- work ---

    def submit(self, job: Job, account: Any, *, claim: bool, again: bool) -> None:
        """Queue a job on the worker that holds its file; one whose KV is nowhere is placed first.

        Raises Busy, AccessDenied."""
        job.n_file = self.fs.length(job.file)
        job.account = account
        if claim:
            job.claim = self.fs.claim(job.file)
        if again:
            job.again()
        self._assign(job)

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more; one that is in flight ends with its batch."""
        attached = self._jobs.get(job)
        if attached is not None:
            self._guarded(attached, attached.batcher.cancel, job, self._clock())
        elif job in self._orphans:
            job.cancelled = True
            self._forget(job)
            self._orphans.drop(job, self._clock())

    def _fail(self, orphan: Job, error: SyscallError) -> None:
        self._forget(orphan)
        self._orphans.drop(orphan, self._clock())
        orphan.fail(error)

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job, None)
        if self.trace is not None:
            self.trace.finished(job)

    def _assign(self, job: Job) -> None:
        """Give a job to the worker of its file, or to the best one for it."""
        device = self.fs.device_of(job.claim or job.file)
        attached = None if device is None else self._attached.get(device)
        if attached is None:
            name = self.workers.place({name: self.load(a) for name, a in self._attached.items() if a.ready})
            if name is None:
                self._jobs[job] = None
                self._orphans.add(job, self._clock() + self.config.no_worker_s)
                return
            self.fs.place(job.claim or job.file, name)
            attached = self._attached[name]
        if self.bring is not None and self.bring(job, attached):
            return
        self._jobs[job] = attached
        attached.batcher.submit(job, self._clock())
        self.pump_soon(attached)

    def hold(self, jobs: list[Job]) -> None:
        """Keep jobs that no batcher has, while their files are moved."""
        for job in jobs:
            self._jobs[job] = None
            self._orphans.add(job, math.inf)

    def unhold(self, jobs: list[Job], error: SyscallError | None = None) -> None:
        """Their files are where they should be: go on. Or they cannot be had."""
        for job in jobs:
            if error is not None and job in self._orphans:
                self._fail(job, error)
            elif self._orphans.take(job):  # not cancelled meanwhile
                self._assign(job)
        for attached in self._attached.values():  # the files are no longer on their way, whatever became of the jobs
            attached.change()

    def load(self, attached: Attached) -> tuple[int, float]:
        usage = self.fs.devices()[attached.worker.name]
        return attached.batcher.n_jobs, 1.0 - usage.n_free / usage.n_pages

    def pump_soon(self, attached: Attached) -> None:
        if not attached.pump_due:
            attached.pump_due = True
            self._loop.call_soon(self._pump, attached)

    def _pump(self, attached: Attached) -> None:
        """Send what is due, and come back when more will be."""
        attached.pump_due = False
        if attached.worker.state is State.LOST:
            return
        if attached.timer is not None:
            attached.timer.cancel()
            attached.timer = None
        batcher, began = attached.batcher, perf_counter()
        now = self._clock()
        while (batch := self._decide(attached, batcher.plan, now)[0]) is not None:
            attached.link.send(batch)
            if self.trace is not None:
                watch.batch_sent(self.trace, attached, batch)
        for pid, reason in batcher.take_killed():
            self._kill(pid, reason)
        due = batcher.due(now)
        if now + CLOCK_S < due < math.inf:
            due = math.ceil(due * TIMERS_PER_S) / TIMERS_PER_S
            attached.timer = self._loop.call_at(due, self._pump, attached)
        batcher.deliver()
        self._was_busy(attached, "plan", began)

    def _message(self, attached: Attached, message: FromWorker) -> None:
        worker, now = attached.worker, self._clock()
        if worker.state is State.LOST:
            return
        worker.heard = now
        match message:
            case BatchDone():
                worker.answered = True
                worker.n_batches += 1
                worker.n_rows += len(message.head.rows)
                worker.n_tokens += message.head.n_tokens
                worker.step_s += message.head.step_s
                self._done(attached, message, now)
            case BatchFailed():
                if self.trace is not None:
                    self.trace.failed(worker.name, message.seq, perf_counter(), message.detail)
                self._guarded(attached, attached.batcher.failed, message, now)
                attached.change()
                self.pump_soon(attached)
            case Fetched() | Stored() | PagesFailed():
                attached.answered(message)
            case Assets():
                if not attached.assets.done():
                    attached.assets.set_result(message)
            case Bye():
                self._gone(attached, message.reason)
            case Pong():
                pass  # heard is all it is for

    def _done(self, attached: Attached, message: BatchDone, now: float) -> None:
        """A batch is answered. When a call ended with it, its program runs first, and what it asks next joins the
        next batch; otherwise nothing can join, so the next batch leaves before anybody is told of this one."""
        began, before = perf_counter(), attached.kernel_s
        if self.trace is not None:
            watch.batch_done(self.trace, attached, message.head)
        n_ended = self._decide(attached, attached.batcher.done, message, now)[1]
        if not n_ended and not attached.batcher.busy:
            self._pump(attached)
        attached.change()
        attached.batcher.deliver()
        self._flush()
        self.pump_soon(attached)
        attached.kernel_s = before  # what a plan within took is in the whole
        self._was_busy(attached, "answer", began)
        self.counters.kernel_s.add(attached.take_kernel_s())

    def _was_busy(self, attached: Attached, what: str, began: float) -> None:
        now = perf_counter()
        attached.kernel_s += now - began
        if self.trace is not None:
            watch.was_busy(self.trace, attached, what, began, now)

    # --- deciders ---

    def _guarded(self, attached: Attached, decide: Callable[..., Any], *args: Any) -> Any:
        """Run a decider, tell those who wait."""
        result, _ = self._decide(attached, decide, *args)
        attached.batcher.deliver()
        return result

    def _decide(self, attached: Attached, decide: Callable[..., Any], *args: Any) -> tuple[Any, int]:
        """Run a decider and forget what has ended: its result, and how many jobs that were.

        Any error but a WorkerFault is a bug of ours."""
        result = None
        try:
            result = decide(*args)
        except WorkerFault as e:
            self._gone(attached, str(e))
        except Exception as e:
            self._panic(e)
        ended = attached.batcher.take_ended()
        for job in ended:
            self._forget(job)
        return result, len(ended)
