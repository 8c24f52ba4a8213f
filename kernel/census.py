"""How things stand, counted when somebody asks: what a scrape of the metrics and `lip top` both show.

Nothing is kept here and nothing is changed. Called by `kernel/metrics.py` and `kernel/frontdoor/observe.py`.
"""

from typing import Any, NamedTuple

from msgspec import to_builtins

from kernel.core import Kernel
from kernel.workers import Worker
from kvfs.inode import Residency


class Calls(NamedTuple):
    """Model calls that have not ended."""

    running: int  # in a batch, or between two of its batches
    waiting: int  # for their first batch, for memory, or for a worker
    swapped: int  # their file is in main memory, or on the way


def calls(kernel: Kernel) -> Calls:
    """Every model call, counted once."""
    running = waiting = swapped = 0
    for job in kernel.fleet.jobs():
        if kernel.fs.residency(job.claim or job.file) is Residency.SWAPPED:
            swapped += 1
        elif job.times.began < 0 or job.preempted:
            waiting += 1
        else:
            running += 1
    return Calls(running, waiting, swapped)


def standing(kernel: Kernel) -> dict[str, Any]:
    """All that `lip top` shows, as JSON has it: totals since the start, from which the client makes rates."""
    c, model = kernel.counters, kernel.workers.model
    n_calls = {a.worker.name: a.batcher.n_jobs for a in kernel.fleet.all_attached()}
    totals = {name: n for name in c.__struct_fields__ if isinstance(n := getattr(c, name), int)}
    return {
        "now_s": kernel.now(),
        "uptime_s": kernel.now() - kernel.began,
        "model": None if model is None else kernel.model_info().name,
        "n_ready": kernel.n_ready,
        "calls": calls(kernel)._asdict(),
        "totals": totals | {"kernel_s": c.kernel_s.sum},
        "workers": [_worker(kernel, worker, n_calls.get(worker.name, 0)) for worker in kernel.workers],
        "processes": to_builtins(kernel.ps()),
    }


def _worker(kernel: Kernel, worker: Worker, n_calls: int) -> dict[str, Any]:
    """One worker: its state, what it has done, and its pages."""
    usage = kernel.fs.devices().get(worker.name)
    return {
        "name": worker.name,
        "state": worker.state.value,
        "silent_s": kernel.now() - worker.heard,
        "n_calls": n_calls,
        "n_batches": worker.n_batches,
        "n_rows": worker.n_rows,
        "n_tokens": worker.n_tokens,
        "step_s": worker.step_s,
        "kernel_s": worker.kernel_s,
        "n_pages": usage.n_pages if usage is not None else 0,
        "n_free": usage.n_free if usage is not None else 0,
        "n_host_pages": usage.n_host_pages if usage is not None else 0,
        "n_host_used": usage.n_host_pages - usage.n_host_free if usage is not None else 0,
    }
