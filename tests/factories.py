"""Makes jobs and writes for tests, with defaults for every field that a test does not name."""

import itertools
import time
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis

from api.serving.hosted_models import HostedModels
from api.serving.model_router import ModelRouter
from shared.catalog.hosting import Hosting
from shared.catalog.job_records import JobRecords
from shared.catalog.model_registry import ModelRegistry
from shared.catalog.routes import RouteTable
from shared.catalog.waits import WaitReader
from shared.domain.events import Completed, Delta, Event, Finished, Outcome, Started, Usage
from shared.domain.job import Job, Kind, Priority, Sampling
from shared.queue.protocols import Delivery, Write

_ids = itertools.count()


def make_job(
    model: str = "m",
    *,
    prompt: str = "hello",
    queue_deadline_ms: int = 60_000,
    run_deadline_ms: int = 0,
    priority: Priority = Priority.STANDARD,
    tenant: str = "",
    weight: float = 1.0,
    grace_ms: int | None = 0,
    completion: dict[str, Any] | None = None,
    **sampling: Any,
) -> Job:
    """Make a job: a text completion with the request `completion`, or a chat without it."""
    return Job(
        id=f"chatcmpl-test{next(_ids)}",
        model=model,
        kind=Kind.COMPLETION if completion else Kind.CHAT,
        request=completion or {"messages": [{"role": "user", "content": prompt}]},
        sampling=Sampling(**{"seed": 7, **sampling}),
        created_ms=1_700_000_000_000,
        queue_deadline_ms=queue_deadline_ms,
        run_deadline_ms=run_deadline_ms,
        priority=priority,
        tenant=tenant,
        weight=weight,
        grace_ms=grace_ms,
    )


def started(prompt_tokens: int = 3) -> Started:
    return Started(seq=0, prompt_tokens=prompt_tokens)


def delta(seq: int, text: str = "x") -> Delta:
    return Delta(seq=seq, choice=0, text=text, token_ids=(seq,))


def done(seq: int, outcome: Outcome | None = None) -> Finished:
    usage = Usage(prompt_tokens=3, completion_tokens=max(seq - 1, 0))
    return Finished(seq=seq, outcome=outcome or Completed(usage=usage))


def write(delivery: Delivery, *events: Event) -> Write:
    return Write(delivery=delivery, events=events)


def model_router(client: Redis, *, clock: Callable[[], float] = time.time) -> ModelRouter:
    """Make a router of the names in one Redis."""
    routes, waits, hosted = RouteTable(client), WaitReader(client), HostedModels(Hosting(client), clock)
    return ModelRouter(ModelRegistry(client), routes, waits, JobRecords(client), hosted, clock)
