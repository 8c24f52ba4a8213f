"""The kernel's numbers, as a scrape sees them."""

from prometheus_client.parser import text_string_to_metric_families

from kernel.metrics import registry


def scrape(kernel) -> dict[tuple[str, str], float]:
    """Every sample by name and its one label."""
    from prometheus_client.exposition import generate_latest

    families = text_string_to_metric_families(generate_latest(registry(kernel)).decode())
    return {(s.name, next(iter(s.labels.values()), "")): s.value for family in families for s in family.samples}


async def test_numbers_of_an_idle_kernel(house) -> None:
    (worker,) = house.kernel.workers
    found = scrape(house.kernel)
    assert found["symphony_num_requests_running", ""] == 0
    assert found["symphony_kv_cache_usage_perc", ""] == 0
    assert found["symphony_kv_pages", worker.name] == found["symphony_kv_pages_free", worker.name] == 4096
    assert found["symphony_workers", "ready"] == 1
    assert found["symphony_workers", "lost"] == 0


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
    assert found["symphony_num_requests_running", ""] == 1
    assert found["symphony_programs", "blocked"] == 1
    assert found["symphony_prompt_tokens_total", ""] == 20
    assert found["symphony_generation_tokens_total", ""] == 4
    tokens = ("symphony_worker_tokens_total", worker.name)
    assert found[tokens] - before[tokens] == 24
    assert found["symphony_kv_pages_free", worker.name] == 4096 - 2
    assert found["symphony_kv_cache_usage_perc", ""] == 2 / 4096
    assert found["symphony_kv_files", worker.name] == 1
    assert found["symphony_processes_spawned_total", ""] == 2
    assert found["symphony_syscalls_total", ""] >= 4
    for name in (("symphony_batches_total", ""), ("symphony_worker_batches_total", worker.name)):
        assert found[name] > before[name]
    await house.run(other, send="go")
    await process.wait_exit()
    found = scrape(house.kernel)
    assert found["symphony_processes_ended_total", ""] == 3
    assert found["symphony_kv_files", worker.name] == 0


async def test_a_kernel_without_workers_has_numbers_too(house) -> None:
    (worker,) = house.kernel.workers
    await house.kernel.detach(worker.name)
    found = scrape(house.kernel)
    assert found["symphony_kv_cache_usage_perc", ""] == 0
    assert ("symphony_kv_pages", worker.name) not in found
