"""A key's limits as Redis counts them: charged when a job is accepted, and corrected when it ends."""

import hmac
from dataclasses import replace
from typing import Any

import pytest
import redis
from redis.asyncio import Redis
from rq.registry import FailedJobRegistry

from cli.embedded_redis import EmbeddedRedis
from shared.catalog.api_keys import ApiKeyStore
from shared.domain.errors import InvalidRequest, LimitReached, NotFound, QueueFull
from shared.domain.events import Completed, Event, Failed, Finished, Started, Usage
from shared.domain.job import Job, Kind, Sampling
from shared.queue.protocols import Bounds, RateLimits
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from tests.factories import delta, done, make_job, started, write

MONTH = "2026-11"
BOUNDS = Bounds(jobs_max=100)
TENANT = "key-1"


@pytest.fixture
def queue(client: Redis) -> RedisQueue:
    return RedisQueue(client)


def job(**more: Any) -> Job:
    return make_job(tenant=TENANT, max_tokens=50, **more)


async def submit(queue: RedisQueue, job: Job, bounds: Bounds = BOUNDS, **limits: int) -> Any:
    return await queue.enqueue(job, bounds=bounds, rate_limits=RateLimits(month=MONTH, **limits))


async def used(client: Redis) -> int:
    return int(await client.get(keys.usage(TENANT, MONTH)) or 0)


async def run(queue: RedisQueue, *, tokens: int) -> None:
    """Claim the next job and complete it."""
    (delivery,) = await queue.claim("m", worker="w", limit=1)
    usage = Usage(prompt_tokens=1, completion_tokens=tokens - 1)
    events = (Started(seq=0, prompt_tokens=1), Finished(seq=1, outcome=Completed(usage=usage)))
    await queue.settle(write(delivery, *events), worker="w")


async def test_requests_of_a_minute_run_out(queue: RedisQueue) -> None:
    first = await submit(queue, job(), requests=2)
    await submit(queue, job(), requests=2)

    with pytest.raises(LimitReached) as refused:
        await submit(queue, job(), requests=2)

    assert first.limits_left.requests == 1
    assert first.limits_left.requests_reset_s == pytest.approx(30, abs=1)
    assert refused.value.limit == "limit_requests"
    assert 28 <= refused.value.retry_after_s <= 30


async def test_a_refused_request_takes_one_of_the_minute(queue: RedisQueue) -> None:
    limits = RateLimits(month=MONTH, requests=2)

    assert await queue.charge(TENANT, limits) == 0
    assert 28 <= await queue.charge(TENANT, limits) <= 30
    assert 28 <= await queue.charge(TENANT, limits) <= 30  # never below zero: no key is locked out for long
    with pytest.raises(LimitReached):
        await submit(queue, job(), requests=2)


async def test_a_job_without_an_allowance_is_counted_nowhere(queue: RedisQueue, client: Redis) -> None:
    accepted = await queue.enqueue(job(), bounds=BOUNDS)
    await run(queue, tokens=10)

    assert accepted.limits_left is None
    assert not [key async for key in client.scan_iter("penstock:[buh][uso][cal]*:key-*")]


async def test_tokens_are_corrected_by_what_the_job_took(queue: RedisQueue, client: Redis) -> None:
    accepted = await submit(queue, job(), tokens=1000)
    guessed = 1000 - accepted.limits_left.tokens
    assert guessed > 50

    await run(queue, tokens=20)

    assert await used(client) == 20
    later = await submit(queue, job(), tokens=1000)
    assert later.limits_left.tokens >= 1000 - 20 - guessed


async def test_a_job_larger_than_the_bucket_gets_a_full_one_and_empties_it(queue: RedisQueue) -> None:
    accepted = await submit(queue, make_job(tenant=TENANT, max_tokens=5000), tokens=100)

    assert accepted.limits_left.tokens == 0
    with pytest.raises(LimitReached, match="100 tokens a minute"):
        await submit(queue, job(), tokens=100)


async def test_jobs_at_a_time_are_leases_that_end_with_the_job(queue: RedisQueue, client: Redis) -> None:
    await submit(queue, job(), jobs=1)
    with pytest.raises(LimitReached) as refused:
        await submit(queue, job(), jobs=1)
    assert refused.value.limit == "limit_jobs"
    assert 0 < await client.pttl(f"penstock:holding:{TENANT}") <= 60_000

    await run(queue, tokens=5)

    await submit(queue, job(), jobs=1)


async def test_a_lost_job_holds_its_place_no_longer_than_its_deadlines(queue: RedisQueue, client: Redis) -> None:
    lost = job(queue_deadline_ms=1, run_deadline_ms=1)
    await submit(queue, lost, jobs=1)
    await client.delete(keys.job(lost.id))
    await client.zadd(f"penstock:holding:{TENANT}", {lost.id: 1})

    await submit(queue, job(), jobs=1)


async def test_what_is_cancelled_while_it_waits_costs_nothing(queue: RedisQueue, client: Redis) -> None:
    waiting = job()
    await submit(queue, waiting, tokens=1000, jobs=1)

    await queue.cancel(waiting.id)

    assert await used(client) == 0
    assert (await submit(queue, job(), tokens=1000, jobs=1)).limits_left.tokens > 800


async def test_a_refusal_for_another_reason_takes_nothing(queue: RedisQueue, client: Redis) -> None:
    await queue.enqueue(make_job(tenant="other"), bounds=BOUNDS)
    for _ in range(3):
        with pytest.raises(QueueFull):
            await submit(queue, job(), Bounds(jobs_max=1, tokens_max=1), requests=1, tokens=1000, jobs=1)

    assert await used(client) == 0
    assert (await submit(queue, job(), requests=1, tokens=1000, jobs=1)).limits_left.requests == 0


async def test_a_months_tokens_are_a_budget(queue: RedisQueue, client: Redis) -> None:
    await submit(queue, job(), month_tokens=100)
    await run(queue, tokens=60)

    with pytest.raises(LimitReached) as refused:
        await submit(queue, job(), month_tokens=100)

    assert refused.value.limit == "quota"
    assert await used(client) == 60


async def fail(queue: RedisQueue, *, tokens: int) -> None:
    """Claim the next job and fail it after about this many tokens."""
    (delivery,) = await queue.claim("m", worker="w", limit=1)
    prompt = delivery.job.prompt_tokens_estimate
    events: list[Event] = [started(), *[delta(seq) for seq in range(1, tokens - prompt)]]
    await queue.append([write(delivery, *events)])
    await queue.settle(write(delivery, done(len(events), Failed(code="engine_error", message="x"))), worker="w")


async def left_in_bucket(client: Redis) -> float:
    return float(await client.hget(f"penstock:bucket:{TENANT}", "tokens") or 0)


def rq_requeue(server: EmbeddedRedis) -> None:
    """Requeue failed jobs as `rq requeue --all` does."""
    with redis.Redis.from_url(server.url) as connection:
        registry = FailedJobRegistry("m", connection=connection)
        for job_id in registry.get_job_ids():
            registry.requeue(job_id)


async def test_what_is_requeued_takes_its_tokens_and_its_place_again(
    queue: RedisQueue, client: Redis, redis_server: EmbeddedRedis
) -> None:
    await submit(queue, job(), tokens=100_000, jobs=1)
    await fail(queue, tokens=20)
    before, bucket = await used(client), await left_in_bucket(client)
    assert before == 20

    rq_requeue(redis_server)
    (delivery,) = await queue.claim("m", worker="w", limit=1)
    with pytest.raises(LimitReached, match="jobs at a time"):
        await submit(queue, job(), tokens=100_000, jobs=1)
    usage = Usage(prompt_tokens=1, completion_tokens=29)
    await queue.settle(write(delivery, done(0, Completed(usage=usage))), worker="w")

    assert await used(client) == before + 30
    assert await left_in_bucket(client) == pytest.approx(bucket - 30)
    await submit(queue, job(), tokens=100_000, jobs=1)


@pytest.mark.parametrize("seen", [True, False])
async def test_what_is_requeued_and_cancelled_gives_back_no_more_than_it_took(
    queue: RedisQueue, client: Redis, redis_server: EmbeddedRedis, seen: bool
) -> None:
    again = job()
    await submit(queue, again, tokens=100_000)
    await fail(queue, tokens=20)
    rq_requeue(redis_server)
    if seen:  # a claim without room has seen the job
        await queue.claim("m", worker="w", limit=0)
        assert await used(client) > 20

    await queue.cancel(again.id)

    assert await used(client) == 20


async def test_a_key_is_known_by_its_secret_and_stored_as_a_digest(client: Redis) -> None:
    api_keys = ApiKeyStore(client)
    key, secret = await api_keys.create("team", requests_per_minute=5, models=("a", "b"))

    assert await api_keys.authenticate(secret) == key
    assert await ApiKeyStore(client).authenticate(secret) == key
    assert await api_keys.authenticate(secret + "x") is None
    stored = [str(await client.hgetall(name)) async for name in client.scan_iter("penstock:key:*")]
    assert len(stored) == 1
    assert secret not in stored[0]
    assert secret.removeprefix("sk-penstock-") not in stored[0]


async def test_processes_agree_about_keys_after_redis_was_emptied(client: Redis) -> None:
    one, other = ApiKeyStore(client), ApiKeyStore(client)
    for api_keys in (one, other):
        assert await api_keys.authenticate("both have seen the first salt") is None
    await client.flushall()

    key, secret = await one.create("made after it")

    assert await other.authenticate(secret) == await ApiKeyStore(client).authenticate(secret) == key
    assert await one.authenticate(secret) == key


async def test_a_key_expires_and_is_changed_and_revoked(client: Redis) -> None:
    now = 1000.0
    api_keys = ApiKeyStore(client, clock=lambda: now)
    key, secret = await api_keys.create("team", expires_s=1010)
    assert await api_keys.authenticate(secret)

    now = 1010.0
    assert await api_keys.authenticate(secret) is None

    changed = await api_keys.change(key.id, expires_s=0, weight=2.5)
    assert await api_keys.authenticate(secret) == changed
    await api_keys.revoke(key.id)
    assert await api_keys.authenticate(secret) is None
    assert await api_keys.all() == []
    with pytest.raises(NotFound):
        await api_keys.revoke(key.id)


async def test_a_secret_that_clients_have_already_becomes_a_key_once(client: Redis) -> None:
    api_keys = ApiKeyStore(client)

    _, secret = await api_keys.create("moved here", secret="the-key-of-fastchat")

    assert secret == "the-key-of-fastchat"
    assert await api_keys.authenticate(secret)
    with pytest.raises(InvalidRequest):
        await api_keys.create("again", secret=secret)


async def test_a_wrong_secret_and_an_unknown_one_cost_what_a_right_one_does(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    api_keys = ApiKeyStore(client)
    _, secret = await api_keys.create("a team")
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return same(one, other)

    same = hmac.compare_digest
    monkeypatch.setattr("shared.catalog.api_keys.hmac.compare_digest", compare)

    assert await api_keys.authenticate(secret)
    for wrong in (secret[:-1] + "x", secret[:10], "", "sk-unknown", secret + "x", "\U0001f600"):
        assert await api_keys.authenticate(wrong) is None
    assert compared == [(32, 32)] * 7  # digests have one length and are compared to their ends


async def test_splitting_a_text_costs_its_key_a_part_of_computing_it(queue: RedisQueue, client: Redis) -> None:
    request = {"prompt": "word " * 1280, "special": True, "texts": False}
    asked = replace(job(), kind=Kind.TOKENS, request=request, sampling=Sampling(seed=0))
    await submit(queue, asked, tokens=1000)
    (delivery,) = await queue.claim("m", worker="w", limit=1)
    nothing = Completed(usage=Usage(prompt_tokens=0, completion_tokens=0))

    await queue.settle(write(delivery, Finished(seq=0, outcome=nothing)), worker="w")

    assert await used(client) == 1601 // 16 + 1
