"""Random work by our queue and by RQ's own classes on the same Redis: nothing is stuck, nothing runs twice."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from rq import Queue
from rq.job import Job as RqJob
from rq.registry import FailedJobRegistry, StartedJobRegistry

from cli.embedded_redis import EmbeddedRedis
from shared.domain.events import Completed, Failed, Outcome
from shared.queue.protocols import SETTLED, Bounds, Delivery, RateLimits
from shared.queue.redis_queue import RedisQueue
from shared.redis import keys
from tests.factories import done, make_job, write

OPERATIONS = 600
WORKERS = 3
TENANT, MONTH = "key-of-all", "2026-11"
REPLAYED = "again-"  # these jobs belong to no key


class Fuzz:
    """Lets `queue` and RQ act on the same model. `ran` counts how often each job was settled, `allowed` how often it
    may be. `took` counts the tokens charged to the key."""

    def __init__(self, seed: int, client: Redis, sync: SyncRedis) -> None:
        self.rng = random.Random(seed)
        self.queue = RedisQueue(client, lease_ms=1)
        self.sync = sync
        self.held: dict[str, dict[str, Delivery]] = {f"w{n}": {} for n in range(WORKERS)}
        self.ran: Counter[str] = Counter()
        self.allowed: Counter[str] = Counter()
        self.took = 0

    async def enqueue(self) -> None:
        job = make_job(queue_deadline_ms=86_400_000, tenant=TENANT)  # long enough on the slowest machine
        await self.queue.enqueue(job, bounds=Bounds(jobs_max=10_000), rate_limits=RateLimits(month=MONTH))
        self.allowed[job.id] += 1

    async def claim(self) -> None:
        for name, held in self.held.items():  # live workers renew their leases; only other jobs may be taken over
            await self.queue.renew(list(held.values()), worker=name)
        name = self.rng.choice(list(self.held))
        for delivery in await self.queue.claim("m", worker=name, limit=self.rng.randint(1, 5)):
            for held in self.held.values():
                held.pop(delivery.job.id, None)
            self.held[name][delivery.job.id] = delivery

    async def settle(self) -> None:
        name = self.rng.choice(list(self.held))
        if not self.held[name]:
            return
        _, delivery = self.held[name].popitem()
        outcome = None if self.rng.random() < 0.6 else Failed(code="engine_error", message="no")
        await self._settle(delivery, name, outcome)

    async def release(self) -> None:
        name = self.rng.choice(list(self.held))
        if self.held[name]:
            await self.queue.release([self.held[name].popitem()[1]], worker=name)

    async def crash(self) -> None:
        self.held[self.rng.choice(list(self.held))].clear()

    async def rq_requeue(self) -> None:
        registry = FailedJobRegistry("m", connection=self.sync)
        failed = registry.get_job_ids()
        for job_id in self.rng.sample(failed, min(len(failed), 4)):
            registry.requeue(job_id, at_front=self.rng.random() < 0.2)
            self.allowed[job_id] += 1

    async def replay(self) -> None:
        for job_id in FailedJobRegistry("m", connection=self.sync).get_job_ids()[:2]:
            _, replayed_as = await self.queue.replay(job_id, as_id=f"{REPLAYED}{len(self.allowed)}")
            self.allowed[replayed_as] += 1

    async def cancel(self) -> None:
        waiting: Any = self.sync.lrange(keys.queue("m"), 0, -1)
        if waiting:
            await self.queue.cancel(self.rng.choice(waiting).decode())

    async def rq_cancel(self) -> None:
        waiting: Any = self.sync.lrange(keys.queue("m"), 0, -1)
        if waiting:
            RqJob.fetch(self.rng.choice(waiting).decode(), connection=self.sync).cancel()

    async def rq_abandon(self) -> None:
        """Clean up as `rq info` does for started jobs whose heartbeat seems ten minutes old."""
        running: Any = self.sync.zrange(keys.registry("started", "m"), 0, -1)
        for member in running:
            if self.rng.random() < 0.5:
                self.sync.zadd(keys.registry("started", "m"), {member: 1})
        StartedJobRegistry("m", connection=self.sync).cleanup()

    async def rq_empty(self) -> None:
        Queue("m", connection=self.sync).empty()

    async def drain(self) -> None:
        """Let one correct worker finish all jobs that can be finished."""
        for held in self.held.values():
            held.clear()
        idle = 0
        while idle < 3:
            await asyncio.sleep(0.003)  # leases of 1 ms run out by the server's clock
            claimed = await self.queue.claim("m", worker="last", limit=50)
            idle = 0 if claimed else idle + 1
            for delivery in claimed:
                await self._settle(delivery, "last")

    async def _settle(self, delivery: Delivery, worker: str, outcome: Outcome | None = None) -> None:
        end = done(len(delivery.log), outcome)
        if await self.queue.settle(write(delivery, end), worker=worker) == SETTLED:
            self.ran[delivery.job.id] += 1
            if isinstance(end.outcome, Completed) and not delivery.job.id.startswith(REPLAYED):
                self.took += end.outcome.usage.prompt_tokens + end.outcome.usage.completion_tokens


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_our_queue_and_rqs_tools_never_lose_or_double_a_job(
    seed: int, client: Redis, redis_server: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    with SyncRedis.from_url(redis_server.url) as sync:
        fuzz = Fuzz(seed, client, sync)
        weights = [
            (fuzz.enqueue, 35),
            (fuzz.claim, 25),
            (fuzz.settle, 20),
            (fuzz.release, 3),
            (fuzz.crash, 2),
            (fuzz.rq_requeue, 6),
            (fuzz.replay, 2),
            (fuzz.cancel, 2),
            (fuzz.rq_cancel, 2),
            (fuzz.rq_abandon, 4),
            (fuzz.rq_empty, 0.1),
        ]
        operations, shares = zip(*weights, strict=True)
        for operation in fuzz.rng.choices(operations, shares, k=OPERATIONS):
            await operation()
        await fuzz.drain()

        stuck = [job_id for job_id in fuzz.allowed if sync.hget(keys.job(job_id), "status") in (b"queued", b"started")]
        assert stuck == []
        assert int(await client.get(keys.usage(TENANT, MONTH)) or 0) >= fuzz.took > 0
        assert [job_id for job_id, times in fuzz.ran.items() if times > fuzz.allowed[job_id]] == []
        assert sync.llen(keys.queue("m")) == 0
        assert sync.xlen(keys.stream("m")) == 0
        assert sync.zcard(keys.registry("started", "m")) == 0
        left: Any = [*sync.scan_iter("penstock:l[ei]*"), *sync.scan_iter("penstock:lane:*")]
        assert left == []
