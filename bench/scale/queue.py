"""Measures the queue's calls inside Redis while many jobs are queued, and the memory of a job and of a token.

Times are Redis's own (INFO commandstats), so that no client is measured. All depths are in one Redis, each as a model
of its own, and take turns.
"""

import asyncio
import statistics
from dataclasses import dataclass, replace
from typing import Any

from redis.asyncio import Redis

from shared.domain.events import Completed, Delta, Finished, Started, Usage
from shared.domain.job import Job, Kind, Priority, Sampling
from shared.process.tasks import end
from shared.queue import lua
from shared.queue.protocols import Bounds, Delivery, Write
from shared.queue.redis_queue import RedisQueue, flat
from shared.redis.client import CONNECTIONS_MAX, connect

BOUNDS = Bounds(jobs_max=10**9, tokens_max=10**15)
TENANTS = 50
SAMPLES = 500
FILL = 500  # jobs in one pipeline
TEXT = "tell me of a house by the sea where whales sing at night " * 8  # 456 characters, about 110 tokens
VERBS = ("enqueue", "claim", "cancel", "urgent")


@dataclass(frozen=True, slots=True)
class Cost:
    """The microseconds that Redis spends on one call."""

    waiting: int
    verb: str
    micros: float


def job(number: int, model: str, priority: Priority = Priority.STANDARD, tenant: str = "") -> Job:
    return Job(
        id=f"chatcmpl-{number:032x}",
        model=model,
        kind=Kind.CHAT,
        request={"messages": [{"role": "user", "content": TEXT}]},
        sampling=Sampling(seed=number, max_tokens=256),
        created_ms=1_700_000_000_000,
        queue_deadline_ms=86_400_000,
        run_deadline_ms=3_600_000,
        priority=priority,
        tenant=tenant or f"key-{number % TENANTS:012x}",
    )


class MeasuredQueue:
    """One model's queue; its jobs are numbered across all models."""

    numbers = iter(range(10**9))

    def __init__(self, client: Redis, model: str) -> None:
        self.client = client
        self.model = model
        self.queue = RedisQueue(client)

    async def fill(self, count: int, *, priority: Priority = Priority.STANDARD, tenant: str = "") -> None:
        while count > 0:
            async with self.client.pipeline(transaction=False) as pipe:
                for _ in range(min(FILL, count)):
                    await self._call(pipe, job(next(self.numbers), self.model, priority, tenant))
                await pipe.execute()
            count -= FILL

    async def _call(self, pipe: Any, each: Job) -> None:
        bounds = {"jobs_max": BOUNDS.jobs_max, "tokens_max": BOUNDS.tokens_max, "bytes_max": BOUNDS.bytes_max}
        job = {"model": each.model, "id": each.id, "fields": flat(self.queue.fields(each)), "records": []}
        arguments = lua.verbs()["enqueue"].arguments(bounds | job)
        await self.queue.scripts["enqueue"](args=arguments, client=pipe)

    async def enqueue(self) -> None:
        await self.queue.enqueue(job(next(self.numbers), self.model), bounds=BOUNDS)

    async def claim(self) -> Delivery:
        (delivery,) = await self.queue.claim(self.model, worker="w", limit=1)
        return delivery

    async def end(self, delivery: Delivery) -> None:
        ended = Finished(seq=0, outcome=Completed(usage=Usage(prompt_tokens=110, completion_tokens=256)))
        await self.queue.settle(Write(delivery=delivery, events=(ended,)), worker="w")

    async def cancel_newest(self) -> None:
        each = job(next(self.numbers), self.model)
        await self.queue.enqueue(each, bounds=BOUNDS)
        await self.queue.cancel(each.id)

    async def urgent(self) -> None:
        """Enqueue a job of another class and tenant behind all others, and claim jobs until its turn comes: at once, or
        second."""
        late = job(next(self.numbers), self.model, Priority.INTERACTIVE, "key-late")
        await self.queue.enqueue(late, bounds=BOUNDS)
        served = ""
        while served != late.id:
            delivery = await self.claim()
            await self.end(delivery)
            served = delivery.job.id


async def _micros(client: Redis) -> float:
    """Read the mean microseconds of a script's call since the last reset."""
    stats: Any = await client.info("commandstats")
    return float(stats["cmdstat_evalsha"]["usec_per_call"])


async def measure(measured: MeasuredQueue, verb: str) -> float:
    """Measure the mean microseconds of a call over SAMPLES; for `cancel` and `urgent`, over all calls they make."""
    held: list[Delivery] = []
    await measured.client.config_resetstat()
    for _ in range(SAMPLES):
        match verb:
            case "enqueue":
                await measured.enqueue()
            case "claim":
                held.append(await measured.claim())
            case "cancel":
                await measured.cancel_newest()
            case "urgent":
                await measured.urgent()
    spent = await _micros(measured.client)
    for delivery in held:
        await measured.end(delivery)
    return spent


async def costs(client: Redis, depths: list[int], rounds: int) -> list[Cost]:
    queues = {depth: MeasuredQueue(client, f"m{depth}") for depth in depths}
    for depth, measured in queues.items():
        await measured.fill(depth)
        print(f"{depth} jobs wait", flush=True)
    found = []
    for number in range(rounds):
        for depth, measured in (
            list(queues.items())[number % len(queues) :] + list(queues.items())[: number % len(queues)]
        ):
            for verb in VERBS:
                found.append(Cost(depth, verb, await measure(measured, verb)))
    return found


def table(found: list[Cost]) -> str:
    depths = sorted({each.waiting for each in found})
    lines = [f"| µs in Redis | {' | '.join(f'{depth:,} waiting' for depth in depths)} | the last / the first |"]
    lines.append("|---" * (len(depths) + 2) + "|")
    for verb in VERBS:
        cells = [[each.micros for each in found if (each.waiting, each.verb) == (depth, verb)] for depth in depths]
        middle = [statistics.median(cell) for cell in cells]
        shown = [f"{m:.0f} [{min(cell):.0f}-{max(cell):.0f}]" for m, cell in zip(middle, cells, strict=True)]
        lines.append(f"| {verb} | {' | '.join(shown)} | {middle[-1] / middle[0]:.2f} |")
    return "\n".join(lines)


async def woken(url: str, idle: int, jobs: int = 200) -> float:
    """Measure the microseconds of Redis for a job from enqueue to settle while that many idle workers wait for one."""
    client = connect(url)
    await client.flushall()
    measured = MeasuredQueue(client, "herd")
    clients = [connect(url) for _ in range(-(-idle // CONNECTIONS_MAX))]
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def worker(number: int) -> None:
        queue = RedisQueue(clients[number % len(clients)])
        while True:
            for delivery in await queue.claim(measured.model, worker=f"w{number}", limit=1, wait_ms=60_000):
                await measured.end(delivery)
                ended.put_nowait(delivery.job.id)

    async def cpu_s() -> float:
        info: Any = await client.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    waiting = [asyncio.create_task(worker(number)) for number in range(idle)]
    while int((await client.info("clients"))["blocked_clients"]) < idle:  # wait until all of them are connected
        await asyncio.wait(waiting, timeout=0.05)
    before = await cpu_s()
    for _ in range(jobs):
        await measured.enqueue()
        await ended.get()
    spent = await cpu_s() - before
    await end(waiting)
    for each in [client, *clients]:
        await each.aclose()
    return spent / jobs * 1e6


async def memory(client: Redis, jobs: int = 20_000, tokens: int = 200) -> dict[str, float]:
    """Measure the bytes of a queued job with a prompt of 456 characters, of a started one, and of a logged token."""

    async def used() -> int:
        info: Any = await client.info("memory")
        return int(info["used_memory"])

    measured, empty = MeasuredQueue(client, "memory"), await used()
    await measured.fill(jobs)
    waiting = await used()
    held = [delivery for _ in range(20) for delivery in await measured.queue.claim("memory", worker="w", limit=50)]
    running = await used()
    for first in range(0, tokens, 10):
        events = [Delta(seq=first + at + 1, choice=0, text=" word", token_ids=(12345,)) for at in range(10)]
        opening = [Started(seq=0, prompt_tokens=110)] if first == 0 else []
        await measured.queue.append([Write(delivery=each, events=(*opening, *events)) for each in held])
        held = [replace(each) for each in held]
    logged = await used()
    return {
        "waiting job": (waiting - empty) / jobs,
        "running job, more": (running - waiting) / len(held),
        "token": (logged - running) / len(held) / tokens,
    }
