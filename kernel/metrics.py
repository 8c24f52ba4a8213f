"""The kernel's numbers for Prometheus, read from its state when they are asked for.

Nothing is counted here: the kernel keeps plain numbers (`kernel/counters.py`), and a scrape turns them into metrics.
Names are `symphony_` and vLLM's suffix where vLLM has the same thing, so that its dashboards need a new prefix only;
its "request" is a model call here. `docs/observability.md` lists them all, which a test compares.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kernel import census
from kernel.core import Kernel
from kernel.eviction import Standing
from kernel.histogram import Histogram
from kernel.workers import State
from sdk.abi.values import ProcessState

PREFIX = "symphony_"


def registry(kernel: Kernel) -> CollectorRegistry:
    """A registry with this kernel's collector alone."""
    found = CollectorRegistry()
    found.register(KernelCollector(kernel))
    return found


class KernelCollector(Collector):
    """Reads one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def describe(self) -> list[Metric]:
        """Nothing ahead of time: what there is depends on who is attached."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._calls()
        yield from self._tokens()
        yield from self._batches()
        yield from self._programs()
        yield from self._pages()
        yield from self._moves()
        yield from self._workers()

    def _calls(self) -> Iterator[Metric]:
        c, calls = self.kernel.counters, census.calls(self.kernel)
        yield gauge("num_requests_running", "Model calls that are in batches.", calls.running)
        yield gauge("num_requests_waiting", "Model calls that wait for a batch, memory or a worker.", calls.waiting)
        yield gauge("num_requests_swapped", "Model calls whose file is in main memory.", calls.swapped)
        ended = CounterMetricFamily(PREFIX + "request_success", "Model calls that ended.", labels=["finished_reason"])
        ways = {"stop": c.n_stopped, "length": c.n_length, "pred": c.n_preds, "abort": c.n_aborted, "error": c.n_failed}
        for why, n in ways.items():
            ended.add_metric([why], n)
        yield ended
        t = c.latencies
        yield histogram("request_queue_time_seconds", "From a model call to its first batch.", t.queue)
        yield histogram("time_to_first_token_seconds", "From a generation's call to its first token.", t.first_token)
        yield histogram("inter_token_latency_seconds", "Between a generation's tokens.", t.between_tokens)
        yield histogram("time_per_output_token_seconds", "The same, under vLLM's older name.", t.between_tokens)
        yield histogram("e2e_request_latency_seconds", "From a model call to its end.", t.whole)

    def _tokens(self) -> Iterator[Metric]:
        c = self.kernel.counters
        yield counter("prompt_tokens", "Tokens computed that programs gave.", c.n_prompt_tokens)
        yield counter("generation_tokens", "Tokens computed that the model drew.", c.n_generated_tokens)
        yield counter("recomputed_tokens", "Tokens computed again, their KV dropped or lost.", c.n_recomputed_tokens)
        yield counter("edits", "Extracts, merges and splices that copied slots.", c.n_edits)
        yield counter("edits_recomputed", "Edited files computed again from their tokens.", c.n_edits_recomputed)
        yield counter("surplus_tokens", "Tokens computed behind a stop, and dropped.", c.n_surplus_tokens)

    def _batches(self) -> Iterator[Metric]:
        c = self.kernel.counters
        yield counter("batches", "Batches sent to workers.", c.n_batches)
        yield counter("batch_rows", "Rows of those batches, one for each file that took part.", c.n_rows)
        yield counter("batches_retried", "Batches that a worker refused, split and tried again.", c.n_retried_batches)
        yield histogram("batch_size", "Rows of a batch.", c.batch_rows)
        yield histogram("iteration_tokens_total", "New tokens of a batch.", c.batch_tokens)
        yield histogram("step_time_seconds", "Time of a batch on its device, as the worker says.", c.step_s)
        yield histogram("kernel_time_seconds", "Time that the kernel is busy for a batch.", c.kernel_s)

    def _programs(self) -> Iterator[Metric]:
        c = self.kernel.counters
        states = [process.state for process in self.kernel.processes.values()]
        by_state = GaugeMetricFamily(PREFIX + "programs", "Programs by state.", labels=["state"])
        for state in (ProcessState.RUNNING, ProcessState.READY, ProcessState.BLOCKED):
            by_state.add_metric([state.value], states.count(state))
        yield by_state
        yield gauge("ready_queue", "Answers that wait for their program's turn.", self.kernel.n_ready)
        yield counter("processes_spawned", "Programs started.", c.n_spawned)
        yield counter("processes_ended", "Programs that have ended.", c.n_ended)
        yield histogram("program_duration_seconds", "From a program's start to its end.", c.program_s)
        yield counter("syscalls", "System calls made by programs.", c.n_syscalls)
        yield counter("guard_kills", "Programs ended for not giving the processor back.", c.n_guard_kills)
        yield counter("oom_kills", "Programs ended for want of memory.", c.n_oom_kills)
        service = CounterMetricFamily(PREFIX + "program_service_seconds", "Device time received.", labels=["program"])
        for program, seconds in self.kernel.service_by_program().items():
            service.add_metric([program], seconds)
        yield service

    def _pages(self) -> Iterator[Metric]:
        devices = self.kernel.fs.devices()
        n_pages = sum(d.n_pages for d in devices.values())
        n_free = sum(d.n_free for d in devices.values())
        usage = 1.0 - n_free / n_pages if n_pages else 0.0
        yield gauge("kv_cache_usage_perc", "Share of all KV pages on devices that is in use, 0 to 1.", usage)
        total = GaugeMetricFamily(PREFIX + "kv_pages", "KV pages.", labels=["worker", "tier"])
        free = GaugeMetricFamily(PREFIX + "kv_pages_free", "KV pages that nobody holds.", labels=["worker", "tier"])
        pinned = GaugeMetricFamily(PREFIX + "kv_pages_pinned", "KV pages that stay on the device.", labels=["worker"])
        files = GaugeMetricFamily(PREFIX + "kv_files", "KV files.", labels=["worker"])
        for name, device in devices.items():
            total.add_metric([name, "device"], device.n_pages)
            total.add_metric([name, "host"], device.n_host_pages)
            free.add_metric([name, "device"], device.n_free)
            free.add_metric([name, "host"], device.n_host_free)
            pinned.add_metric([name], sum(self.kernel.fs.pinned(name, self.kernel.now()).values()))
            files.add_metric([name], device.n_files)
        yield from (total, free, pinned, files)

    def _moves(self) -> Iterator[Metric]:
        c = self.kernel.counters
        yield counter("num_preemptions", "Model calls that had to make room for others.", c.n_preempted)
        evicted = CounterMetricFamily(PREFIX + "kv_evictions", "KV files that made room for others.", labels=["reason"])
        for standing in Standing:
            reason = standing.name.lower()
            evicted.add_metric([reason], getattr(c, f"n_evicted_{reason}"))
        yield evicted
        pages = CounterMetricFamily(PREFIX + "kv_pages_moved", "KV pages that left their place.", labels=["how"])
        ways = {"out": c.n_pages_out, "in": c.n_pages_in, "dropped": c.n_pages_dropped, "migrated": c.n_pages_migrated}
        ways |= {"saved": c.n_pages_saved, "loaded": c.n_pages_loaded}
        for how, n in ways.items():
            pages.add_metric([how], n)
        swaps = CounterMetricFamily(PREFIX + "swaps", "Moves to main memory and back.", labels=["how"])
        swaps.add_metric(["out"], c.n_swaps_out)
        swaps.add_metric(["in"], c.n_swaps_in)
        yield from (pages, swaps)
        yield counter("file_saves", "Files written to disk.", c.n_saves)
        yield counter("file_saves_failed", "Files that could not be written to disk.", c.n_saves_failed)
        yield counter("kv_pages_damaged", "Times that K/V on disk did not verify.", c.n_pages_damaged)

    def _workers(self) -> Iterator[Metric]:
        workers = list(self.kernel.workers)
        by_state = GaugeMetricFamily(PREFIX + "workers", "Workers by state.", labels=["state"])
        for state in State:
            by_state.add_metric([state.value], sum(w.state is state for w in workers))
        yield by_state
        yield counter("workers_lost", "Workers that were lost.", self.kernel.counters.n_workers_lost)
        steps = CounterMetricFamily(PREFIX + "step_seconds", "Time of the device in steps.", labels=["worker"])
        batches = CounterMetricFamily(PREFIX + "worker_batches", "Batches answered.", labels=["worker"])
        tokens = CounterMetricFamily(PREFIX + "worker_tokens", "Tokens computed.", labels=["worker"])
        for worker in workers:
            steps.add_metric([worker.name], worker.step_s)
            batches.add_metric([worker.name], worker.n_batches)
            tokens.add_metric([worker.name], worker.n_tokens)
        yield from (steps, batches, tokens)


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def counter(name: str, text: str, value: float) -> CounterMetricFamily:
    """The exposition adds `_total`."""
    return CounterMetricFamily(PREFIX + name, text, value=value)


def histogram(name: str, text: str, seen: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(PREFIX + name, text, buckets=seen.cumulative(), sum_value=seen.sum)
