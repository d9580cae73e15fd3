"""A log that cannot be decoded ends its own job's stream, and nobody else's."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from api.serving.relay import Relay
from shared.domain.events import Failed, Finished
from shared.domain.job import Job
from shared.domain.lifecycle import State
from shared.observability.metrics import ApiMetrics
from shared.queue.event_channel import RedisChannel
from shared.queue.protocols import Bounds, Delivery
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from tests.factories import delta, make_job, started, write

BOUNDS = Bounds(jobs_max=10)
UNREADABLE = [b"\xff\x00", b"5", b'["f",[]]', b'["d",0,"x",[1],null,[[[7,0.5]]]]']


@pytest.fixture
def queue(client: Redis) -> RedisQueue:
    return RedisQueue(client)


@pytest.fixture
async def relay(client: Redis, queue: RedisQueue) -> AsyncIterator[Relay]:
    channel = RedisChannel(client)
    made = Relay("api", queue=queue, channel=channel, silence_ms=60, buffer_max=100, metrics=ApiMetrics())
    running = asyncio.create_task(made.run())
    yield made
    await made.close()
    await asyncio.wait([running])


async def begin(queue: RedisQueue, job: Job, *, subscriber: str = "") -> Delivery:
    await queue.enqueue(job, bounds=BOUNDS, subscriber=subscriber)
    (delivery,) = await queue.claim(job.model, worker="w", limit=1)
    await queue.append([write(delivery, started(), delta(1))])
    return delivery


@pytest.mark.parametrize("unreadable", UNREADABLE)
async def test_the_other_silent_streams_are_filled(
    client: Redis, queue: RedisQueue, relay: Relay, unreadable: bytes
) -> None:
    bad, good = make_job(), make_job()
    with relay.open(bad) as broken, relay.open(good) as whole:
        for stream, job in ((broken, bad), (whole, good)):
            await begin(queue, job)  # nothing is published to this relay, so every event must come from the logs
            if job is bad:
                await client.rpush(keys.log(bad.id), unreadable)
            relay.mark_enqueued(stream)

        events = await asyncio.wait_for(relay.next_events(broken), 3)
        others = await asyncio.wait_for(relay.next_events(whole), 3)

    assert events[:2] == others == [started(), delta(1)]
    assert isinstance(events[2], Finished)
    assert isinstance(events[2].outcome, Failed)
    assert (events[2].seq, events[2].outcome.code) == (2, "internal_error")
    assert await client.lindex(keys.log(bad.id), 2) == unreadable


async def test_the_other_jobs_of_a_published_batch_are_heard(client: Redis, queue: RedisQueue, relay: Relay) -> None:
    job = make_job()
    with relay.open(job) as stream:
        await begin(queue, job, subscriber="api")
        relay.mark_enqueued(stream, logged=True)
        assert await asyncio.wait_for(relay.next_events(stream), 3) == [started(), delta(1)]
        stream.heard_at += 3600  # every event that comes now was published
        for message in (b"5", b"[5]", b'[["a",0,[["x"]]],["%b",2,[["d",0,"y",[2]]]]]' % job.id.encode()):
            await client.publish(keys.events_channel("api"), message)

        assert await asyncio.wait_for(relay.next_events(stream), 3) == [delta(2, "y")]


async def test_a_job_whose_log_cannot_be_read_fails_and_keeps_its_bytes(client: Redis, queue: RedisQueue) -> None:
    job = make_job()
    delivery = await begin(queue, job)
    await client.rpush(keys.log(job.id), b"\xff\x00")
    await queue.release([delivery], worker="w")

    assert await queue.claim(job.model, worker="other", limit=1) == []

    (page,) = await RedisChannel(client).read([(job.id, 0)])
    assert page.state is State.FAILED
    assert (await client.lrange(keys.log(job.id), 0, -1))[2] == b"\xff\x00"
    assert await client.hget(keys.job(job.id), "payload")
    assert isinstance(page.events[-1], Finished)


async def test_a_state_of_another_tool_is_an_end(client: Redis, queue: RedisQueue) -> None:
    job = make_job()
    await begin(queue, job)
    await client.hset(keys.job(job.id), "status", "stopped")

    (page,) = await RedisChannel(client).read([(job.id, 0)])

    assert page.state is State.FAILED
