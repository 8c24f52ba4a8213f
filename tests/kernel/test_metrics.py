"""The kernel's numbers, as a scrape sees them."""

import re
from pathlib import Path

from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kernel.guard import XCPU
from kernel.metrics import registry

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "observability.md"


def families(kernel) -> list:
    return list(text_string_to_metric_families(generate_latest(registry(kernel)).decode()))


def scrape(kernel) -> dict[tuple[str, ...], float]:
    """Every sample by name and the values of its labels, in the order of the labels' names."""
    return {
        (s.name, *(v for _, v in sorted(s.labels.items()))): s.value
        for family in families(kernel)
        for s in family.samples
    }


async def test_numbers_of_an_idle_kernel(house) -> None:
    (worker,) = house.kernel.workers
    found = scrape(house.kernel)
    for name in ("running", "waiting", "swapped"):
        assert found[f"symphony_num_requests_{name}",] == 0
    assert found["symphony_kv_cache_usage_perc",] == 0
    for name in ("symphony_kv_pages", "symphony_kv_pages_free"):
        assert found[name, "device", worker.name] == 4096
        assert found[name, "host", worker.name] == house.kernel.fs.devices()[worker.name].n_host_pages
    assert found["symphony_workers", "ready"] == 1
    assert found["symphony_workers", "lost"] == 0
    assert found["symphony_ready_queue",] == 0


async def test_numbers_while_and_after_a_program_runs(house) -> None:
    async def main():
        from sdk import kv
        from sdk.channel import Channel

        async with await kv.create() as f:
            await f.generate([1] * 20, max_tokens=4, ignore_eos=True)
            await Channel("seen").send(True)
            await Channel("go").recv()

    async def other(send: str = "", recv: str = ""):
        from sdk.channel import Channel

        return await Channel(recv).recv() if recv else await Channel(send).send(True)

    (worker,) = house.kernel.workers
    before = scrape(house.kernel)  # the worker has answered a first batch of the kernel's own
    process = house.start(main)
    await house.run(other, recv="seen")
    found = scrape(house.kernel)
    gained = {sample: value - before.get(sample, 0.0) for sample, value in found.items()}
    assert found["symphony_programs", "blocked"] == 1
    assert gained["symphony_prompt_tokens_total",] == 20
    assert gained["symphony_generation_tokens_total",] == 4
    assert gained["symphony_worker_tokens_total", worker.name] == 24
    assert found["symphony_kv_pages_free", "device", worker.name] == 4096 - 2
    assert found["symphony_kv_cache_usage_perc",] == 2 / 4096
    assert found["symphony_kv_files", worker.name] == 1
    assert gained["symphony_processes_spawned_total",] == 2
    assert gained["symphony_syscalls_total",] >= 4
    assert gained["symphony_request_success_total", "length"] == 1
    for name, n in (("time_to_first_token", 1), ("inter_token_latency", 3), ("request_queue_time", 1)):
        assert gained[f"symphony_{name}_seconds_count",] == n, name
    assert gained["symphony_time_per_output_token_seconds_count",] == 3
    assert gained["symphony_e2e_request_latency_seconds_count",] == 1
    assert found["symphony_program_service_seconds_total", "main"] > 0
    n_batches = gained["symphony_batches_total",]
    assert n_batches == gained["symphony_worker_batches_total", worker.name] >= 5
    for name in ("batch_size", "iteration_tokens_total", "step_time_seconds", "kernel_time_seconds"):
        assert gained[f"symphony_{name}_count",] == n_batches, name
    assert gained["symphony_batch_size_sum",] == gained["symphony_batch_rows_total",]
    assert gained["symphony_iteration_tokens_total_sum",] >= 24
    assert found["symphony_kernel_time_seconds_sum",] > 0
    await house.run(other, send="go")
    await process.wait_exit()
    found = scrape(house.kernel)
    assert found["symphony_processes_ended_total",] == 3
    assert found["symphony_program_duration_seconds_count",] == 3
    assert found["symphony_kv_files", worker.name] == 0


async def test_model_calls_are_told_apart(house) -> None:
    """Seen from within, where each call is at its first batch: one runs, and one waits for it to be over."""

    async def main():
        import asyncio

        from sdk import kv

        async with await kv.create() as f:
            await f.generate([1, 2, 3], max_tokens=50, ignore_eos=True)
        await asyncio.sleep(0)

    process = house.start(main)
    await house.until(lambda: list(house.kernel.fleet.jobs()))
    assert scrape(house.kernel)["symphony_num_requests_waiting",] == 1
    await house.until(lambda: any(job.times.began >= 0 for job in house.kernel.fleet.jobs()))
    found = scrape(house.kernel)
    assert (found["symphony_num_requests_running",], found["symphony_num_requests_waiting",]) == (1, 0)
    house.kernel.kill(process.pid, "that will do")
    await process.wait_exit()
    assert scrape(house.kernel)["symphony_request_success_total", "abort"] == 1


async def test_programs_that_the_guard_ended_are_counted(house) -> None:
    process = house.start("from sdk.channel import Channel\nasync def main(): await Channel('never').recv()")
    await house.until(lambda: process.waiting)
    process.end(XCPU, "it held the kernel")
    await process.wait_exit()
    assert scrape(house.kernel)["symphony_guard_kills_total",] == 1


async def test_a_kernel_without_workers_has_numbers_too(house) -> None:
    (worker,) = house.kernel.workers
    await house.kernel.detach(worker.name)
    found = scrape(house.kernel)
    assert found["symphony_kv_cache_usage_perc",] == 0
    assert ("symphony_kv_pages", "device", worker.name) not in found


async def test_the_document_lists_each_metric_with_its_kind_and_labels(house) -> None:
    row = re.compile(r"^\| `(symphony_\w+)` \| (\w+) \| (.*?) \|", re.MULTILINE)
    documented = {
        (name.removesuffix("_total") if kind == "counter" else name, kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in row.findall(DOCUMENT.read_text())
    }
    await house.run("async def main(): pass")  # so that there is a program to label
    exported = set()
    for family in families(house.kernel):
        labels = frozenset(label for s in family.samples for label in s.labels if label != "le")
        exported.add((family.name, family.type, labels))
    assert documented == exported
