"""Records whose jobs are in another Redis, and a count of queued bytes that went wrong."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from cli.embedded_redis import EmbeddedRedis
from shared.domain.errors import QueueFull, QueueUnavailable, StorageFull
from shared.domain.job import Job, ModelInfo
from shared.domain.lifecycle import State
from shared.queue.protocols import Bounds, StoredRecord
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from shared.redis.client import connect
from shared.shards import ShardedQueue, ShardMap, shard
from tests.factories import make_job

TEN = Bounds(jobs_max=10)


@pytest.fixture
async def places(redis_server: EmbeddedRedis) -> AsyncIterator[ShardMap]:
    """Return the main Redis, and a shard that holds the model m."""
    clients = [connect(f"{redis_server.url.removesuffix('/0')}/{number}") for number in (0, 1)]
    await clients[0].flushall()
    made = ShardMap([shard(client, RedisQueue(client)) for client in clients])
    await made.shards[1].model_registry.announce(ModelInfo(name="m", engine="scripted", context_length=9, created_s=0))
    yield made
    for client in clients:
        await client.aclose()


def record_of(job: Job, *, size: int = 100, tenant_bytes_max: int = 10_000) -> StoredRecord:
    about = {"id": job.id, "tenant": job.tenant, "created_ms": job.created_ms, "ttl_s": 60}
    return StoredRecord(key=keys.response(job.id), data="x" * size, tenant_bytes_max=tenant_bytes_max, **about)  # type: ignore[arg-type]


async def state_of(places: ShardMap, job: Job) -> State | None:
    (page,) = await places.shards[1].channel.read([(job.id, 0)])
    return page.state


async def test_a_record_is_at_home_once_its_job_is_accepted_elsewhere(places: ShardMap) -> None:
    job = make_job()

    await ShardedQueue(places).enqueue(job, bounds=TEN, record=record_of(job))

    assert await places.home.client.exists(keys.response(job.id))
    assert await state_of(places, job) is State.QUEUED


async def test_a_job_refused_elsewhere_leaves_no_record_at_home(places: ShardMap) -> None:
    fleet, refused = ShardedQueue(places), make_job()
    await fleet.enqueue(make_job(), bounds=TEN)

    with pytest.raises(QueueFull):
        await fleet.enqueue(refused, bounds=Bounds(jobs_max=1), record=record_of(refused))

    assert not [key async for key in places.home.client.scan_iter("penstock:*")]


async def test_a_record_refused_at_home_leaves_no_job_elsewhere(places: ShardMap) -> None:
    fleet, refused = ShardedQueue(places), make_job()

    with pytest.raises(StorageFull):
        await fleet.enqueue(refused, bounds=TEN, record=record_of(refused, size=20_000))

    assert not [key async for key in places.home.client.scan_iter("penstock:*")]
    assert await state_of(places, refused) is State.CANCELED


async def test_a_home_that_is_away_leaves_no_job_elsewhere(places: ShardMap) -> None:
    fleet, refused = ShardedQueue(places), make_job()
    gone = connect("redis://127.0.0.1:1/0")
    places.home = replace(places.home, queue=RedisQueue(gone))

    with pytest.raises(QueueUnavailable):
        await fleet.enqueue(refused, bounds=TEN, record=record_of(refused))

    assert await state_of(places, refused) is State.CANCELED
    await gone.aclose()


async def test_a_wrong_count_of_waiting_bytes_refuses_nothing(client: Redis) -> None:
    """A release that does not count bytes has claimed jobs that another release counted."""
    queue, bounds = RedisQueue(client), Bounds(jobs_max=10, bytes_max=10_000)
    await queue.enqueue(make_job(), bounds=bounds)
    await client.hset(keys.load("m"), "bytes", 1_000_000)

    await queue.enqueue(make_job(), bounds=bounds)

    assert int(await client.hget(keys.load("m"), "bytes") or 0) < 2000
