"""Health and numbers."""


async def test_health_follows_the_workers(public, house) -> None:
    async def main():
        from sdk import kv

        async with await kv.prompt("x"):
            pass

    await house.run(main)
    for path in ("/health", "/healthz"):
        response = await public.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
    (worker,) = house.kernel.workers
    await house.kernel.detach(worker.name)
    response = await public.get("/healthz")
    assert (response.status_code, response.json()) == (503, {"status": "no worker"})


async def test_a_kernel_that_stops_is_not_well(public, house) -> None:
    house.kernel.stopping = True
    response = await public.get("/health")
    assert (response.status_code, response.json()) == (503, {"status": "stopping"})


async def test_metrics_are_prometheus_text(public) -> None:
    response = await public.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert "symphony_num_requests_running 0.0" in response.text
