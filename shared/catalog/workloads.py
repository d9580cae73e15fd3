"""The workloads of several models are read by one call, for the host that loads and unloads them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from shared.domain.job import Priority
from shared.queue.lua import verbs
from shared.redis.client import translated


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingJobs:
    """`tokens` are those of prompts and an estimate of those of answers; `oldest_s` is how long the oldest waited."""

    jobs: int
    tokens: int
    oldest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The jobs of a model that wait and that run, by class; a class that has none is left out. Jobs that were handed
    back by their worker wait. `expires_s` is how soon one of the waiting jobs is known to end without an answer.
    `workers` of any host serve the model. Nothing is claimed while it is `paused`. `keep_alive_s` is what its last
    request asked for: less than 0 for ever, None if none asked."""

    waiting: Mapping[Priority, WaitingJobs] = field(default_factory=dict)
    running: Mapping[Priority, int] = field(default_factory=dict)
    expires_s: float = math.inf
    workers: int = 0
    paused: bool = False
    keep_alive_s: float | None = None

    @property
    def waiting_jobs(self) -> int:
        return sum(each.jobs for each in self.waiting.values())

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)


def combined(workloads: Sequence[Workload]) -> Workload:
    """Return the workload of several models that the same workers serve."""
    kept = [each.keep_alive_s for each in workloads if each.keep_alive_s is not None]
    return Workload(
        waiting={
            priority: WaitingJobs(
                jobs=sum(each.jobs for each in found),
                tokens=sum(each.tokens for each in found),
                oldest_s=max(each.oldest_s for each in found),
            )
            for priority in Priority
            if (found := [each.waiting[priority] for each in workloads if priority in each.waiting])
        },
        running={
            priority: jobs
            for priority in Priority
            if (jobs := sum(each.running.get(priority, 0) for each in workloads))
        },
        expires_s=min(each.expires_s for each in workloads),
        workers=max(each.workers for each in workloads),
        paused=all(each.paused for each in workloads),
        keep_alive_s=(math.inf if min(kept) < 0 else max(kept)) if kept else None,
    )


class WorkloadReader:
    def __init__(self, client: Redis) -> None:
        self._workload = verbs()["workload"]
        self._script = client.register_script(self._workload.script)

    async def read(self, models: Sequence[str]) -> dict[str, Workload]:
        """Return the workload of each model. Raises QueueUnavailable."""
        if not models:
            return {}
        with translated():
            rows: Any = await self._script(args=self._workload.arguments({"models": models}))
        return {row[0].decode(): _workload(row[1:]) for row in rows}


def _workload(row: Sequence[Any]) -> Workload:
    jobs, tokens, oldest, running, left_ms, workers, paused, kept = row
    by_class = zip(Priority, jobs, tokens, oldest, strict=True)
    return Workload(
        waiting={
            each: WaitingJobs(jobs=count, tokens=cost, oldest_s=waited_ms / 1000)
            for each, count, cost, waited_ms in by_class
            if count > 0
        },
        running={each: count for each, count in zip(Priority, running, strict=True) if count},
        expires_s=math.inf if left_ms < 0 else left_ms / 1000,
        workers=workers,
        paused=bool(paused),
        keep_alive_s=float(kept) if kept else None,
    )
