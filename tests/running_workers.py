"""Starts workers on a queue in memory, gives them jobs, and awaits them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from shared.domain.events import Delta, Event, Finished, Outcome
from shared.domain.job import Job, ModelInfo
from shared.observability.metrics import WorkerMetrics
from shared.queue.memory_queue import MemoryQueue
from shared.queue.protocols import Bounds
from shared.settings import load_settings
from workers.engines.scripted import ScriptedEngine
from workers.loading.loaded import stepped
from workers.loop.held_jobs import HeldJob
from workers.loop.worker import Worker
from workers.process.single_thread import SingleThread
from workers.runners.base import Runner
from workers.runners.engine_loop import EngineLoop
from workers.runners.outbox import Outbox
from workers.scheduling.engine_limits import EngineLimits

INFO = ModelInfo(name="m", engine="scripted", context_length=1000, created_s=0)


class Clock:
    now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms


async def _announce() -> None:
    pass


async def _tell_nobody(_: bool) -> None:
    pass


def make_worker(
    queue: MemoryQueue,
    name: str = "w",
    *,
    step_ms: float = 0,
    sequences_max: int = 4,
    blocks: int = 0,
    engine: type[ScriptedEngine] = ScriptedEngine,
    loop: type[EngineLoop] = EngineLoop,
    tell_rest: Callable[[bool], Awaitable[None]] = _tell_nobody,
    metrics: WorkerMetrics | None = None,
    announce: Callable[[], Awaitable[None]] = _announce,
    **settings: Any,
) -> Worker:
    limits = EngineLimits(
        sequences_max=sequences_max, batch_tokens_max=64, context_length=1000, vocabulary=50_000, blocks=blocks
    )
    given = {"heartbeat_ms": 100, "idle_wait_ms": 10, "drain_s": 5} | settings
    thread, scripted = SingleThread("engine"), engine(limits=limits, step_ms=step_ms, tokens=20)

    def make_runner(outbox: Outbox, metrics: WorkerMetrics, more_places: Callable[[], None]) -> Runner:
        return loop("m", scripted, thread, outbox=outbox, metrics=metrics, more_places=more_places)

    return Worker(
        name,
        [replace(stepped([INFO], scripted, thread), make_runner=make_runner)],
        queue=queue,
        channel=queue,
        announce=announce,
        settings=load_settings(**given),
        metrics=metrics or WorkerMetrics(),
        tell_rest=tell_rest,
    )


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[Worker]:
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(running, 10)


def held_job(worker: Worker, job: Job) -> HeldJob:
    held = worker._held.by_id(job.id)
    assert held
    return held


def tell_worker(queue: MemoryQueue, message: str) -> None:
    """Send the worker "w" what its host would send it."""
    queue._drops.setdefault("w", asyncio.Queue()).put_nowait(message)


async def submit(queue: MemoryQueue, job: Job) -> Job:
    """Enqueue a job so that its events can be awaited."""
    await queue.enqueue(job, subscriber=job.id, bounds=Bounds(jobs_max=100))
    return job


async def heard(queue: MemoryQueue, job: Job, *, seq: int | None = None) -> None:
    """Wait until the job has written its event `seq`, or its last one."""
    async for batch in queue.listen(job.id):
        last = batch[-1][1][-1]
        if isinstance(last, Finished) or (seq is not None and last.seq >= seq):
            return


async def eventually(truth: Callable[[], Any]) -> None:
    """Poll for a condition that gives no event to wait for."""
    async with asyncio.timeout(10):
        while not truth():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def log_of(queue: MemoryQueue, job: Job) -> list[Event]:
    (page,) = await queue.read([(job.id, 0)])
    return list(page.events)


async def outcome_of(queue: MemoryQueue, job: Job) -> Outcome:
    await heard(queue, job)
    last = (await log_of(queue, job))[-1]
    assert isinstance(last, Finished)
    return last.outcome


def text_of(log: list[Event]) -> str:
    return "".join(event.text for event in log if isinstance(event, Delta))
