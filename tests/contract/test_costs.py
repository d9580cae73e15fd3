"""Redis counts what completed jobs cost, for an API key and a model."""

import time

import pytest
from redis.asyncio import Redis

from cli.embedded_redis import EmbeddedRedis
from shared.catalog.api_keys import ApiKeyStore
from shared.domain.events import Cancelled, Completed, Expired, Failed, Outcome, Usage
from shared.domain.job import Job
from shared.queue.protocols import SETTLED, Bounds, Delivery, RateLimits
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from tests.contract.test_limits import rq_requeue
from tests.factories import done, make_job, write

TENANT = "key-1"
NOVEMBER_S = 1_795_000_000  # in 2026
BOUNDS = Bounds(jobs_max=100)
FAILED = Failed(code="engine_error", message="x")


@pytest.fixture
def queue(client: Redis) -> RedisQueue:
    return RedisQueue(client)


async def submit(queue: RedisQueue, *, month: str = "2026-11", model: str = "m") -> Job:
    job = make_job(tenant=TENANT, model=model)
    await queue.enqueue(job, bounds=BOUNDS, rate_limits=RateLimits(month=month))
    return job


def costing(micros: int) -> Completed:
    return Completed(usage=Usage(prompt_tokens=1, completion_tokens=2, cost_micros=micros))


async def claim(queue: RedisQueue, *, model: str = "m") -> Delivery:
    (delivery,) = await queue.claim(model, worker="w", limit=1)
    return delivery


async def end(queue: RedisQueue, delivery: Delivery, outcome: Outcome) -> int:
    return await queue.settle(write(delivery, done(0, outcome)), worker="w")


async def costs(client: Redis) -> dict[str, int]:
    return await ApiKeyStore(client, clock=lambda: NOVEMBER_S).costs(TENANT)


async def test_the_costs_of_a_month_are_counted_for_the_key_by_model(queue: RedisQueue, client: Redis) -> None:
    for model, micros, month in (("m", 5, "2026-11"), ("n", 3, "2026-11"), ("m", 7, "2026-11"), ("m", 9, "2026-10")):
        await submit(queue, model=model, month=month)
        assert await end(queue, await claim(queue, model=model), costing(micros)) == SETTLED

    assert await costs(client) == {"m": 12, "n": 3}
    assert await client.hgetall(keys.costs(TENANT, "2026-10")) == {b"m": b"9"}
    assert 69 * 86400 < await client.ttl(keys.costs(TENANT, "2026-11")) <= 70 * 86400


async def test_an_end_that_is_written_again_costs_once(queue: RedisQueue, client: Redis) -> None:
    await submit(queue)
    delivery = await claim(queue)
    await end(queue, delivery, costing(5))

    await end(queue, delivery, costing(5))

    assert await costs(client) == {"m": 5}


async def test_a_worker_that_lost_the_job_counts_nothing(client: Redis) -> None:
    queue = RedisQueue(client, lease_ms=1)
    await submit(queue)
    lost = await claim(queue)
    while not (taken := await queue.claim("m", worker="v", limit=1)):
        pass

    await end(queue, lost, costing(100))
    await end(queue, taken[0], costing(5))

    assert await costs(client) == {"m": 5}


@pytest.mark.parametrize("outcome", [FAILED, Cancelled(), Expired(), costing(0)])
async def test_what_does_not_complete_or_has_no_price_has_no_cost(
    queue: RedisQueue, client: Redis, outcome: Outcome
) -> None:
    await submit(queue)

    await end(queue, await claim(queue), outcome)

    assert await costs(client) == {}
    assert not await client.exists(keys.costs(TENANT, "2026-11"))


async def test_a_job_without_a_key_is_counted_nowhere(queue: RedisQueue, client: Redis) -> None:
    await queue.enqueue(make_job(tenant="anonymous"), bounds=BOUNDS)

    await end(queue, await claim(queue), costing(5))

    assert not [key async for key in client.scan_iter("penstock:costs:*")]


async def test_what_is_requeued_costs_when_it_completes(
    queue: RedisQueue, client: Redis, redis_server: EmbeddedRedis
) -> None:
    await submit(queue)
    await end(queue, await claim(queue), FAILED)
    rq_requeue(redis_server)

    await end(queue, await claim(queue), costing(5))

    assert await costs(client) == {"m": 5}


async def test_a_replay_costs_its_key_in_the_month_of_the_replay(queue: RedisQueue, client: Redis) -> None:
    job = await submit(queue, month="2025-01")
    await end(queue, await claim(queue), FAILED)
    await queue.replay(job.id, as_id="again")
    await queue.replay(job.id, as_id="twice")
    await end(queue, await claim(queue), FAILED)
    await queue.replay("again", as_id="third", model="other")

    await end(queue, await claim(queue, model="other"), costing(5))

    now = ApiKeyStore(client, clock=time.time)
    assert await now.costs(TENANT) == {"other": 5}
    assert not await client.exists(keys.costs(TENANT, "2025-01"))


async def test_the_costs_of_several_redis_are_added(client: Redis) -> None:
    await client.hset(keys.costs(TENANT, "2026-11"), mapping={"m": 5, "n": 1})

    both = ApiKeyStore(client, counting=[client, client], clock=lambda: NOVEMBER_S)

    assert await both.costs(TENANT) == {"m": 10, "n": 2}
