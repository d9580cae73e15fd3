"""The quotas of upstreams: what a claim takes from them, and what it leaves in the queue. Only Redis has them."""

import asyncio
import time
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from shared.domain.events import Completed, Finished, Started, Usage
from shared.domain.job import Priority
from shared.queue.protocols import Bounds, Delivery, Quota, Room
from shared.queue.quotas import Breaking, RedisQuotas
from shared.queue.redis_queue import RedisQueue
from tests.factories import make_job, write

BOUNDS = Bounds(jobs_max=1000)
LEASE_MS = 500
NAME = "upstream:a"


@pytest.fixture
def queue(client: Redis) -> RedisQueue:
    return RedisQueue(client, lease_ms=LEASE_MS)


@pytest.fixture
def quotas(client: Redis) -> RedisQuotas:
    return RedisQuotas(client)


async def enqueue(queue: RedisQueue, count: int, *, priority: Priority = Priority.STANDARD, tokens: int = 50) -> None:
    for _ in range(count):
        await queue.enqueue(make_job(priority=priority, max_tokens=tokens), bounds=BOUNDS)


async def claim(queue: RedisQueue, *quotas: Quota, limit: int = 100) -> list[Delivery]:
    return await queue.claim("m", worker="w", limit=limit, room=Room(quotas=quotas))


async def settle(queue: RedisQueue, delivery: Delivery, *, tokens: int) -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=tokens - 1)
    events = (Started(seq=0, prompt_tokens=1), Finished(seq=1, outcome=Completed(usage=usage)))
    await queue.settle(write(delivery, *events), worker="w")


async def test_a_claim_takes_no_more_jobs_than_requests_are_left(queue: RedisQueue) -> None:
    await enqueue(queue, 5)

    first = await claim(queue, Quota(name=NAME, requests=3))
    second = await claim(queue, Quota(name=NAME, requests=3))

    assert [each.quota for each in first] == [NAME] * 3
    assert second == []
    assert await queue.depth("m") == 2


async def test_requests_come_back_with_time(client: Redis) -> None:
    queue = RedisQueue(client, lease_ms=60_000)
    quota = Quota(name=NAME, requests=600)  # ten a second
    await enqueue(queue, 700)
    began = time.monotonic()

    first = len(await claim(queue, quota, limit=1000))
    await asyncio.sleep(0.5)
    second = len(await claim(queue, quota, limit=1000))

    assert 600 <= first <= 601 + 10 * (time.monotonic() - began)
    assert 605 <= first + second <= 601 + 10 * (time.monotonic() - began)


async def test_all_workers_share_it(queue: RedisQueue, client: Redis) -> None:
    await enqueue(queue, 5)
    quota = Quota(name=NAME, requests=3)

    mine = await claim(queue, quota, limit=2)
    others = await RedisQueue(client).claim("m", worker="v", limit=9, room=Room(quotas=(quota,)))

    assert (len(mine), len(others)) == (2, 1)


async def test_the_most_urgent_class_comes_first_and_batch_fills_what_is_left(queue: RedisQueue) -> None:
    await enqueue(queue, 4, priority=Priority.BATCH)
    await enqueue(queue, 2, priority=Priority.STANDARD)
    await enqueue(queue, 2, priority=Priority.INTERACTIVE)

    claimed = await claim(queue, Quota(name=NAME, requests=5))

    classes = [each.job.priority for each in claimed]
    assert classes == [Priority.INTERACTIVE] * 2 + [Priority.STANDARD] * 2 + [Priority.BATCH]


async def test_tokens_are_taken_by_the_estimate_and_corrected_by_the_usage(queue: RedisQueue) -> None:
    await enqueue(queue, 3, tokens=300)
    quota = Quota(name=NAME, tokens=1000)

    claimed = await claim(queue, quota)
    assert len(claimed) == 3
    await enqueue(queue, 2, tokens=290, priority=Priority.INTERACTIVE)
    assert await claim(queue, quota) == []

    await settle(queue, claimed[0], tokens=10)

    assert len(await claim(queue, quota)) == 1


async def test_a_job_larger_than_the_bucket_takes_a_full_one(queue: RedisQueue) -> None:
    await enqueue(queue, 2, tokens=300)

    assert len(await claim(queue, Quota(name=NAME, tokens=100))) == 1
    assert await claim(queue, Quota(name=NAME, tokens=100)) == []


async def test_requests_at_once_are_free_again_when_one_ends(queue: RedisQueue) -> None:
    await enqueue(queue, 4)
    quota = Quota(name=NAME, at_once=2)
    one, two = await claim(queue, quota)
    assert await claim(queue, quota) == []

    await settle(queue, one, tokens=5)
    (three,) = await claim(queue, quota)
    await queue.release([two], worker="w")
    again = await claim(queue, quota)

    assert [each.job.id for each in again] == [two.job.id]
    assert three.job.id != two.job.id


async def test_a_cancelled_job_is_no_longer_at_once(queue: RedisQueue) -> None:
    await enqueue(queue, 2)
    quota = Quota(name=NAME, at_once=1)
    (one,) = await claim(queue, quota)

    await queue.cancel(one.job.id)

    assert len(await claim(queue, quota)) == 1


async def test_a_renewed_job_stays_at_once_and_one_of_a_dead_worker_does_not(queue: RedisQueue) -> None:
    await enqueue(queue, 2)
    quota = Quota(name=NAME, at_once=1)
    (one,) = await claim(queue, quota)

    await asyncio.sleep(0.6 * LEASE_MS / 1000)
    await queue.renew([one], worker="w")
    await asyncio.sleep(0.6 * LEASE_MS / 1000)
    assert await claim(queue, quota) == []

    await asyncio.sleep(1.1 * LEASE_MS / 1000)
    assert [each.job.id for each in await claim(queue, quota)] == [one.job.id]


async def test_the_next_quota_is_taken_when_the_first_is_used_up(queue: RedisQueue) -> None:
    await enqueue(queue, 4)

    claimed = await claim(queue, Quota(name=NAME, requests=1), Quota(name="upstream:b", requests=2))

    assert [each.quota for each in claimed] == [NAME, "upstream:b", "upstream:b"]


async def test_a_paused_quota_has_no_room_until_then(queue: RedisQueue, quotas: RedisQuotas) -> None:
    await enqueue(queue, 1)
    await quotas.pause(Quota(name=NAME), 0.3)
    await quotas.pause(Quota(name=NAME), 0.1)  # a shorter pause ends no longer one

    assert await claim(queue, Quota(name=NAME)) == []
    await asyncio.sleep(0.15)
    assert await claim(queue, Quota(name=NAME)) == []
    await asyncio.sleep(0.2)
    assert len(await claim(queue, Quota(name=NAME))) == 1


async def test_a_request_beside_claims_is_spent_too(queue: RedisQueue, quotas: RedisQuotas) -> None:
    await enqueue(queue, 3)

    await quotas.spend(Quota(name=NAME, requests=3))

    assert len(await claim(queue, Quota(name=NAME, requests=3))) == 2


async def test_a_request_that_was_taken_and_not_sent_is_given_back(queue: RedisQueue, quotas: RedisQuotas) -> None:
    await enqueue(queue, 4)
    quota = Quota(name=NAME, requests=3)
    assert len(await claim(queue, quota)) == 3

    await quotas.spend(quota, -1)

    assert len(await claim(queue, quota)) == 1


async def test_a_refused_request_costs_no_more_than_the_pause(queue: RedisQueue, quotas: RedisQuotas) -> None:
    quota = Quota(name=NAME, requests=6)  # one in ten seconds
    await enqueue(queue, 8)
    first = await claim(queue, quota)

    await quotas.pause(quota, 0.1, refused=1)
    await queue.release(first[-1:], worker="w")

    assert await claim(queue, quota) == []
    await asyncio.sleep(0.15)
    assert [each.job.id for each in await claim(queue, quota)] == [first[-1].job.id]
    assert await claim(queue, quota) == []


async def test_after_a_pause_one_request_goes_first_however_many_were_left(
    queue: RedisQueue, quotas: RedisQuotas
) -> None:
    quota = Quota(name=NAME, requests=6)
    await enqueue(queue, 6)
    await claim(queue, quota, limit=1)

    await quotas.pause(quota, 0.1, refused=1)
    await asyncio.sleep(0.15)

    assert len(await claim(queue, quota)) == 1


async def test_a_released_job_waits_for_the_quota_like_any_other(queue: RedisQueue, quotas: RedisQuotas) -> None:
    await enqueue(queue, 1)
    (one,) = await claim(queue, Quota(name=NAME))
    await quotas.pause(Quota(name=NAME), 60)

    await queue.release([one], worker="w")

    assert await claim(queue, Quota(name=NAME)) == []
    assert len(await claim(queue)) == 1  # a worker of another kind takes it


async def test_one_that_another_kind_of_worker_has_taken_over_is_counted_nowhere(
    queue: RedisQueue, client: Redis
) -> None:
    await enqueue(queue, 1)
    await claim(queue, Quota(name=NAME, tokens=1000))
    await asyncio.sleep(1.1 * LEASE_MS / 1000)

    (again,) = await claim(queue)
    left = await client.hget(f"penstock:bucket:{NAME}", "tokens")
    await settle(queue, again, tokens=500)

    assert again.quota == ""
    assert left is not None
    assert await client.hget(f"penstock:bucket:{NAME}", "tokens") == left


BREAKING = Breaking(failures=3, within_s=60, first_s=0.2, longest_s=0.4)


async def test_failures_in_several_workers_open_the_breaker_for_all(queue: RedisQueue, client: Redis) -> None:
    await enqueue(queue, 1)
    here, there = RedisQuotas(client), RedisQuotas(client)

    paused = [await each.fail(Quota(name=NAME), BREAKING) for each in (here, there)]
    assert paused == [0, 0]
    assert await here.fail(Quota(name=NAME), BREAKING) == 0.2

    assert await claim(queue, Quota(name=NAME)) == []


async def test_one_job_of_all_workers_is_the_trial_and_its_answer_closes_the_breaker(
    queue: RedisQueue, quotas: RedisQuotas, client: Redis
) -> None:
    quota = Quota(name=NAME)
    await enqueue(queue, 5)
    for _ in range(3):
        await quotas.fail(quota, BREAKING)
    await asyncio.sleep(0.25)

    trial = await claim(RedisQueue(client, lease_ms=60_000), quota)
    beside = await claim(queue, quota)
    await quotas.clear(quota)

    assert (len(trial), beside) == (1, [])
    assert len(await claim(queue, quota)) == 4


async def test_a_failed_trial_opens_it_for_twice_as_long(queue: RedisQueue, quotas: RedisQuotas) -> None:
    quota = Quota(name=NAME)
    for _ in range(3):
        await quotas.fail(quota, BREAKING)

    for longer in (0.4, 0.4):  # which is the longest
        await asyncio.sleep(0.45)
        assert await quotas.fail(quota, BREAKING) == longer


async def test_a_failure_while_it_is_open_does_not_prolong_it(quotas: RedisQuotas) -> None:
    breaking = replace(BREAKING, first_s=60, longest_s=120)
    for _ in range(3):
        await quotas.fail(Quota(name=NAME), breaking)

    assert 0 < await quotas.fail(Quota(name=NAME), breaking) <= 60


async def test_a_trial_that_is_put_back_or_whose_worker_died_is_followed_by_another(
    queue: RedisQueue, quotas: RedisQuotas
) -> None:
    quota = Quota(name=NAME)
    await enqueue(queue, 3)
    for _ in range(3):
        await quotas.fail(quota, BREAKING)
    await asyncio.sleep(0.25)

    first = await claim(queue, quota)
    await queue.release(first, worker="w")
    second = await claim(queue, quota)
    await asyncio.sleep(1.1 * LEASE_MS / 1000)
    third = await claim(queue, quota)

    assert [len(each) for each in (first, second, third)] == [1, 1, 1]


async def test_what_redis_keeps_of_failures_goes_by_itself(quotas: RedisQuotas, client: Redis) -> None:
    await quotas.fail(Quota(name=NAME), BREAKING)

    assert 0 < await client.pttl(f"penstock:breaker:{NAME}") <= 600_000
