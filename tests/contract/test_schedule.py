"""A job may wait for its time, and its answer may be wanted by a time."""

import asyncio
import time
from dataclasses import replace

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from rq import Queue
from rq.registry import ScheduledJobRegistry

from cli.embedded_redis import EmbeddedRedis
from shared.catalog.job_records import JobRecords
from shared.domain.errors import QueueFull
from shared.domain.events import Deadline, Failed
from shared.domain.job import Job
from shared.domain.lifecycle import State
from shared.queue.protocols import Bounds, InUse
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from tests.contract.conftest import TEN, Backend
from tests.contract.test_limits import rq_requeue
from tests.factories import done, make_job, started, write

LATER_MS = 10**14
SOON_MS = 250


def later(job: Job | None = None, *, in_ms: float = 60_000) -> Job:
    return replace(job or make_job(), not_before_ms=int(time.time() * 1000 + in_ms))


async def claimed(queue: RedisQueue, limit: int = 9) -> list[str]:
    return [delivery.job.id for delivery in await queue.claim("m", worker="w", limit=limit)]


async def test_a_scheduled_job_waits_for_its_time_and_can_be_cancelled(backend: Backend) -> None:
    job = replace(make_job(), not_before_ms=LATER_MS)
    await backend.queue.enqueue(job, bounds=TEN)

    assert await backend.queue.claim("m", worker="w", limit=1) == []
    assert await backend.queue.attach(job.id, subscriber="s") is State.SCHEDULED
    assert (await backend.queue.forget_model("m")).jobs == 1
    assert await backend.queue.cancel(job.id) is State.SCHEDULED

    (page,) = await backend.channel.read([(job.id, 0)])
    assert page.state is State.CANCELED
    assert await backend.queue.forget_model("m") == InUse(jobs=0, workers=0)


async def test_scheduled_jobs_are_bounded(backend: Backend) -> None:
    for _ in range(2):
        await backend.queue.enqueue(replace(make_job(), not_before_ms=LATER_MS), bounds=Bounds(jobs_max=2))

    with pytest.raises(QueueFull):
        await backend.queue.enqueue(replace(make_job(), not_before_ms=LATER_MS), bounds=Bounds(jobs_max=2))
    await backend.queue.enqueue(make_job(), bounds=Bounds(jobs_max=2))


async def test_a_tenants_jobs_are_served_by_their_deadlines(backend: Backend) -> None:
    plain = [make_job(), make_job()]
    dated = {due: replace(make_job(), due_ms=LATER_MS + due) for due in (3, 1, 2)}
    for job in (dated[3], plain[0], dated[1], plain[1], dated[2]):
        await backend.queue.enqueue(job, bounds=TEN)
    await backend.queue.cancel(dated[1].id)

    found = [delivery.job.id for delivery in await backend.queue.claim("m", worker="w", limit=9)]

    assert found == [plain[0].id, plain[1].id, dated[2].id, dated[3].id]


async def test_a_job_that_is_due_soon_overtakes_those_that_came_before_it(client: Redis) -> None:
    queue = RedisQueue(client)
    now_ms = int(time.time() * 1000)
    plain, late, soon = make_job(), make_job(), make_job()
    late, soon = replace(late, due_ms=now_ms + 90_000), replace(soon, due_ms=now_ms + 9000)
    for job in (plain, late, soon):
        await queue.enqueue(job, bounds=TEN)

    assert await claimed(queue) == [soon.id, plain.id, late.id]


async def test_a_deadline_bounds_the_run(client: Redis) -> None:
    queue = RedisQueue(client)
    now_ms = int(time.time() * 1000)
    await queue.enqueue(replace(make_job(run_deadline_ms=60_000), due_ms=now_ms + 5000), bounds=TEN)
    (delivery,) = await queue.claim("m", worker="w", limit=1)
    await queue.enqueue(replace(make_job(queue_deadline_ms=1), due_ms=now_ms + 1), bounds=TEN)
    await asyncio.sleep(0.02)  # the deadline passes by the server's own clock
    (expired,) = await queue.claim("m", worker="w", limit=1)

    assert delivery.left_ms is not None
    assert 0 < delivery.left_ms <= 5000
    assert expired.late is Deadline.QUEUE


async def test_a_requeued_job_runs_although_its_deadline_has_passed(client: Redis, redis_server: EmbeddedRedis) -> None:
    queue = RedisQueue(client)
    job = replace(make_job(queue_deadline_ms=60_000, run_deadline_ms=50_000), due_ms=int(time.time() * 1000) + 1000)
    await queue.enqueue(job, bounds=TEN)
    (first,) = await queue.claim("m", worker="w", limit=1)
    await queue.settle(write(first, started(), done(1, Failed(code="engine_error", message="x"))), worker="w")

    rq_requeue(redis_server)
    (again,) = await queue.claim("m", worker="w", limit=1)

    assert first.left_ms is not None
    assert again.left_ms is not None
    assert first.left_ms <= 1000 < again.left_ms <= 50_000


async def test_rq_sees_a_scheduled_job_until_it_is_queued(client: Redis, redis_server: EmbeddedRedis) -> None:
    queue, job = RedisQueue(client), later(in_ms=SOON_MS)
    await queue.enqueue(job, bounds=TEN)
    await queue.enqueue(later(), bounds=TEN)
    records = JobRecords(client)

    registry = ScheduledJobRegistry(queue=Queue("m", connection=SyncRedis.from_url(redis_server.url)))
    assert job.id in registry.get_job_ids()
    assert await records.ids("m", State.SCHEDULED) == registry.get_job_ids()
    assert (await records.record(job.id)).not_before_ms == job.not_before_ms
    assert await claimed(queue) == []
    await asyncio.sleep(SOON_MS / 1000 + 0.01)  # its time comes by the server's own clock

    (delivery,) = await queue.claim("m", worker="w", limit=9)

    assert delivery.job == job
    assert delivery.waited_ms < SOON_MS, "the wait counts from its time on"
    timeline = (await records.record(job.id)).timeline
    assert [what.split()[0] for _, what in timeline] == ["scheduled", "queued", "claimed"]
    assert registry.count == 1


async def test_scheduled_bytes_are_counted_anew_before_they_refuse_a_job(client: Redis) -> None:
    queue, gone = RedisQueue(client), later(make_job(prompt="x" * 5000))
    small = Bounds(jobs_max=10, bytes_max=6000)
    await queue.enqueue(gone, bounds=small)
    with pytest.raises(QueueFull) as refused:
        await queue.enqueue(later(make_job(prompt="x" * 5000)), bounds=small)
    assert refused.value.reason == "queue_bytes_full"
    await queue.enqueue(later(), bounds=small)
    await client.delete(keys.job(gone.id))  # as RQ's Job.delete() does, without a word to the count
    await client.hdel(f"penstock:scheduled-load:{gone.model}", "weighed_ms")  # some seconds pass

    await queue.enqueue(later(make_job(prompt="x" * 5000)), bounds=small)


async def test_nothing_of_a_scheduled_job_stays_behind(client: Redis) -> None:
    queue, job = RedisQueue(client), later()
    await queue.enqueue(job, bounds=TEN)
    assert await client.exists(keys.registry(State.SCHEDULED, "m"), "penstock:scheduled-load:m") == 2

    await queue.cancel(job.id)

    assert await client.exists(keys.registry(State.SCHEDULED, "m"), "penstock:scheduled-load:m") == 0
