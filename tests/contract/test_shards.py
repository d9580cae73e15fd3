"""Several Redis are listened to as one: until one of them is heard no more, and then by nobody."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from api.serving.relay import Relay
from shared.domain.events import Event
from shared.observability.metrics import ApiMetrics
from shared.queue.memory_queue import MemoryQueue
from shared.queue.protocols import Bounds
from shared.queue.redis_queue import RedisQueue
from shared.shards import Shard, ShardedQueue, ShardMap, shard
from tests.factories import delta, make_job, started, write


class Mistaken(MemoryQueue):
    """A channel with a programming error, which shows when something is published."""

    async def listen(self, subscriber: str) -> AsyncIterator[list[tuple[str, Sequence[Event]]]]:
        async for batch in super().listen(subscriber):
            yield [(batch[5][0], ())]


def two(client: Redis, far: MemoryQueue) -> list[Shard]:
    home = shard(client, RedisQueue(client))
    return [home, replace(home, queue=far, channel=far)]


async def publish(queue: MemoryQueue | RedisQueue) -> str:
    job = make_job()
    await queue.enqueue(job, subscriber="api", bounds=Bounds(jobs_max=10))
    (delivery,) = await queue.claim("m", worker="w", limit=1)
    await queue.append([write(delivery, started(), delta(1))])
    return job.id


async def test_a_listener_that_fails_ends_the_relay(client: Redis) -> None:
    far = Mistaken(lambda: 0)
    fleet = ShardedQueue(ShardMap(two(client, far)))
    relay = Relay("api", queue=fleet, channel=fleet, silence_ms=1000, buffer_max=10, metrics=ApiMetrics())
    running = asyncio.create_task(relay.run())
    await asyncio.sleep(0)

    await publish(far)

    with pytest.raises(ExceptionGroup) as failed:
        await asyncio.wait_for(running, 3)
    assert failed.group_contains(IndexError)


async def test_a_connection_that_is_lost_is_made_again(client: Redis) -> None:
    far, near = MemoryQueue(lambda: 0), RedisQueue(client)
    heard = ShardedQueue(ShardMap(two(client, far))).listen("api")
    for queue in (near, near, far):
        hearing = asyncio.ensure_future(anext(heard))
        published = set()
        for _ in range(30):  # what is published while nobody listens is heard by nobody
            published.add(await publish(queue))
            if (await asyncio.wait([hearing], timeout=0.1))[0]:
                break
        assert {job_id for job_id, _ in await asyncio.wait_for(hearing, 3)} <= published
        await client.client_kill_filter(_type="pubsub")

    await heard.aclose()  # type: ignore[attr-defined]
