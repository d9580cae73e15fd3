"""Several Redis as one queue. All keys of a model are in the Redis that its workers connect to, so every verb remains
one script in one Redis; this module only looks up which one.

The first Redis, the home, holds all keys that belong to no model: API keys, files, batches, responses, webhooks. A
Redis that is away, or does not answer, makes only its own models unavailable.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.asyncio import Redis

from shared.catalog.demand import DemandReader
from shared.catalog.hosting import Hosting
from shared.catalog.job_records import JobRecords
from shared.catalog.model_registry import ModelRegistry
from shared.catalog.routes import RouteTable
from shared.catalog.waits import WaitReader
from shared.domain.errors import InvalidRequest, NotFound, PenstockError, QueueUnavailable
from shared.domain.events import Event
from shared.domain.job import Job, ModelInfo
from shared.domain.lifecycle import State
from shared.process.tasks import end
from shared.queue.event_channel import RedisChannel
from shared.queue.protocols import Accepted, EventChannel, InUse, LogSlice, QueueProducer, RateLimits, StoredRecord
from shared.redis import keys
from shared.redis.client import translated

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
Heard = list[tuple[str, Sequence[Event]]]  # jobs and their events, as they were published together
PLACED_FOR_S = 10.0
ANSWER_S = 3.0  # one of several Redis that has not answered by then counts as away,
SILENT_FOR_S = 5.0  # and is not asked again for this long
JOBS_PLACED_MAX = 100_000
HEARD_MAX = 1000  # batches from all Redis that wait here before the listeners pause
NO_NEWS = LogSlice(state=State.STARTED, events=())  # stands for a job whose Redis is away


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shard:
    """One Redis, and the objects that read and write it."""

    client: Redis
    queue: QueueProducer
    channel: EventChannel
    model_registry: ModelRegistry
    job_records: JobRecords
    demand: DemandReader
    waits: WaitReader
    routes: RouteTable
    hosting: Hosting


def shard(client: Redis, queue: QueueProducer) -> Shard:
    return Shard(
        client=client,
        queue=queue,
        channel=RedisChannel(client),
        model_registry=ModelRegistry(client),
        job_records=JobRecords(client),
        demand=DemandReader(client),
        waits=WaitReader(client),
        routes=RouteTable(client),
        hosting=Hosting(client),
    )


class ShardMap:
    """Looks up which Redis has a model or a job."""

    def __init__(self, shards: Sequence[Shard], *, clock: Callable[[], float] = time.monotonic) -> None:
        """The first of `shards` is the home."""
        self.shards = list(shards)
        self.home = self.shards[0]
        self._clock = clock
        self._models: dict[str, tuple[Shard, float]] = {}
        self._jobs: OrderedDict[str, Shard] = OrderedDict()
        self._silent: dict[Shard, float] = {}

    async def of_model(self, model: str) -> Shard:
        """Return the shard that has workers for the model, or had; the home for an unknown model. Raises
        QueueUnavailable when a shard that might have it is away."""
        if len(self.shards) == 1:
            return self.home
        place, until = self._models.get(model, (None, 0.0))
        if place and self._clock() < until:
            return place
        try:
            # The model is usually where it was, and then none of the other shards needs to answer.
            found = place if place and await self._serves(place, model) else await self._find(model)
        except QueueUnavailable:
            if place is None:
                raise
            return place
        if found is None:
            return self.home
        self._models[model] = found, self._clock() + PLACED_FOR_S
        return found

    async def _serves(self, shard: Shard, model: str) -> bool:
        answers, _ = await self.ask(lambda shard: _known(shard, model), among=[shard])
        return any(info and info.workers for _, info in answers)

    async def _find(self, model: str) -> Shard | None:
        """Return the shard that has the most workers for the model, None when none knows it. Raises QueueUnavailable
        when a shard that might know it is away."""
        answers, error = await self.ask(lambda shard: _known(shard, model))
        known = [(shard, info.workers) for shard, info in answers if info]
        if error and not known:
            raise error
        return max(known, key=lambda each: each[1], default=(None, 0))[0]

    async def of_job(self, job_id: str) -> Shard:
        """Return the job's shard, the home if there is no such job. Raises QueueUnavailable when a shard that might
        have it is away."""
        if len(self.shards) == 1:
            return self.home
        if place := self._jobs.get(job_id):
            return place
        answers, error = await self.ask(lambda shard: _exists(shard, job_id))
        place = next((shard for shard, there in answers if there), None)
        if place is None and error:
            raise error
        if place:
            self.remember(job_id, place)
        return place or self.home

    def remember(self, job_id: str, place: Shard) -> None:
        if len(self.shards) == 1:
            return
        self._jobs[job_id] = place
        if len(self._jobs) > JOBS_PLACED_MAX:
            self._jobs.popitem(last=False)

    async def ask(
        self, question: Callable[[Shard], Awaitable[Answer]], *, among: Iterable[Shard] | None = None
    ) -> tuple[list[tuple[Shard, Answer]], QueueUnavailable | None]:
        """Ask all shards, or those `among`. Return the answers of those that are there, and the error of one that is
        not."""
        asked = self.shards if among is None else list(among)
        answers = await asyncio.gather(*[self._answer(shard, question) for shard in asked], return_exceptions=True)
        found, unavailable = [], None
        for shard, said in zip(asked, answers, strict=True):
            if isinstance(said, QueueUnavailable):
                unavailable = said
            elif isinstance(said, BaseException):
                raise said
            else:
                found.append((shard, said))
        return found, unavailable

    async def _answer(self, shard: Shard, question: Callable[[Shard], Awaitable[Answer]]) -> Answer:
        if len(self.shards) == 1:
            return await question(shard)
        if self._clock() < self._silent.get(shard, 0):
            raise QueueUnavailable("a Redis has not answered recently")
        try:
            async with asyncio.timeout(ANSWER_S):
                return await question(shard)
        except TimeoutError as error:
            self._silent[shard] = self._clock() + SILENT_FOR_S
            raise QueueUnavailable(f"a Redis has not answered within {ANSWER_S:.0f} s") from error

    async def gather(self, question: Callable[[Shard], Awaitable[list[Answer]]]) -> list[Answer]:
        """Return all items from the shards that answer. Raises QueueUnavailable when none does."""
        answers, error = await self.ask(question)
        if error and not answers:
            raise error
        if error:
            log.warning("a redis is away", extra={"error": str(error)})
        return [each for _, said in answers for each in said]


async def _known(shard: Shard, model: str) -> ModelInfo | None:
    try:
        return await shard.model_registry.model(model)
    except NotFound:
        return None


async def _exists(shard: Shard, job_id: str) -> bool:
    with translated():
        return bool(await shard.client.exists(keys.job(job_id)))


class ShardedQueue:
    """A QueueProducer and an EventChannel: each verb is that of `RedisQueue` or `RedisChannel`, called for the Redis
    that has the model or the job."""

    def __init__(self, shard_map: ShardMap) -> None:
        self._shard_map = shard_map

    async def enqueue(self, job: Job, *, record: StoredRecord | None = None, **options: Any) -> Accepted:
        place = await self._shard_map.of_model(job.model)
        self._shard_map.remember(job.id, place)
        if record is None or place is self._shard_map.home:
            accepted = await place.queue.enqueue(job, record=record, **options)
        else:
            accepted = await self._enqueue_away(place, job, record, **options)
        self._shard_map.remember(accepted.job_id, place)
        return accepted

    async def _enqueue_away(self, place: Shard, job: Job, record: StoredRecord, **options: Any) -> Accepted:
        """Accept the job in its shard, then write its record to the home, since no script reaches two Redis. The client
        gets its answer after both: a refusal by either leaves no record, and no job that goes on. The other order would
        leave a record behind whenever this process dies between the two."""
        accepted = await place.queue.enqueue(job, **options)
        if accepted.attached:
            return accepted
        try:
            await self.store(record)
        except PenstockError:
            await place.queue.cancel(job.id, by="its refused record")
            raise
        return accepted

    async def charge(self, tenant: str, rate_limits: RateLimits) -> float:
        return await self._shard_map.home.queue.charge(tenant, rate_limits)

    async def store(self, record: StoredRecord) -> None:
        await self._shard_map.home.queue.store(record)

    async def discard(self, record: StoredRecord) -> None:
        await self._shard_map.home.queue.discard(record)

    async def attach(self, job_id: str, *, subscriber: str) -> State | None:
        return await (await self._shard_map.of_job(job_id)).queue.attach(job_id, subscriber=subscriber)

    async def cancel(self, job_id: str, *, by: str = "its client") -> State | None:
        return await (await self._shard_map.of_job(job_id)).queue.cancel(job_id, by=by)

    async def leave(self, job_id: str, *, subscriber: str) -> None:
        place = await self._shard_map.of_job(job_id)
        _, error = await self._shard_map.ask(
            lambda shard: shard.queue.leave(job_id, subscriber=subscriber), among=[place]
        )
        if error:
            raise error

    async def replay(self, job_id: str, *, as_id: str, model: str = "") -> tuple[State | None, str]:
        place = await self._shard_map.of_job(job_id)
        if model and await self._shard_map.of_model(model) is not place:
            raise InvalidRequest(f"The model '{model}' is in another Redis than the job.")
        return await place.queue.replay(job_id, as_id=as_id, model=model)

    async def pause(self, model: str, *, paused: bool) -> None:
        await (await self._shard_map.of_model(model)).queue.pause(model, paused=paused)

    async def forget_model(self, model: str) -> InUse:
        return await (await self._shard_map.of_model(model)).queue.forget_model(model)

    async def listen(self, subscriber: str) -> AsyncIterator[Heard]:
        """Yield the events of all shards. Raises the error that ends the listening to any of them: a process that hears
        only some must not look alive. A shard that is away ends nothing, since its channel connects again."""
        if len(self._shard_map.shards) == 1:
            async for batch in self._shard_map.home.channel.listen(subscriber):
                yield batch
            return
        heard: asyncio.Queue[Heard | Exception] = asyncio.Queue(HEARD_MAX)
        hearing = [asyncio.create_task(_hear(shard, subscriber, heard)) for shard in self._shard_map.shards]
        try:
            while True:
                said = await heard.get()
                if isinstance(said, Exception):
                    raise said
                yield said
        finally:
            await end(hearing)

    async def read(self, cursors: Sequence[tuple[str, int]]) -> list[LogSlice]:
        if len(self._shard_map.shards) == 1:
            return await self._shard_map.home.channel.read(cursors)
        places = await asyncio.gather(*[self._shard_map.of_job(job_id) for job_id, _ in cursors])
        mine: dict[Shard, list[tuple[str, int]]] = {}
        for cursor, place in zip(cursors, places, strict=True):
            mine.setdefault(place, []).append(cursor)
        answers, error = await self._shard_map.ask(lambda shard: shard.channel.read(mine[shard]), among=mine)
        pages = {shard: iter(answer) for shard, answer in answers}
        if error and not pages:
            raise error
        return [next(pages[place]) if place in pages else NO_NEWS for place in places]


async def _hear(shard: Shard, subscriber: str, heard: "asyncio.Queue[Heard | Exception]") -> None:
    """Pass on the events that are published in one Redis, and at last the error that ends them."""
    try:
        async for batch in shard.channel.listen(subscriber):
            await heard.put(batch)
        raise RuntimeError("the subscription to a Redis has ended")
    except Exception as error:
        await heard.put(error)
