"""The kernel's numbers for Prometheus, read from its state when they are asked for.

Nothing is counted here: the kernel keeps plain integers, and a scrape turns them into metrics. Names are `symphony_`
and vLLM's suffix where vLLM has the same thing, so that its dashboards need a new prefix only.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kernel.core import Kernel
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
        yield from self._processes()
        yield from self._totals()
        yield from self._pages()
        yield from self._workers()

    def _processes(self) -> Iterator[Metric]:
        states = [process.state for process in self.kernel.ps()]
        yield gauge("num_requests_running", "Programs that are running, whatever they wait for.", len(states))
        by_state = GaugeMetricFamily(PREFIX + "programs", "Programs by state.", labels=["state"])
        for state in (ProcessState.RUNNING, ProcessState.BLOCKED):
            by_state.add_metric([state.value], states.count(state))
        yield by_state

    def _totals(self) -> Iterator[Metric]:
        c = self.kernel.counters
        yield counter("processes_spawned", "Programs started.", c.n_spawned)
        yield counter("processes_ended", "Programs that have ended.", c.n_ended)
        yield counter("syscalls", "System calls made by programs.", c.n_syscalls)
        yield counter("prompt_tokens", "Tokens computed that programs gave.", c.n_prompt_tokens)
        yield counter("generation_tokens", "Tokens computed that the model drew.", c.n_generated_tokens)
        yield counter("batches", "Batches sent to workers.", c.n_batches)
        yield counter("batch_rows", "Rows of those batches, one for each file that took part.", c.n_rows)

    def _pages(self) -> Iterator[Metric]:
        devices = self.kernel.fs.devices()
        n_pages = sum(d.n_pages for d in devices.values())
        n_free = sum(d.n_free for d in devices.values())
        usage = 1.0 - n_free / n_pages if n_pages else 0.0
        yield gauge("kv_cache_usage_perc", "Share of all KV pages that is in use, 0 to 1.", usage)
        total = GaugeMetricFamily(PREFIX + "kv_pages", "KV pages.", labels=["worker"])
        free = GaugeMetricFamily(PREFIX + "kv_pages_free", "KV pages that nobody holds.", labels=["worker"])
        files = GaugeMetricFamily(PREFIX + "kv_files", "KV files.", labels=["worker"])
        for name, device in devices.items():
            total.add_metric([name], device.n_pages)
            free.add_metric([name], device.n_free)
            files.add_metric([name], device.n_files)
        yield from (total, free, files)

    def _workers(self) -> Iterator[Metric]:
        workers = list(self.kernel.workers)
        by_state = GaugeMetricFamily(PREFIX + "workers", "Workers by state.", labels=["state"])
        for state in State:
            by_state.add_metric([state.value], sum(w.state is state for w in workers))
        yield by_state
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
