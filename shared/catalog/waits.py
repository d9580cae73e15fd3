"""The wait of a new job for a model is estimated from what waits there and from how fast that was served."""

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared.catalog.demand import RATE_FRESH_S, WORKER_TOKENS_S
from shared.domain.job import Priority
from shared.redis import keys
from shared.redis.client import translated


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The queue ahead of a new job: `jobs` of its class and above, and how long they take, in seconds. The loading of a
    model that is not loaded is not counted."""

    jobs: int
    seconds: float
    workers: int


class WaitReader:
    def __init__(self, client: Redis) -> None:
        self._redis = client

    async def read(self, model: str, priority: Priority) -> Wait:
        """Estimate the wait of a new job of this class. Raises QueueUnavailable."""
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.hgetall(keys.load(model))
                pipe.hgetall(keys.rate(model))
                pipe.get(keys.pace(model))
                pipe.llen(keys.queue(model))
                pipe.smembers(keys.workers_of(model))
                (seconds, micros), load, rate, pace, waiting, workers = await pipe.execute()
            alive = int(await self._redis.exists(*workers)) if workers else 0
        classes = range(priority.rank + 1) if waiting else ()  # `rq empty` leaves the counts to the next claim
        jobs = sum(int(load.get(b"jobs:%d" % rank, 0)) for rank in classes)
        tokens = sum(int(load.get(b"tokens:%d" % rank, 0)) for rank in classes)
        per_s = _tokens_per_s(rate, seconds + micros / 1e6) or float(pace or WORKER_TOKENS_S) * max(alive, 1)
        return Wait(jobs=jobs, seconds=tokens / per_s, workers=alive)


def _tokens_per_s(rate: dict[bytes, Any], now_s: float) -> float | None:
    """Return how many tokens a second all workers served lately while jobs waited; None if that was not measured."""
    if b"gap_ms" not in rate or now_s - int(rate[b"last_ms"]) / 1000 > RATE_FRESH_S:
        return None
    return max(float(rate[b"tokens"]), 1.0) / max(float(rate[b"gap_ms"]), 1.0) * 1000
