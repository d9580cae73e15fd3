"""Hosts read what is asked of models."""

import math

from redis.asyncio import Redis

from shared.catalog.hosting import Hosting
from shared.catalog.workloads import Workload, WorkloadReader
from shared.domain.job import Priority
from shared.queue.protocols import Bounds
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from tests.factories import make_job

BOUNDS = Bounds(jobs_max=100)


async def test_a_model_without_work_and_one_that_nobody_knows_have_none(client: Redis) -> None:
    assert await WorkloadReader(client).read(["m", "unknown"]) == {"m": Workload(), "unknown": Workload()}
    assert await WorkloadReader(client).read([]) == {}


async def test_waiting_and_running_jobs_are_counted_by_class(client: Redis) -> None:
    queue = RedisQueue(client)
    await queue.enqueue(make_job(priority=Priority.INTERACTIVE), bounds=BOUNDS)
    await queue.claim("m", worker="w", limit=1)
    for priority in (Priority.STANDARD, Priority.STANDARD, Priority.BATCH):
        await queue.enqueue(make_job(priority=priority, queue_deadline_ms=50_000), bounds=BOUNDS)

    found = (await WorkloadReader(client).read(["m"]))["m"]

    assert found.running == {Priority.INTERACTIVE: 1}
    assert {priority: each.jobs for priority, each in found.waiting.items()} == {
        Priority.STANDARD: 2,
        Priority.BATCH: 1,
    }
    assert all(each.tokens > 0 for each in found.waiting.values())
    assert 0 < found.expires_s <= 50
    assert (found.has_work, found.waiting_jobs) == (True, 3)


async def test_jobs_that_were_handed_back_wait(client: Redis) -> None:
    queue = RedisQueue(client)
    await queue.enqueue(make_job(priority=Priority.INTERACTIVE, run_deadline_ms=9000), bounds=BOUNDS)
    claimed = await queue.claim("m", worker="w", limit=1)

    await queue.release(claimed, worker="w")

    found = (await WorkloadReader(client).read(["m"]))["m"]
    assert found.running == {}
    assert found.waiting[Priority.INTERACTIVE].jobs == 1
    assert found.waiting[Priority.INTERACTIVE].oldest_s < 5
    assert 0 < found.expires_s <= 9


async def test_workers_pauses_and_what_requests_asked_for_are_told(client: Redis) -> None:
    await client.sadd(keys.workers_of("m"), "rq:worker:alive", "rq:worker:dead")
    await client.set("rq:worker:alive", 1)
    await RedisQueue(client).pause("m", paused=True)
    await Hosting(client).set_keep_alive("m", -1)

    found = (await WorkloadReader(client).read(["m"]))["m"]

    assert (found.workers, found.paused, found.keep_alive_s) == (1, True, -1)
    assert found.expires_s == math.inf
