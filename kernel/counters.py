"""Totals since the start, for metrics. Plain numbers that deciders and the rim add to; nobody decides by them."""

from msgspec import Struct, field

from kernel.histogram import KERNEL_S, PROGRAM_S, ROWS, STEP_S, TOKENS, Histogram
from kernel.latency import CallTimes, Latencies
from sdk.abi.errors import SyscallError
from sdk.abi.values import FinishReason


class Counters(Struct):
    """One kernel's."""

    n_spawned: int = 0
    n_ended: int = 0
    n_syscalls: int = 0
    n_batches: int = 0
    n_rows: int = 0
    n_prompt_tokens: int = 0  # computed that programs gave
    n_generated_tokens: int = 0  # computed that the model drew
    n_surplus_tokens: int = 0  # computed after a stop that was seen too late, and dropped
    n_recomputed_tokens: int = 0  # computed again because their KV was dropped or lost
    n_edits: int = 0  # extracts, merges and splices that a worker has done
    n_edits_recomputed: int = 0  # edited files whose tokens were computed again, in their new context
    n_preempted: int = 0  # jobs that had to make room
    n_pages_out: int = 0  # moved to main memory
    n_pages_in: int = 0
    n_pages_dropped: int = 0  # given up, to be computed again
    n_pages_migrated: int = 0  # moved to another worker
    n_pages_saved: int = 0  # written to disk
    n_pages_loaded: int = 0  # read from disk to a device
    n_pages_damaged: int = 0  # on disk, that did not verify
    n_saves: int = 0  # of files
    n_saves_failed: int = 0
    n_retried_batches: int = 0  # refused by a worker, split and tried again
    n_swaps_out: int = 0  # moves, each of some pages
    n_swaps_in: int = 0
    n_evicted_unneeded: int = 0  # files that made room, by their standing (kernel/eviction.py)
    n_evicted_cached: int = 0
    n_evicted_away: int = 0
    n_evicted_idle: int = 0
    n_evicted_at_work: int = 0
    n_workers_lost: int = 0
    n_oom_kills: int = 0
    n_guard_kills: int = 0  # programs that did not give the processor back

    # generations and preds, by how they ended
    n_stopped: int = 0
    n_length: int = 0
    n_preds: int = 0
    n_aborted: int = 0  # nobody waited for it any more
    n_failed: int = 0

    batch_rows: Histogram = field(default_factory=lambda: Histogram(ROWS))
    batch_tokens: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    step_s: Histogram = field(default_factory=lambda: Histogram(STEP_S))
    kernel_s: Histogram = field(default_factory=lambda: Histogram(KERNEL_S))  # that this process spent on a batch
    program_s: Histogram = field(default_factory=lambda: Histogram(PROGRAM_S))  # from start to end
    latencies: Latencies = field(default_factory=Latencies)

    def evicted(self, standing: str) -> None:
        """A file had to make room."""
        name = f"n_evicted_{standing}"
        setattr(self, name, getattr(self, name) + 1)

    def computed(self, n_rows: int, n_tokens: int, step_s: float, now: float) -> None:
        """A worker has computed a batch, and all its rows have been told."""
        self.batch_rows.add(n_rows)
        self.batch_tokens.add(n_tokens)
        self.step_s.add(step_s)
        self.latencies.batch_over(now)

    def ended(self, times: CallTimes, why: FinishReason | None, now: float, error: SyscallError | None) -> None:
        """A model call has ended; a `pred` has no reason for it."""
        if error is not None:
            self.n_failed += 1
            return
        self.latencies.ended(times, now)
        match why:
            case FinishReason.STOP:
                self.n_stopped += 1
            case FinishReason.LENGTH:
                self.n_length += 1
            case None:
                self.n_preds += 1
