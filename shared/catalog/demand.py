"""The number of workers that a model wants, for autoscalers. All figures are in Redis, so they are known while no
worker runs. Nothing here reads a consumer group's `lag`, which Redis itself loses track of."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared.domain.job import Priority
from shared.queue.lua import verbs
from shared.redis import keys
from shared.redis.client import translated

RATE_FRESH_S = 60
PACE_TTL_S = 7 * 86400
WORKER_TOKENS_S = 500.0  # assumed until a worker's throughput is measured
WORKER_JOBS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """A model's load. `waiting_tokens` counts prompts and an estimate of their answers; `oldest_s` is how long the
    oldest waiting job has waited. `worker_tokens_s` is one worker's throughput while jobs wait; `worker_jobs` is how
    many it runs at a time."""

    model: str
    waiting_jobs: dict[Priority, int]
    waiting_tokens: int
    running_jobs: int
    oldest_s: float
    workers: int
    worker_tokens_s: float
    worker_jobs: int

    @property
    def waiting(self) -> int:
        return sum(self.waiting_jobs.values())

    def workers_wanted(self, target_wait_s: float) -> int:
        """Return how many workers finish the waiting tokens in `target_wait_s`: at least enough for the running jobs,
        and one more than there are if the oldest job has waited longer all the same. 0 if there is nothing to do."""
        for_running = math.ceil(self.running_jobs / self.worker_jobs)
        for_waiting = math.ceil(self.waiting_tokens / (self.worker_tokens_s * target_wait_s)) if self.waiting else 0
        late = self.workers + 1 if self.waiting and self.oldest_s > target_wait_s else 0
        return max(for_running, for_waiting, late, min(self.waiting, 1))


def together(demands: Sequence[Demand]) -> Demand:
    """Combine the demands of several models that the same workers serve."""
    return replace(
        demands[0],
        waiting_jobs={each: sum(demand.waiting_jobs[each] for demand in demands) for each in Priority},
        waiting_tokens=sum(demand.waiting_tokens for demand in demands),
        running_jobs=sum(demand.running_jobs for demand in demands),
        oldest_s=max(demand.oldest_s for demand in demands),
        workers=max(demand.workers for demand in demands),
    )


class DemandReader:
    def __init__(self, client: Redis) -> None:
        self._redis = client
        self._recount = verbs()["recount"]
        self._script = client.register_script(self._recount.script)

    async def all(self) -> list[Demand]:
        """Return the demand of every known model. Raises QueueUnavailable."""
        with translated():
            names: Any = await self._redis.smembers(keys.MODELS)
        return [await self.read(name.decode()) for name in sorted(names)]

    async def read(self, model: str) -> Demand:
        """Return the model's demand, and remember a worker's throughput for when none runs. Raises QueueUnavailable."""
        with translated():
            with suppress(ResponseError):  # a Redis without room for a stream entry can be read all the same
                await self._script(args=self._recount.arguments({"model": model}))
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.hgetall(keys.load(model))
                pipe.hgetall(keys.rate(model))
                pipe.zcard(keys.leases(model))
                pipe.lindex(keys.queue(model), 0)
                pipe.smembers(keys.workers_of(model))
                pipe.hget(keys.model(model), "slots")
                pipe.get(keys.pace(model))
                (seconds, micros), load, rate, running, oldest, workers, slots, known = await pipe.execute()
            load = load if oldest else {}  # `rq empty` leaves the counts to the next claim
            now_ms = seconds * 1000 + micros // 1000
            alive = int(await self._redis.exists(*workers)) if workers else 0
            entry: Any = await self._redis.hget(keys.job(oldest.decode()), "sid") if oldest else None
            if measured := _measured(rate, alive, now_ms):
                await self._redis.set(keys.pace(model), measured, ex=PACE_TTL_S)
        return Demand(
            model=model,
            waiting_jobs={each: int(load.get(f"jobs:{each.rank}".encode(), 0)) for each in Priority},
            waiting_tokens=sum(int(load.get(f"tokens:{each.rank}".encode(), 0)) for each in Priority),
            running_jobs=running,
            oldest_s=max(0, now_ms - int(entry.partition(b"-")[0])) / 1000 if entry else 0.0,
            workers=alive,
            worker_tokens_s=measured or float(known or WORKER_TOKENS_S),
            worker_jobs=int(slots or WORKER_JOBS),
        )


def _measured(rate: dict[bytes, bytes], workers: int, now_ms: int) -> float | None:
    """Return one worker's tokens a second; None if that was not measured recently."""
    if not workers or b"gap_ms" not in rate or now_ms - int(rate[b"last_ms"]) > RATE_FRESH_S * 1000:
        return None
    return float(rate[b"tokens"]) / max(float(rate[b"gap_ms"]), 1.0) * 1000 / workers


def demand_object(demand: Demand, target_wait_s: float) -> dict[str, Any]:
    """Write the demand as JSON, for KEDA's metrics-api and for people."""
    return {
        "object": "demand",
        "model": demand.model,
        "waiting_jobs": {priority.value: jobs for priority, jobs in demand.waiting_jobs.items()},
        "waiting_tokens": demand.waiting_tokens,
        "running_jobs": demand.running_jobs,
        "oldest_waiting_s": round(demand.oldest_s, 3),
        "workers": demand.workers,
        "worker_tokens_per_s": round(demand.worker_tokens_s, 1),
        "target_wait_s": target_wait_s,
        "workers_wanted": demand.workers_wanted(target_wait_s),
    }
