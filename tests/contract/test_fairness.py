"""The order in which jobs are served, in memory and on every kind of Redis."""

import pytest

from shared.domain.errors import QueueFull
from shared.domain.events import Completed, Usage
from shared.domain.job import Job, Priority
from shared.queue.protocols import Bounds
from tests.contract.conftest import TEN, Backend
from tests.factories import done, make_job, started, write


async def claim_all(backend: Backend) -> list[Job]:
    """Claim all jobs one by one, and settle each at its estimated length."""
    jobs = []
    while claimed := await backend.queue.claim("m", worker="a", limit=1):
        usage = Usage(prompt_tokens=claimed[0].job.prompt_tokens_estimate, completion_tokens=100)
        await backend.queue.settle(write(claimed[0], started(), done(1, Completed(usage=usage))), worker="a")
        jobs.append(claimed[0].job)
    return jobs


async def test_urgent_jobs_come_first_and_no_class_starves(backend: Backend) -> None:
    for priority in (Priority.BATCH, Priority.STANDARD, Priority.INTERACTIVE):
        for _ in range(21):
            await backend.queue.enqueue(make_job(priority=priority, max_tokens=100), bounds=Bounds(jobs_max=100))

    order = [job.priority for job in await claim_all(backend)]

    assert order[0] is Priority.INTERACTIVE
    first = [order[:21].count(priority) for priority in Priority]
    assert first == pytest.approx([16, 4, 1], abs=1)
    assert [order.count(priority) for priority in Priority] == [21, 21, 21]


async def test_tenants_share_by_tokens_and_weight_and_a_flood_delays_nobody_else(backend: Backend) -> None:
    for _ in range(30):
        await backend.queue.enqueue(make_job(tenant="flood", max_tokens=100), bounds=Bounds(jobs_max=100))
    for number in range(4):
        await backend.queue.enqueue(make_job(tenant=f"t{number}", max_tokens=100), bounds=Bounds(jobs_max=100))
    for _ in range(10):
        await backend.queue.enqueue(make_job(tenant="heavy", weight=2, max_tokens=100), bounds=Bounds(jobs_max=100))

    order = [job.tenant for job in await claim_all(backend)]

    assert set(order[:6]) == {"flood", "heavy", "t0", "t1", "t2", "t3"}
    assert order[:16].count("heavy") == pytest.approx(2 * order[:16].count("flood"), abs=2)


async def test_a_tenant_that_was_away_saves_nothing_up(backend: Backend) -> None:
    for _ in range(10):
        await backend.queue.enqueue(make_job(tenant="busy", max_tokens=100), bounds=Bounds(jobs_max=100))
    for _ in range(5):
        (delivery,) = await backend.queue.claim("m", worker="a", limit=1)
        await backend.queue.settle(write(delivery, started(), done(1)), worker="a")
    for _ in range(5):
        await backend.queue.enqueue(make_job(tenant="late", max_tokens=100), bounds=Bounds(jobs_max=100))

    order = [job.tenant for job in await claim_all(backend)]

    assert order[:6].count("busy") >= 2


async def test_a_full_queue_has_room_for_newcomers(backend: Backend) -> None:
    for _ in range(10):
        await backend.queue.enqueue(make_job(tenant="flood"), bounds=TEN)
    with pytest.raises(QueueFull):
        await backend.queue.enqueue(make_job(tenant="flood"), bounds=TEN)

    for _ in range(2):
        await backend.queue.enqueue(make_job(tenant="new"), bounds=TEN)
    with pytest.raises(QueueFull) as caught:
        await backend.queue.enqueue(make_job(tenant="new"), bounds=TEN)

    assert caught.value.reason == "queue_full"
    assert caught.value.position == 13
