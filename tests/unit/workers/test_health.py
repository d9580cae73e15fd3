"""The worker's own endpoints for health and metrics."""

from typing import Any

import httpx

from shared.observability.metrics import WorkerMetrics
from shared.queue.memory_queue import MemoryQueue
from tests.running_workers import Clock, make_worker
from workers.loop.health import HealthServer


async def asked(server: HealthServer, path: str) -> httpx.Response:
    app: Any = server.config.app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://worker") as client:
        return await client.get(path)


async def test_the_metrics_of_an_engine_follow_those_of_the_worker() -> None:
    metrics = WorkerMetrics()
    worker = make_worker(MemoryQueue(Clock()), metrics=metrics)
    (runner,) = worker._runners
    runner.metrics_page = lambda: b"vendor_steps 3.0\n"  # type: ignore[method-assign]

    page = (await asked(HealthServer(worker, metrics), "/metrics")).text

    assert page.startswith(metrics.page().decode())
    assert page.endswith("\nvendor_steps 3.0\n")


async def test_a_worker_that_claims_no_more_is_live_but_not_ready() -> None:
    worker = make_worker(MemoryQueue(Clock()))
    server = HealthServer(worker, WorkerMetrics())
    assert (await asked(server, "/health/ready")).status_code == 200

    worker.stop()

    assert (await asked(server, "/health/ready")).status_code == 503
    assert (await asked(server, "/health/live")).status_code == 200


async def test_a_worker_whose_runners_have_no_place_is_live_but_not_ready() -> None:
    worker = make_worker(MemoryQueue(Clock()))
    server = HealthServer(worker, WorkerMetrics())
    (runner,) = worker._runners

    runner.places = 0

    assert (await asked(server, "/health/ready")).status_code == 503
    assert (await asked(server, "/health/live")).status_code == 200
