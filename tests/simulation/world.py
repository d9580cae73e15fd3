"""Runs real workers and relays over the queue in memory. The network loses, delays and repeats calls; processes die,
freeze and wake; memory is short; some answers cannot be computed or read, and some deadlines pass. One seed is one
history."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import count
from typing import Any

from api.serving.relay import Relay
from shared.domain.errors import QueueUnavailable
from shared.domain.events import Event, Finished, Outcome
from shared.domain.job import Job, ModelInfo
from shared.observability.metrics import ApiMetrics, WorkerMetrics
from shared.queue.memory_queue import MemoryQueue
from shared.queue.protocols import Bounds
from shared.settings import load_settings
from tests.factories import make_job
from tests.simulation.loop import STEP_S, Process, SimulatedThread
from workers.engines.scripted import ScriptedEngine
from workers.loading.loaded import stepped
from workers.loop.worker import Worker
from workers.protocols import OutOfMemory
from workers.runners.engine_loop import EngineLoop
from workers.scheduling.engine_limits import BLOCK_SIZE, EngineLimits
from workers.scheduling.scheduler import Batch
from workers.scheduling.sequence import Sampled, Sequence

INFO = ModelInfo(name="m", engine="scripted", context_length=1000, created_s=0)
VERBS = ("enqueue", "attach", "claim", "renew", "append", "settle", "release", "cancel", "leave", "read")
BOUNDS = Bounds(jobs_max=100)
SETTINGS = load_settings(heartbeat_ms=300, lease_ms=1000, idle_wait_ms=50, drain_s=0.2, outbox_steps_max=100_000)
# There is hardly room for two long jobs: others wait for blocks, and a growing job takes them from a younger one.
LIMITS = EngineLimits(sequences_max=3, batch_tokens_max=16, context_length=144, vocabulary=50_000, blocks=10)
TENANTS = ("ann", "bob", "eve")
# The beginnings of prompts, from less than a block to four blocks.
BEGINNINGS = [" ".join(f"p{name}w{word}" for word in range(name * BLOCK_SIZE + 5)) for name in range(5)]
FAULTS = ("raise", "oom", "read", "decode", "grammar")
ASKS_WITHIN_S = 0.5  # for a worker that has room and accepts jobs
ENDS_WITHIN_S = 5.0  # for a worker that is told to stop
LOOK_S = 0.1


class SimulatedEngine(ScriptedEngine):
    """A step takes simulated time, during which the event loop runs; calls of the engine come after the step. The
    engine remembers each sequence until it is freed, and some engines have too little memory for a full batch."""

    def __init__(self, thread: SimulatedThread, rng: random.Random) -> None:
        super().__init__(limits=LIMITS, step_ms=0, tokens=100)
        self._thread = thread
        self._rng = rng
        self._fits = rng.choice([LIMITS.sequences_max, LIMITS.sequences_max, 2, 1])
        self._remembered = set[Sequence]()

    def step(self, batch: Batch) -> list[Sampled]:
        begins = self._rng.random() * STEP_S
        self._thread.pause(begins)
        self._remembered |= {row.sequence for row in batch.rows}
        if len(self._remembered) > self._fits:
            raise OutOfMemory("there is no memory for all of these")
        sampled = super().step(batch)
        self._thread.pause(STEP_S - begins)
        return sampled

    def free(self, sequence: Sequence) -> None:
        self._remembered.discard(sequence)


class Connection:
    """One process's connection to the queue. A call may fail before or after its effect, and takes time both ways; a
    message may be lost. A frozen or dead process neither sends nor receives."""

    def __init__(self, world: "World", process: Process) -> None:
        self._world = world
        self._process = process

    def __getattr__(self, verb: str) -> Any:
        assert verb in VERBS, verb

        async def call(*args: Any, **options: Any) -> Any:
            if verb == "claim":
                self._process.asked_at = asyncio.get_running_loop().time()
            await self._travel()
            if self._world.trouble():
                raise QueueUnavailable("the request is lost")
            answer = await getattr(self._world.queue, verb)(*args, **options)
            if verb == "claim":
                self._world.claims.update(delivery.job.id for delivery in answer)
            await self._travel()
            if self._world.trouble():
                raise QueueUnavailable("the answer is lost")
            return answer

        return call

    async def listen(self, subscriber: str) -> AsyncIterator[list[tuple[str, Seq[Event]]]]:
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
    """Reads one job through a relay, and resumes on another relay after the last event if the first one dies."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.events: list[Event] = []

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Finished)

    @property
    def outcome(self) -> Outcome:
        last = self.events[-1]
        assert isinstance(last, Finished)
        return last.outcome


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self.queue = MemoryQueue(lambda: self._loop.time() * 1000, lease_ms=SETTINGS.lease_ms)
        self.workers: list[tuple[Worker, Process]] = []
        self.relays: list[tuple[Relay, Process]] = []
        self.clients: list[Client] = []
        self.cancelled: set[str] = set()  # ids of jobs that a client asked to cancel
        self.claims = Counter[str]()  # claims of each job
        self.wrongs: list[str] = []
        self._names = count()
        self._stopped: dict[str, float] = {}  # workers that were told to stop, and when
        self._thawed_at = 0.0  # when the last frozen process will be awake
        self._tasks: list[asyncio.Future[Any]] = []
        self._odds = 0.0

    def trouble(self) -> bool:
        return self.rng.random() < self._odds

    async def live(self, *, jobs: int = 6, faults: int = 6) -> None:
        """Play a history: jobs arrive, faults strike and end, every client gets an answer, and every live worker claims
        again."""
        for _ in range(2):
            self.add_worker()
            self.add_relay()
        watching = asyncio.ensure_future(self._watch())
        for _ in range(jobs):
            self._tasks.append(asyncio.ensure_future(self._client(self._job())))
            await asyncio.sleep(self.rng.random() * 0.1)
        for _ in range(faults):
            await self._break()
            await asyncio.sleep(self.rng.random() * 0.5)
        self._odds = 0.0
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks)
        quiet_from = max(self._loop.time(), self._thawed_at)
        await asyncio.sleep(quiet_from - self._loop.time() + ASKS_WITHIN_S + 3 * LOOK_S)
        watching.cancel()

    async def end(self) -> None:
        everything = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)

    def add_worker(self) -> None:
        process = Process()
        thread: Any = SimulatedThread(process)
        connection: Any = Connection(self, process)
        worker = Worker(
            f"w{len(self.workers)}",
            [stepped([INFO], SimulatedEngine(thread, self.rng), thread)],
            queue=connection,
            channel=connection,
            announce=process.gate,
            settings=SETTINGS,
            metrics=WorkerMetrics(),
        )
        process.tasks.append(asyncio.ensure_future(worker.run()))
        self.workers.append((worker, process))

    def add_relay(self) -> None:
        process = Process()
        connection: Any = Connection(self, process)
        relay = Relay(
            f"api{next(self._names)}",
            queue=connection,
            channel=connection,
            silence_ms=200,
            buffer_max=8,
            metrics=ApiMetrics(),
        )
        process.tasks.append(asyncio.ensure_future(relay.run()))
        self.relays.append((relay, process))

    def _job(self) -> Job:
        """Make a job. Jobs may share a beginning, in one tenant or in several; some fail or pass their deadline."""
        rng = self.rng
        tokens = rng.choice([rng.randint(1, 25), rng.randint(1, 60)])
        content = f"{rng.choice(BEGINNINGS)} question {rng.randrange(100)}"
        if rng.random() < 0.15:
            content += f" fault:{rng.choice(FAULTS)}@{rng.randrange(tokens)}"
        tenant = rng.choice(TENANTS)
        job = make_job(
            prompt=content,
            max_tokens=tokens,
            n=rng.choice([1, 1, 2, 4]),
            temperature=0,
            grace_ms=None,
            tenant=tenant,
            run_deadline_ms=rng.choice([0, 0, rng.randint(100, 3000)]),
        )
        return replace(job, cache_salt=tenant)

    async def _break(self) -> None:
        rng = self.rng
        worker, process = rng.choice(self._living())
        match rng.choice(["kill", "freeze", "stop", "network", "api", "cancel", "leave", "silence"]):
            case "kill":
                process.kill()
                self.add_worker()
            case "freeze":
                process.freeze()
                asleep_s = rng.random() * 3
                self._thawed_at = max(self._thawed_at, self._loop.time() + asleep_s)
                self._loop.call_later(asleep_s, process.thaw)
                self.add_worker()
            case "stop":
                worker.stop()
                self._stopped[worker.name] = self._loop.time()
                self.add_worker()
            case "network":
                self._odds = rng.choice([0.02, 0.2])
            case "api":
                _, dead = self.relays.pop(rng.randrange(len(self.relays)))
                dead.kill()
                self.add_relay()
            case "cancel":
                await self._cancel(rng.choice(self.clients))
            case "leave":
                for client in self.clients:
                    await self._cancel(client)
            case "silence":
                self._odds = 1.0
                await asyncio.sleep(rng.random() * 2)
                self._odds = 0.0

    async def _cancel(self, client: Client) -> None:
        self.cancelled.add(client.job.id)
        await self.queue.cancel(client.job.id)

    def _living(self) -> list[tuple[Worker, Process]]:
        """List the workers that are awake and not stopping."""
        return [(w, p) for w, p in self.workers if not p.frozen and w.name not in self._stopped]

    def _has_room(self, worker: Worker) -> bool:
        """Return True if the queue and the engine see free room, whatever the worker itself remembers."""
        held = [record.job for record in self.queue._running.values() if record.worker == worker.name]
        (scheduler,) = (runner._scheduler for runner in worker._runners if isinstance(runner, EngineLoop))
        return not scheduler.waiting and sum(job.sequences for job in held) < scheduler.places

    async def _watch(self) -> None:
        """Check that a live worker with room claims jobs and that a stopping one ends in time. A disturbance of the
        network or the process restarts the count."""
        idle_since = dict[str, float]()
        while not self.wrongs:
            await asyncio.sleep(LOOK_S)
            now = self._loop.time()
            calm = {w.name for w, p in self.workers if not p.frozen} if not self._odds else set[str]()
            for worker, process in self.workers:
                name, ended = worker.name, process.tasks[0].done()
                if name not in calm:
                    idle_since.pop(name, None)
                    if name in self._stopped:
                        self._stopped[name] = now
                elif name in self._stopped:
                    if not ended and now - self._stopped[name] > ENDS_WITHIN_S:
                        self.wrongs.append(f"{name} was told to stop and goes on")
                elif ended:
                    self.wrongs.append(f"{name} has died")
                elif not worker.accepting or not self._has_room(worker):
                    idle_since.pop(name, None)
                elif now - max(idle_since.setdefault(name, now), process.asked_at) > ASKS_WITHIN_S:
                    self.wrongs.append(f"{name} accepts, has room and does not ask for work")

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
        connection: Any = Connection(self, process)
        with relay.open(client.job) as stream:
            async with asyncio.timeout(1):
                await self._enter(client, relay, connection)
            relay.mark_enqueued(stream, logged=True)
            seen = 0
            while not client.ended:
                try:
                    async with asyncio.timeout(1):
                        events = await relay.next_events(stream)
                except TimeoutError:
                    if (relay, process) in self.relays:
                        continue  # the worker is only slow
                    return
                for event in events:
                    if seen >= len(client.events):
                        client.events.append(event)
                    seen += 1

    @staticmethod
    async def _enter(client: Client, relay: Relay, connection: Any) -> None:
        await connection.enqueue(client.job, bounds=BOUNDS, subscriber=relay.name)
        await connection.attach(client.job.id, subscriber=relay.name)
