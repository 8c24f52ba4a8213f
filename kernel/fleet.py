"""The fleet: attaching workers, feeding them batches, noticing that they are gone. The rim's side of level 2.

Every message of a worker and every submitted job ends in `_pump`, which asks the worker's batcher for the next
batch. It runs once per loop pass, after all programs that were ready have had their turn, so what they ask for
together is computed together. What to send is `kernel/batcher.py`'s to decide, whom to take `kernel/workers.py`'s.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from gpuworker.wire import WIRE_HASH, Assets, BatchDone, BatchFailed, Bye, Detach, GetAssets, Hello, Ping, Pong, Welcome
from kernel.batcher import Batcher, WorkerFault
from kernel.config import Config
from kernel.jobs import Job, PredJob
from kernel.language import Language, load_tokenizer
from kernel.link import Link, open_context
from kernel.local import LocalWorker
from kernel.process import Process
from kernel.workers import State, Worker, Workers
from kvfs.fs import Kvfs
from sdk.abi.errors import DeviceLost, SyscallError

log = logging.getLogger(__name__)

GOODBYE_MS = 500  # for the last message to a worker that is let go


class AttachError(Exception):
    """A worker could not be attached or detached; the text is one line."""


class Counters(Struct):
    """Totals since the start, for metrics."""

    n_spawned: int = 0
    n_ended: int = 0
    n_syscalls: int = 0
    n_batches: int = 0
    n_rows: int = 0
    n_prompt_tokens: int = 0
    n_generated_tokens: int = 0


class Attached:
    """The rim's side of one worker: its link, its batcher, and its process if it is ours."""

    def __init__(self, worker: Worker, link: Link, batcher: Batcher, local: LocalWorker | None) -> None:
        self.worker = worker
        self.link = link
        self.batcher = batcher
        self.local = local
        self.assets: asyncio.Future[Assets] = asyncio.get_running_loop().create_future()
        self.pump_due = False


class Fleet:
    """All attached workers."""

    def __init__(self, config: Config, fs: Kvfs, counters: Counters, panic: Callable[[BaseException], None]) -> None:
        self.config = config
        self.fs = fs
        self.counters = counters
        self.workers = Workers()
        self.language: Language | None = None  # from the first worker's assets on
        self._panic = panic
        self._loop = asyncio.get_running_loop()
        self._name = f"kernel-{uuid.uuid4().hex[:12]}"
        self._attached: dict[str, Attached] = {}
        self._jobs: dict[Job, tuple[Attached, Process | None]] = {}
        self._n_local = 0
        self._nonce = 0
        self._context = open_context()
        self._heart = asyncio.create_task(self._beat())
        self._idlers: list[asyncio.Future[None]] = []
        self._watchers: set[asyncio.Task[None]] = set()

    # --- attaching ---

    async def start_local(self, directory: Path) -> Worker:
        """Start a worker of our own and attach it. Raises WorkerFailed or AttachError."""
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
        worker = self.workers.join(address, self._loop.time(), local.process.pid if local is not None else None)
        link = Link(
            address,
            self._context,
            on_message=lambda message: self._message(address, message),
            on_lost=lambda reason: self.lost(address, reason),
        )
        try:
            welcome = await self._greet(link)
            worker.welcome = welcome
            batcher = Batcher(
                self.fs,
                max_rows=min(self.config.max_num_seqs, welcome.max_rows),
                max_tokens=min(self.config.max_num_batched_tokens, welcome.max_batch_tokens),
                vocab_size=welcome.model.vocab_size,
            )
            attached = Attached(worker, link, batcher, local)
            self._attached[address] = attached
            link.start()
            if self.language is None:
                link.send(GetAssets())
                async with asyncio.timeout(self.config.attach_timeout_s):
                    assets = await attached.assets
                if self.language is None:
                    self.language = self._speak(assets)
            if address not in self.workers:
                raise AttachError(f"worker {address} was lost while it was being attached")
        except BaseException as e:
            link.close()
            self._attached.pop(address, None)
            if address in self.workers:
                self.workers.remove(address)
            if isinstance(e, TimeoutError):
                raise AttachError(f"worker {address} does not send its tokenizer") from None
            raise
        worker.heard = self._loop.time()
        self.fs.add_device(address, n_pages=welcome.n_pages, page_size=welcome.model.page_size)
        worker.move("welcome")
        if local is not None:
            watcher = asyncio.create_task(self._watch(local))
            self._watchers.add(watcher)
            watcher.add_done_callback(self._watchers.discard)
        await self._prove(worker)
        return worker

    async def _prove(self, worker: Worker) -> None:
        """Have the worker compute one token: what serves is what was seen to compute. Raises AttachError."""
        proof: asyncio.Future[Any] = self._loop.create_future()
        file = self.fs.create(None, owner="kernel", now=self._loop.time(), device=worker.name)
        job = PredJob.probe(file, proof.set_result, proof.set_exception)
        try:
            self.submit(job, None, claim=True, again=False)
            async with asyncio.timeout(self.config.proof_timeout_s):
                await proof
        except (SyscallError, TimeoutError) as e:
            self.cancel(job)
            self.lost(worker.name, f"it did not compute its first token: {e}")
            raise AttachError(f"worker {worker.name} did not compute its first token: {e}") from None
        finally:
            self.fs.close(file, self._loop.time())

    async def _greet(self, link: Link) -> Welcome:
        try:
            greeting = await link.greet(Hello(WIRE_HASH, self._name), self.config.attach_timeout_s)
        except ConnectionError as e:
            raise AttachError(str(e)) from None
        refusal = self.workers.refusal(greeting)
        if refusal is not None:
            raise AttachError(f"worker {link.address} is refused: {refusal}")
        assert isinstance(greeting, Welcome)
        return greeting

    def _speak(self, assets: Assets) -> Language:
        if self.config.tokenizer is not None and Path(self.config.tokenizer).exists():
            assets = Assets(
                load_tokenizer(Path(self.config.tokenizer)),
                assets.chat_template,
                assets.special_tokens,
                assets.add_bos,
            )
        return Language(assets)

    async def detach(self, name: str) -> None:
        """Let a worker go. Programs with files on it get EIO. Raises AttachError."""
        attached = self._attached.get(name)
        if attached is None:
            raise AttachError(f"no worker {name} is attached; `lip worker list` shows those that are")
        attached.link.send(Detach("detached by the operator"))
        self.lost(name, "it was detached", expected=True)
        if attached.local is not None:
            await attached.local.end()

    async def stop(self) -> None:
        """Detach all, end our own, stop the heart."""
        self._heart.cancel()
        for watcher in self._watchers:
            watcher.cancel()
        attached = list(self._attached.values())
        for a in attached:
            a.link.send(Detach("the kernel is stopping"))
            self.lost(a.worker.name, "the kernel is stopping", expected=True)
        await asyncio.gather(*(a.local.end() for a in attached if a.local is not None))
        self._context.destroy()

    @property
    def busy(self) -> bool:
        """Whether any worker has a batch in flight."""
        return any(a.batcher.busy for a in self._attached.values())

    async def idle(self) -> None:
        """Wait until the batches in flight now have been answered."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._idlers.append(waiter)
        await waiter

    # --- life signs ---

    async def _beat(self) -> None:
        while True:
            before = self._loop.time()
            await asyncio.sleep(self.config.heartbeat_s)
            now = self._loop.time()
            if now - before > 2 * self.config.heartbeat_s:
                self.workers.excuse(now)  # this process was held up, by a debugger perhaps: it did not listen either
            for worker in self.workers.silent(now, self.config.worker_silence_s):
                self.lost(worker.name, f"it was silent for {self.config.worker_silence_s:g} s")
            self._nonce += 1
            for attached in self._attached.values():
                attached.link.send(Ping(self._nonce))

    async def _watch(self, local: LocalWorker) -> None:
        status = await local.process.wait()
        self.lost(local.address, f"its process ended with status {status}")

    def lost(self, name: str, reason: str, *, expected: bool = False) -> None:
        """A worker is gone: its jobs fail, its files are lost, its pages vanish."""
        attached = self._attached.pop(name, None)
        if attached is None:
            return
        if not expected:
            n_jobs = attached.batcher.n_jobs
            log.warning("worker %s was lost: %s; %d calls fail, and its files are gone", name, reason, n_jobs)
        attached.link.close(linger_ms=GOODBYE_MS if expected else 0)
        attached.worker.move("lost")
        if not attached.assets.done():  # whoever attaches it waits for them; a cancellation would be taken for theirs
            attached.assets.set_exception(AttachError(f"worker {name} was lost while it was being attached: {reason}"))
            attached.assets.exception()
        now = self._loop.time()
        detail = f"worker {name} was lost ({reason}), and the files on it: make them again from their tokens"
        self._guarded(attached, attached.batcher.lost, detail, now)
        if name in self.fs.devices():
            self.fs.remove_device(name, now=now)
        self.workers.remove(name)

    # --- work ---

    def submit(self, job: Job, process: Process | None, *, claim: bool, again: bool) -> None:
        """Queue a job on the worker that holds its file; a new file is placed first.

        Raises NoDevice, DeviceLost, Busy, AccessDenied."""
        device = self.fs.device_of(job.file)
        if device is None:
            device = self.workers.place({name: self._load(a) for name, a in self._attached.items()})
            self.fs.place(job.file, device)
        attached = self._attached.get(device)
        if attached is None:
            raise DeviceLost(f"worker {device} is gone, and this file with it: make it again from its tokens")
        job.n_file = self.fs.length(job.file)
        if claim:
            job.claim = self.fs.claim(job.file)
        if again:
            job.again()
        self._jobs[job] = (attached, process)
        attached.batcher.submit(job)
        self._pump_soon(attached)

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more; one that is in flight ends with its batch."""
        entry = self._jobs.get(job)
        if entry is not None:
            attached, _ = entry
            self._guarded(attached, attached.batcher.cancel, job, self._loop.time())

    def _load(self, attached: Attached) -> tuple[int, float]:
        usage = self.fs.devices()[attached.worker.name]
        return attached.batcher.n_jobs, 1.0 - usage.n_free / usage.n_pages

    def _pump_soon(self, attached: Attached) -> None:
        if not attached.pump_due:
            attached.pump_due = True
            self._loop.call_soon(self._pump, attached)

    def _pump(self, attached: Attached) -> None:
        attached.pump_due = False
        if attached.worker.state is State.LOST:
            return
        batch, _ = self._decide(attached, attached.batcher.plan, self._loop.time())
        if batch is not None:
            self.counters.n_batches += 1
            self.counters.n_rows += len(batch.head.rows)
            attached.link.send(batch)
        attached.batcher.deliver()

    def _message(self, name: str, message: BatchDone | BatchFailed | Assets | Pong | Bye) -> None:
        attached = self._attached.get(name)
        if attached is None:
            return
        worker, now = attached.worker, self._loop.time()
        worker.heard = now
        match message:
            case BatchDone():
                worker.answered = True
                worker.n_batches += 1
                worker.n_tokens += message.head.n_tokens
                worker.step_s += message.head.step_s
                self._done(attached, message, now)
            case BatchFailed():
                self._guarded(attached, attached.batcher.failed, message, now)
                self._pump_soon(attached)
            case Assets():
                if not attached.assets.done():
                    attached.assets.set_result(message)
            case Bye():
                self.lost(name, message.reason)
            case Pong():
                pass  # heard is all it is for
        if not self.busy:
            self._wake_idlers()

    def _done(self, attached: Attached, message: BatchDone, now: float) -> None:
        """A batch is answered. When a call ended with it, its program runs first, and what it asks next joins the
        next batch; otherwise nothing can join, so the next batch leaves before anybody is told of this one."""
        n_ended = self._decide(attached, attached.batcher.done, message, now)[1]
        if not n_ended:
            self._pump(attached)
        attached.batcher.deliver()
        self._pump_soon(attached)

    def _wake_idlers(self) -> None:
        for waiter in self._idlers:
            if not waiter.done():
                waiter.set_result(None)
        self._idlers.clear()

    def _guarded(self, attached: Attached, decide: Callable[..., Any], *args: Any) -> Any:
        """Run a decider, charge what has ended, tell those who wait."""
        result, _ = self._decide(attached, decide, *args)
        attached.batcher.deliver()
        return result

    def _decide(self, attached: Attached, decide: Callable[..., Any], *args: Any) -> tuple[Any, int]:
        """Run a decider and charge what has ended: its result, and how many jobs that were.

        Any error but a WorkerFault is a bug of ours."""
        result = None
        try:
            result = decide(*args)
        except WorkerFault as e:
            self.lost(attached.worker.name, str(e))
        except Exception as e:
            self._panic(e)
        return result, self._charge(attached)

    def _charge(self, attached: Attached) -> int:
        """Book what ended jobs have computed to their processes, and forget them. Returns how many they were."""
        ended = attached.batcher.take_ended()
        for job in ended:
            _, process = self._jobs.pop(job)
            if process is None:  # the kernel's own proof
                continue
            process.n_prompt_tokens += job.n_prompt_tokens
            process.n_generated_tokens += job.n_generated_tokens
            self.counters.n_prompt_tokens += job.n_prompt_tokens
            self.counters.n_generated_tokens += job.n_generated_tokens
        return len(ended)
