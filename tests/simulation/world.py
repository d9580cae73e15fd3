"""Real workers and relays over the queue in memory, on a network that loses, delays and repeats, in processes that die,
freeze and wake. One seed is one history."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

from api.relay import Relay
from shared.errors import QueueUnavailable
from shared.events import Delta, Event, Finished
from shared.job import Job, ModelInfo
from shared.memory import MemoryQueue
from shared.queue import Bounds, Page
from shared.settings import load_settings
from shared.telemetry import ApiMetrics, WorkerMetrics
from tests.factories import make_job
from tests.simulation.loop import Process, SimulatedThread
from workers.engine.scripted import ScriptedEngine
from workers.limits import Limits
from workers.models import Loaded
from workers.worker import Worker

INFO = ModelInfo(name="m", engine="scripted", context_length=1000, created_s=0)
VERBS = ("enqueue", "attach", "claim", "renew", "append", "settle", "release", "cancel", "leave", "read")
BOUNDS = Bounds(jobs_max=100)
SETTINGS = load_settings(heartbeat_ms=300, lease_ms=1000, idle_wait_ms=50, drain_s=0.2, outbox_steps_max=100_000)


class Line:
    """One process's way to the queue. A call may fail before or after it was done, and takes time both ways; a message
    may be lost. A frozen or dead process neither sends nor hears."""

    def __init__(self, world: "World", process: Process) -> None:
        self._world = world
        self._process = process

    def __getattr__(self, verb: str) -> Any:
        assert verb in VERBS, verb

        async def call(*args: Any, **options: Any) -> Any:
            await self._travel()
            if self._world.trouble():
                raise QueueUnavailable("the request is lost")
            answer = await getattr(self._world.queue, verb)(*args, **options)
            await self._travel()
            if self._world.trouble():
                raise QueueUnavailable("the answer is lost")
            return answer

        return call

    async def listen(self, subscriber: str) -> AsyncIterator[list[tuple[str, Sequence[Event]]]]:
        async for batch in self._world.queue.listen(subscriber):
            await self._process.gate()
            if not self._world.trouble():
                yield batch

    async def dropped(self, worker: str) -> AsyncIterator[str]:
        async for job_id in self._world.queue.dropped(worker):
            await self._process.gate()
            if not self._world.trouble():
                yield job_id

    async def _travel(self) -> None:
        await self._process.gate()
        await asyncio.sleep(self._world.rng.random() * 0.005)
        await self._process.gate()


class Client:
    """Reads one job through a relay, and through another one when that dies, by the number of the last event."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.events: list[Event] = []
        self.left = False

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Finished)


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        loop = asyncio.get_running_loop()
        self.queue = MemoryQueue(lambda: loop.time() * 1000, lease_ms=SETTINGS.lease_ms)
        self.workers: list[tuple[Worker, Process]] = []
        self.relays: list[tuple[Relay, Process]] = []
        self.clients: list[Client] = []
        self._tasks: list[asyncio.Future[Any]] = []
        self._odds = 0.0

    def trouble(self) -> bool:
        return self.rng.random() < self._odds

    async def live(self, *, jobs: int = 6, faults: int = 6) -> None:
        """A history: jobs come, things break, all is well again, everybody gets an answer."""
        for _ in range(2):
            self.add_worker()
            self.add_relay()
        for _ in range(jobs):
            self._tasks.append(asyncio.ensure_future(self._client(self._job())))
            await asyncio.sleep(self.rng.random() * 0.1)
        for _ in range(faults):
            await self._break()
            await asyncio.sleep(self.rng.random() * 0.5)
        self._odds = 0.0
        self.add_worker()
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks)

    async def end(self) -> None:
        for task in self._tasks + [task for _, process in self.workers + self.relays for task in process.tasks]:
            task.cancel()
        everything = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)

    def add_worker(self) -> None:
        process = Process()
        limits = Limits(sequences_max=3, batch_tokens_max=16, context_length=1000, vocabulary=50_000)
        engine = ScriptedEngine(limits=limits, step_ms=0, tokens=100)
        line: Any = Line(self, process)
        worker = Worker(
            f"w{len(self.workers)}",
            [Loaded([INFO], engine, SimulatedThread(process))],  # type: ignore[arg-type]
            queue=line,
            channel=line,
            announce=process.gate,
            settings=SETTINGS,
            metrics=WorkerMetrics(),
        )
        process.tasks.append(asyncio.ensure_future(worker.run()))
        self.workers.append((worker, process))

    def add_relay(self) -> None:
        process = Process()
        line: Any = Line(self, process)
        relay = Relay(
            f"api{len(self.relays)}", queue=line, channel=line, silence_ms=200, buffer_max=8, metrics=ApiMetrics()
        )
        process.tasks.append(asyncio.ensure_future(relay.run()))
        self.relays.append((relay, process))

    def _job(self) -> Job:
        content, tokens = f"question {self.rng.randrange(100)}", self.rng.randint(1, 25)
        return make_job(prompt=content, max_tokens=tokens, n=self.rng.choice([1, 1, 2]), temperature=0, grace_ms=None)

    async def _break(self) -> None:
        rng = self.rng
        worker, process = rng.choice(self.workers)
        match rng.choice(["kill", "freeze", "stop", "network", "api", "cancel", "silence"]):
            case "kill":
                process.freeze()
                self.add_worker()
            case "freeze":
                process.freeze()
                asyncio.get_running_loop().call_later(rng.random() * 3, process.thaw)
                self.add_worker()
            case "stop":
                worker.stop()
                self.add_worker()
            case "network":
                self._odds = rng.choice([0.02, 0.2])
            case "api":
                _, dead = self.relays.pop(rng.randrange(len(self.relays)))
                dead.freeze()
                self.add_relay()
            case "cancel":
                await self.queue.cancel(rng.choice(self.clients).job.id)
            case "silence":
                self._odds = 1.0
                await asyncio.sleep(rng.random() * 2)
                self._odds = 0.0

    async def _client(self, job: Job) -> None:
        client = Client(job)
        self.clients.append(client)
        while not client.ended:
            relay, process = self.rng.choice(self.relays)
            try:
                await self._read(client, relay, process)
            except (QueueUnavailable, TimeoutError):
                await asyncio.sleep(0.1)

    async def _read(self, client: Client, relay: Relay, process: Process) -> None:
        line: Any = Line(self, process)
        with relay.open(client.job) as stream:
            await asyncio.wait_for(self._enter(client, relay, line), 1)
            relay.accept(stream, logged=True)
            seen = 0
            while not client.ended:
                try:
                    async with asyncio.timeout(1):
                        events = await relay.take(stream)
                except TimeoutError:
                    if (relay, process) in self.relays:
                        continue  # it is only slow
                    return
                for event in events:
                    if seen >= len(client.events):
                        client.events.append(event)
                    seen += 1

    @staticmethod
    async def _enter(client: Client, relay: Relay, line: Any) -> None:
        await line.enqueue(client.job, bounds=BOUNDS, subscriber=relay.name)
        await line.attach(client.job.id, subscriber=relay.name)


def pages(world: World) -> list[Page]:
    return [
        Page(state=record.state, events=tuple(record.log))
        for record in (world.queue._records[client.job.id] for client in world.clients)
    ]
