"""Several Redis servers act as one: each model is found in one of them, and all are heard until one fails."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from api.serving.relay import Relay
from cli.embedded_redis import EmbeddedRedis
from shared.catalog.model_registry import ModelRegistry
from shared.domain.errors import InvalidRequest, QueueUnavailable
from shared.domain.events import Event
from shared.domain.hosting import Host, HostedModel, HostedState, Order, OrderVerb
from shared.domain.job import ModelInfo
from shared.observability.metrics import ApiMetrics
from shared.queue.memory_queue import MemoryQueue
from shared.queue.protocols import Bounds
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from shared.redis.client import connect
from shared.sharded_catalog import ShardedHosting
from shared.shards import PLACED_FOR_S, Shard, ShardedQueue, ShardMap, shard
from tests.factories import delta, make_job, started, write


class Mistaken(MemoryQueue):
    """A channel with a programming error that appears at the first event."""

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
        for _ in range(30):  # events that are published before anyone listens are lost
            published.add(await publish(queue))
            if (await asyncio.wait([hearing], timeout=0.1))[0]:
                if published.issuperset(job_id for job_id, _ in hearing.result()):
                    break
                hearing = asyncio.ensure_future(anext(heard))  # that was an event of the round before
        assert {job_id for job_id, _ in await asyncio.wait_for(hearing, 3)} <= published
        await client.client_kill_filter(_type="pubsub")

    await heard.aclose()  # type: ignore[attr-defined]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def announce(shard: Shard, workers: int) -> None:
    """Announce the model m with this many workers."""
    await shard.model_registry.announce(ModelInfo(name="m", engine="scripted", context_length=9, created_s=0))
    await shard.client.delete(keys.workers_of("m"))
    for number in range(workers):
        key = keys.worker(f"w{number}")
        await shard.client.hset(key, mapping={"birth": "x"})
        await shard.client.sadd(keys.workers_of("m"), key)


@pytest.fixture
async def shards(redis_server: EmbeddedRedis) -> AsyncIterator[list[Shard]]:
    clients = [connect(f"{redis_server.url.removesuffix('/0')}/{number}") for number in range(3)]
    await clients[0].flushall()
    yield [shard(client, RedisQueue(client)) for client in clients]
    for client in clients:
        await client.aclose()


class Switched(ModelRegistry):
    """A model registry whose Redis can be switched off."""

    away = False

    async def model(self, name: str) -> ModelInfo:
        if self.away:
            raise QueueUnavailable("away")
        return await super().model(name)


async def test_a_model_is_where_most_of_its_workers_are(shards: list[Shard]) -> None:
    await announce(shards[1], 1)
    await announce(shards[2], 2)
    places = ShardMap(shards)

    assert await places.of_model("m") is shards[2]
    assert await places.of_model("unknown") is shards[0]


async def test_a_replay_stays_in_the_redis_of_its_job(shards: list[Shard]) -> None:
    fleet = ShardedQueue(ShardMap(shards))
    await announce(shards[1], 1)
    job = make_job("elsewhere")
    await fleet.enqueue(job, bounds=Bounds(jobs_max=10))

    with pytest.raises(InvalidRequest, match="'m' is in another Redis"):
        await fleet.replay(job.id, as_id="again", model="m")


async def test_a_model_is_looked_for_again_after_a_while_and_found_where_its_workers_went(shards: list[Shard]) -> None:
    clock = Clock()
    places = ShardMap(shards, clock=clock)
    await announce(shards[1], 1)
    assert await places.of_model("m") is shards[1]

    await announce(shards[1], 0)
    await announce(shards[2], 1)

    assert await places.of_model("m") is shards[1]
    clock.now_s = PLACED_FOR_S
    assert await places.of_model("m") is shards[2]


async def test_a_model_that_still_has_workers_stays_where_it_was(shards: list[Shard]) -> None:
    clock = Clock()
    places = ShardMap(shards, clock=clock)
    await announce(shards[1], 1)
    assert await places.of_model("m") is shards[1]

    await announce(shards[2], 2)
    clock.now_s = PLACED_FOR_S

    assert await places.of_model("m") is shards[1]


async def test_a_model_whose_redis_is_away_is_there_still(shards: list[Shard]) -> None:
    clock, directory = Clock(), Switched(shards[1].client)
    shards[1] = replace(shards[1], model_registry=directory)
    places = ShardMap(shards, clock=clock)
    await announce(shards[1], 1)
    assert await places.of_model("m") is shards[1]

    directory.away = True
    clock.now_s = PLACED_FOR_S

    assert await places.of_model("m") is shards[1]


async def test_a_model_that_a_redis_may_have_which_is_away_is_not_called_unknown(shards: list[Shard]) -> None:
    directory = Switched(shards[1].client)
    shards[1] = replace(shards[1], model_registry=directory)
    places = ShardMap(shards)
    directory.away = True

    with pytest.raises(QueueUnavailable):
        await places.of_model("m")
    await announce(shards[2], 0)
    assert await places.of_model("m") is shards[2]


async def test_a_host_is_found_and_ordered_in_the_redis_that_it_connects_to(shards: list[Shard]) -> None:
    hosting = ShardedHosting(ShardMap(shards))
    host = Host(id="h", hostname="here", machine="boot", pid=1)
    record = HostedModel(host="h", model="far", state=HostedState.READY, since_s=1)
    order = Order(id="o", verb=OrderVerb.LOAD, model="far")
    await shards[2].hosting.write(host, [record])

    await hosting.place("h", order)
    await shards[2].hosting.report("o")

    assert await hosting.hosts() == [host]
    assert (await hosting.all(), await hosting.of("far")) == ({"far": [record]}, [record])
    assert (await shards[0].hosting.take_orders("h"), await shards[2].hosting.take_orders("h")) == ([], [order])
    assert await hosting.outcome("o") == "done"
