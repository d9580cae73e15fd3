"""The number of workers that the queue wants, computed from Redis alone."""

import asyncio

import pytest
import redis
from redis.asyncio import Redis
from rq import Queue

from cli.embedded_redis import EmbeddedRedis
from shared.catalog.demand import Demand, DemandReader
from shared.catalog.model_registry import ModelRegistry
from shared.domain.events import Failed
from shared.domain.job import ModelInfo, Priority
from shared.queue.protocols import Bounds
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from tests.contract.test_limits import rq_requeue
from tests.factories import done, make_job, write

BOUNDS = Bounds(jobs_max=10_000)
NOBODY = dict.fromkeys(Priority, 0)


def demand(**changes: object) -> Demand:
    usual: dict[str, object] = {
        "model": "m",
        "waiting_jobs": NOBODY,
        "waiting_tokens": 0,
        "running_jobs": 0,
        "oldest_s": 0.0,
        "workers": 0,
        "worker_tokens_s": 100.0,
        "worker_jobs": 8,
    }
    return Demand(**{**usual, **changes})  # type: ignore[arg-type]


ONE = NOBODY | {Priority.BATCH: 1}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, 0),
        ({"waiting_jobs": ONE, "waiting_tokens": 1}, 1),
        ({"waiting_jobs": ONE, "waiting_tokens": 5000}, 5),
        ({"waiting_jobs": ONE, "waiting_tokens": 5001}, 6),
        ({"running_jobs": 1, "workers": 4}, 1),
        ({"running_jobs": 17, "workers": 4}, 3),
        ({"running_jobs": 17, "waiting_jobs": ONE, "waiting_tokens": 10, "workers": 3}, 3),
        ({"waiting_jobs": ONE, "waiting_tokens": 10, "workers": 3, "oldest_s": 11.0}, 4),
        ({"waiting_jobs": ONE, "waiting_tokens": 10, "workers": 3, "oldest_s": 9.0}, 1),
    ],
)
def test_workers_for_what_waits_and_what_runs(changes: dict[str, object], wanted: int) -> None:
    assert demand(**changes).workers_wanted(10) == wanted


async def test_it_is_known_while_no_worker_runs(client: Redis) -> None:
    queue, reader = RedisQueue(client), DemandReader(client)
    await ModelRegistry(client).announce(ModelInfo(name="m", engine="scripted", context_length=9, created_s=0, slots=4))

    assert (await reader.read("m")).workers_wanted(10) == 0
    for priority in (Priority.BATCH, Priority.INTERACTIVE, Priority.INTERACTIVE):
        await queue.enqueue(make_job(priority=priority, max_tokens=1000), bounds=BOUNDS)
    found = await reader.read("m")

    assert found.waiting_jobs == {Priority.INTERACTIVE: 2, Priority.STANDARD: 0, Priority.BATCH: 1}
    assert found.waiting_tokens > 3 * 250
    assert (found.workers, found.running_jobs, found.worker_jobs) == (0, 0, 4)
    assert 0 <= found.oldest_s < 5
    assert found.workers_wanted(10) == 1
    assert [each.model for each in await reader.all()] == ["m"]


async def test_jobs_that_run_are_counted_and_those_that_ended_are_not(client: Redis) -> None:
    queue, reader = RedisQueue(client), DemandReader(client)
    for _ in range(3):
        await queue.enqueue(make_job(), bounds=BOUNDS)
    first, second = await queue.claim("m", worker="w", limit=2)

    during = await reader.read("m")
    await queue.settle(write(first, done(0)), worker="w")
    await queue.settle(write(second, done(0)), worker="w")
    after = await reader.read("m")

    assert (during.waiting, during.running_jobs) == (1, 2)
    assert (after.waiting, after.running_jobs) == (1, 0)


async def test_what_rq_requeues_is_counted_at_once_and_only_once(client: Redis, redis_server: EmbeddedRedis) -> None:
    queue, reader = RedisQueue(client), DemandReader(client)
    await queue.enqueue(make_job(max_tokens=1000), bounds=BOUNDS)
    asked = await reader.read("m")
    (delivery,) = await queue.claim("m", worker="w", limit=1)
    await queue.settle(write(delivery, done(0, Failed(code="engine_error", message="x"))), worker="w")
    ended = await reader.read("m")

    rq_requeue(redis_server)
    requeued = [await reader.read("m") for _ in range(2)]  # no worker has claimed meanwhile
    await queue.claim("m", worker="w", limit=1)
    claimed = await reader.read("m")

    assert (ended.waiting, ended.waiting_tokens) == (0, 0)
    assert [(each.waiting, each.waiting_tokens) for each in requeued] == [(1, asked.waiting_tokens)] * 2
    assert (claimed.waiting, claimed.waiting_tokens, claimed.running_jobs) == (0, 0, 1)


async def test_what_rq_empties_is_counted_no_more(client: Redis, redis_server: EmbeddedRedis) -> None:
    queue, reader = RedisQueue(client), DemandReader(client)
    for _ in range(2):
        await queue.enqueue(make_job(), bounds=BOUNDS)

    with redis.Redis.from_url(redis_server.url) as connection:
        Queue("m", connection=connection).empty()
    found = await reader.read("m")

    assert (found.waiting, found.waiting_tokens, found.workers_wanted(10)) == (0, 0, 0)


async def test_a_lull_before_a_burst_is_no_slow_worker(client: Redis) -> None:
    queue = RedisQueue(client)
    for _ in range(8):
        await queue.enqueue(make_job(run_deadline_ms=60_000), bounds=BOUNDS)
    (now_s, _) = await client.time()
    await client.hset(keys.rate("m"), mapping={"last_ms": (now_s - 50) * 1000, "gap_ms": 10, "tokens": 5})
    claimed = await queue.claim("m", worker="w", limit=4)
    await queue.settle(write(claimed[0], done(0)), worker="w")

    gap_ms = float(await client.hget(keys.rate("m"), "gap_ms") or 0)
    assert 9 <= gap_ms < 1000  # a tenth of 50 s would be 5 s a job


async def test_jobs_that_began_together_and_end_together_are_no_slow_workers(client: Redis) -> None:
    queue = RedisQueue(client)
    for _ in range(8):
        await queue.enqueue(make_job(run_deadline_ms=60_000), bounds=BOUNDS)
    (now_s, _) = await client.time()
    await client.hset(keys.rate("m"), "last_ms", (now_s - 50) * 1000)  # a job ended long ago, while none was queued
    together = await queue.claim("m", worker="w", limit=4)
    for delivery in together:
        await client.hincrby(keys.job(delivery.job.id), "deadline_ms", -10_000)  # as if it had run for 10 s
    for delivery in together:
        await queue.settle(write(delivery, done(0)), worker="w")

    gap_ms = float(await client.hget(keys.rate("m"), "gap_ms") or 0)
    assert 1500 < gap_ms < 2600  # four in 10 s


async def test_what_a_worker_gets_done_is_remembered_for_when_there_is_none(client: Redis) -> None:
    queue, reader = RedisQueue(client), DemandReader(client)
    await ModelRegistry(client).announce(ModelInfo(name="m", engine="scripted", context_length=9, created_s=0))
    await client.sadd(keys.workers_of("m"), "rq:worker:one", "rq:worker:two")
    for name in ("one", "two"):
        await client.hset(f"rq:worker:{name}", "state", "busy")
    for _ in range(6):
        await queue.enqueue(make_job(), bounds=BOUNDS)
    for _ in range(4):
        (delivery,) = await queue.claim("m", worker="one", limit=1)
        await asyncio.sleep(0.02)  # the time to serve the job is measured here
        await queue.settle(write(delivery, done(0)), worker="one")

    measured = (await reader.read("m")).worker_tokens_s
    await client.delete("rq:worker:one", "rq:worker:two")
    await client.hset(keys.rate("m"), "last_ms", 0)

    assert measured not in (0, 500)
    assert (await reader.read("m")).worker_tokens_s == pytest.approx(measured)
