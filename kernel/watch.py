"""What a trace is told of a worker's batches: the rim's eyes while somebody records, and nobody's otherwise.

Called by `kernel/fleet.py`. Never add here what is decided: only looks, and only while there is a trace.
"""

from time import perf_counter

from gpuworker.wire import Batch, BatchDoneHead
from kernel.attachment import Attached
from kernel.jobs import Job
from kernel.tracing import Trace, rows_of
from kvfs.inode import Residency


def batch_sent(trace: Trace, attached: Attached, batch: Batch) -> None:
    """A batch has left. Also says of each call that is in none why that is so."""
    now, batcher, head = perf_counter(), attached.batcher, batch.head
    moves = (len(head.moves_out), len(head.moves_in))
    trace.sent(attached.worker.name, head.seq, rows_of(batcher.newest), len(batch.tokens), moves, now)
    for job in batcher.jobs():
        if not job.sent:
            trace.paused(job, now, _why(attached, job))


def batch_done(trace: Trace, attached: Attached, head: BatchDoneHead) -> None:
    """A batch was answered, and nothing has been made of it yet."""
    trace.done(attached.worker.name, head.seq, perf_counter(), head.step_s, head.move_s)


def was_busy(trace: Trace, attached: Attached, what: str, began: float, ended: float) -> None:
    """The kernel has done something for a worker's batches; how the worker stands after it."""
    name, batcher = attached.worker.name, attached.batcher
    pool = batcher.fs.pools.get(name)
    trace.decided(name, what, began, ended)
    if pool is not None:  # it is gone with a worker that was lost on the way
        trace.gauges(name, ended, pool.n_free, pool.n_host_used, batcher.n_jobs)
    if what == "plan" and not batcher.busy:
        trace.idle(name, ended)


def _why(attached: Attached, job: Job) -> str:
    """Why a call has no row."""
    match attached.batcher.fs.residency(job.claim or job.file):
        case Residency.SWAPPED:
            return "memory: swapped"
        case Residency.PARTIAL:
            return "memory: rebuilding"
    return "memory: paused" if job.preempted else "queued"
