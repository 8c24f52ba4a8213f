"""What must hold, as functions that look at a running kernel and change nothing. Each yields one line per breach.

`always` holds after every pass of the loop; `at_rest` when every program has ended and every batch is answered. This
is the one module that looks into the kernel's private parts: who changes those, changes it here.

In words, beside all that `kvfs/fsck.py` says of files and pages:

1. A call that waits can be woken: its timer is set, its job is with a batcher, its channel has it as a reader, its
   child is alive.
2. A job is with one batcher, of a worker that is attached; a batcher that has jobs has a batch in flight, or will
   plan one in the next pass.
3. No limit of the configuration is passed.
4. What a client has seen is a beginning of what it sees when nothing goes wrong.
5. At rest nothing is held: no page, claim, lease, handle, process, job, task or timer.
"""

import asyncio
import traceback
from collections.abc import Iterator
from typing import Any

from kernel.batcher import Batcher
from kernel.generate import GenerateJob
from kernel.jobs import Job
from kernel.process import Process
from kernel.ready import WakeUp
from kernel.stepper import Stepper
from kernel.sys_model import StreamHandle
from kvfs import fsck
from tests.sim.reference import Reference
from tests.sim.world import World

COUNTED = ("pred", "generate", "extract", "merge", "splice")  # each has a job
QUIET = ("kernel.", "sdk.", "asyncio.timeouts")  # modules whose timers have no business at rest


def always(world: World, expected: dict[int, Reference]) -> Iterator[str]:
    """What holds whenever the loop is between two passes."""
    kernel = world.kernel
    if kernel.panicked.done():
        error = kernel.panicked.result()
        yield f"the kernel panicked: {type(error).__name__}: {error}"
        yield "".join(traceback.format_tb(error.__traceback__)[-3:])
        return
    yield from fsck.check(kernel.fs)
    yield from jobs(world)
    yield from limits(world)
    yield from beginnings(world, expected)


def jobs(world: World) -> Iterator[str]:
    """2."""
    fleet = world.kernel.fleet
    for attached in fleet.all_attached():
        batcher, name = attached.batcher, attached.worker.name
        for job in batcher.jobs():
            if fleet._jobs.get(job) is not attached:
                yield f"job {job.number} is with {name}, and the fleet does not know it"
    for job, holder in fleet._jobs.items():
        if holder is None:
            if job not in fleet._orphans:
                yield f"job {job.number} is with nobody"
        elif not has(holder.batcher, job):
            yield f"job {job.number} of {holder.worker.name} is with no batcher"
        elif fleet._attached.get(holder.worker.name) is not holder:
            yield f"job {job.number} is with {holder.worker.name}, which is gone"


def has(batcher: Batcher, job: Job) -> bool:
    return job.number in batcher._queued or job.number in batcher._decoding


def waiters(world: World) -> Iterator[tuple[Any, str]]:
    """1, each breach with what it is about. It may be true for a few passes: news takes some to be passed on."""
    for attached in world.kernel.fleet.all_attached():
        batcher = attached.batcher
        sleeps = attached.timer is None or attached.timer.cancelled()
        idle = sleeps and not batcher.busy and not attached.pump_due
        stuck = [job for job in batcher.jobs() if not job.file.inode.moving]  # the end of the move wakes the others
        if idle and stuck:
            yield tuple(stuck), f"worker {attached.worker.name}: {batcher.n_jobs} jobs wait and nobody plans"
    answered = {id(answer.future) for answer in answers(world)}
    known = {id(arg) for timer in world.loop.timers() for arg in timer._args or ()}
    known |= {id(reader.future) for c in world.kernel.channels._channels.values() for reader in c.readers}  # type: ignore[attr-defined]
    known |= {id(ticket.waiter.caller.future) for ticket in world.kernel.fs.locks.waiting.values()}  # type: ignore[union-attr]
    for process in world.kernel.processes.values():
        yield from waiters_of(world, process, answered, known)


def answers(world: World) -> list[WakeUp]:
    """What is in the ready queue."""
    ready = world.kernel.ready
    return [*ready._arrived, *(answer for _, _, answer in ready._backlog)]


def waiters_of(world: World, process: Process, answered: set[int], known: set[int]) -> Iterator[tuple[Any, str]]:
    """Those of one process. `answered`: futures in the ready queue; `known`: those of timers, channels, locks."""
    if process._unborn is not None and not any(answer.owner is process for answer in answers(world)):
        yield process, f"process {process.pid} never begins"
    own = [job for job in world.kernel.fleet._jobs if job.file.pid == process.pid]
    waiting = {f: wait.call for f, wait in process.waiting.items() if not f.done() and id(f) not in answered}
    n_waits = sum(call in COUNTED for call in waiting.values())
    n_calls = sum(not (isinstance(job, GenerateJob) and job._on_chunk is not None) for job in own)
    if n_waits != n_calls:
        yield tuple(own), f"process {process.pid} waits for {n_waits} calls and has {n_calls} jobs"
    for future, call in waiting.items():
        if id(future) not in known and not wakes(process, future, call, own):
            yield future, f"process {process.pid} waits in {call} and nobody will wake it"


def wakes(process: Process, future: "asyncio.Future[Any]", call: str, own: list[Job]) -> bool:
    """Whether somebody knows of this waiter, and will come."""
    client: Any = process.client
    match call:
        case "wait":
            return any(f is future and (pid is None or pid in process.children) for pid, f in process.child_waiters)
        case "read":
            handles = [handle for handle in process._handles.values() if isinstance(handle, StreamHandle)]
            return any(h.reader is future and (h.job in own or h.job is None) for h in handles)
        case "emit":
            return any(caller.future is future for caller in client._writers)
        case "input":
            return any(caller.future is future for caller in client._readers)
        case call if call in COUNTED:
            return True  # by `waiters_of`
    return False


def limits(world: World) -> Iterator[str]:
    """3."""
    kernel, config = world.kernel, world.config
    for process in kernel.processes.values():
        if len(process._handles) > config.max_handles:
            yield f"process {process.pid} has {len(process._handles)} handles"
    if len(kernel.processes) > config.max_processes:
        yield f"{len(kernel.processes)} processes"
    if len(kernel.fs.files) > config.max_files:
        yield f"{len(kernel.fs.files)} files"
    for name, channel in kernel.channels._channels.items():
        if len(channel.messages) > config.max_channel_messages or (channel.messages and channel.readers):
            yield f"channel {name} has {len(channel.messages)} messages and {len(channel.readers)} readers"


def beginnings(world: World, expected: dict[int, Reference]) -> Iterator[str]:
    """4."""
    for run in world.runs:
        whole = expected[run.index].streams
        for name, text in run.client.streams.items():
            if not whole.get(name, "").startswith(text):
                yield f"{run.kind} {run.variant} told its client {text!r}, alone it tells {whole.get(name)!r}"


def at_rest(world: World) -> Iterator[str]:
    """5."""
    kernel = world.kernel
    held = fsck.counts(kernel.fs)
    if any(held):
        yield f"at rest there are still {held}"
    if kernel.processes:
        yield f"at rest there are still processes {sorted(kernel.processes)}"
    if kernel.fleet._jobs:
        yield f"at rest there are still jobs {[job.number for job in kernel.fleet._jobs]}"
    mine = {asyncio.current_task(), *kernel.fleet._tasks, *world.tasks}
    for task in asyncio.all_tasks():
        if task not in mine:
            yield f"at rest there is still a task: {task.get_coro()}"
    for timer in world.loop.timers():
        call = callback_of(timer)
        owner = getattr(call, "__self__", None)
        module = type(owner).__module__ if owner is not None else getattr(call, "__module__", "")
        if str(module).startswith(QUIET):
            yield f"at rest there is still a timer for {call}"


def callback_of(timer: Any) -> Any:
    return timer._callback


def who_waits(world: World) -> Iterator[str]:
    """For the report of a hang: what everybody waits for."""
    for process in world.kernel.processes.values():
        calls = " ".join(sorted(map(str, process.waiting.values()))) or "nothing"
        yield f"process {process.pid} {process.name} waits for {calls}{', dying' if process.dying else ''}"
        for task in process._threads:
            yield f"    a thread at {' > '.join(frames(task))}"
    fleet, fs = world.kernel.fleet, world.kernel.fs
    for attached in fleet.all_attached():
        worker, batcher = attached.worker, attached.batcher
        yield f"{worker.name} is {worker.state.value}, busy {batcher.busy}: {fs.devices()[worker.name]}"
        yield from (f"    {spell_job(job)}" for job in batcher.jobs())
    yield from (f"with nobody: {spell_job(job)}" for job, holder in fleet._jobs.items() if holder is None)
    for host in world.hosts:
        up, wanted = host.worker.is_alive, host.wanted
        yield f"{host.address}: alive {up}, hung {host.worker.is_hung}, wanted {wanted}, attached {host.worker.serves}"


def frames(task: "asyncio.Task[Any]") -> Iterator[str]:
    """Where a program's thread waits, outermost first."""
    at: Any = task.get_coro()
    at = at.coroutine if isinstance(at, Stepper) else at
    while (frame := getattr(at, "cr_frame", None)) is not None:
        yield f"{frame.f_code.co_name}:{frame.f_lineno}"
        at = at.cr_await


def spell_job(job: Job) -> str:
    inode = job.file.inode
    states = [name for name in ("ready", "preempted", "paused", "cancelled") if getattr(job, name)]
    return (
        f"{type(job).__name__} {job.number} of process {job.file.pid} is {' and '.join(states) or 'waiting'}, "
        f"in flight {len(job.sent)}; file #{inode.ino} is {inode.residency.value} with {len(inode.tokens)} tokens"
    )
