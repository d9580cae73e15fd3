"""The catalog of several Redis as one: each reader asks the Redis that has the model or the job, or all of them."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from shared.catalog.demand import Demand, DemandReader
from shared.catalog.hosting import Hosting
from shared.catalog.job_records import JobRecord, JobRecords
from shared.catalog.model_registry import ModelRegistry
from shared.catalog.places import Place, PlaceReader
from shared.catalog.routes import RouteTable
from shared.catalog.waits import Wait, WaitReader
from shared.domain.hosting import Host, HostedModel, Order
from shared.domain.job import ModelInfo, Priority
from shared.domain.lifecycle import State
from shared.domain.routing import Routing
from shared.shards import Shard, ShardMap

Known = TypeVar("Known", ModelInfo, Demand)


class ShardedModelRegistry(ModelRegistry):
    def __init__(self, shard_map: ShardMap) -> None:
        super().__init__(shard_map.home.client)
        self._shard_map = shard_map

    async def models(self) -> list[ModelInfo]:
        found = await self._shard_map.gather(lambda shard: shard.model_registry.models())
        return _best(found, lambda info: info.name)

    async def model(self, name: str) -> ModelInfo:
        return await (await self._shard_map.of_model(name)).model_registry.model(name)


class ShardedJobRecords(JobRecords):
    def __init__(self, shard_map: ShardMap) -> None:
        super().__init__(shard_map.home.client)
        self._shard_map = shard_map

    async def models(self) -> list[str]:
        return sorted(set(await self._shard_map.gather(lambda shard: shard.job_records.models())))

    async def ids(self, model: str, state: State, *, limit: int = 100) -> list[str]:
        return await (await self._shard_map.of_model(model)).job_records.ids(model, state, limit=limit)

    async def model_of_request(self, idempotency_key: str) -> str:
        answers, _ = await self._shard_map.ask(lambda shard: shard.job_records.model_of_request(idempotency_key))
        return next((model for _, model in answers if model), "")

    async def all_failed(self, model: str) -> AsyncIterator[str]:
        async for job_id in (await self._shard_map.of_model(model)).job_records.all_failed(model):
            yield job_id

    async def record(self, job_id: str) -> JobRecord:
        return await (await self._shard_map.of_job(job_id)).job_records.record(job_id)


class ShardedDemand(DemandReader):
    def __init__(self, shard_map: ShardMap) -> None:
        super().__init__(shard_map.home.client)
        self._shard_map = shard_map

    async def all(self) -> list[Demand]:
        found = await self._shard_map.gather(lambda shard: shard.demand.all())
        return _best(found, lambda demand: demand.model)

    async def read(self, model: str) -> Demand:
        return await (await self._shard_map.of_model(model)).demand.read(model)


class ShardedWaits(WaitReader):
    def __init__(self, shard_map: ShardMap) -> None:
        super().__init__(shard_map.home.client)
        self._shard_map = shard_map

    async def read(self, model: str, priority: Priority) -> Wait:
        return await (await self._shard_map.of_model(model)).waits.read(model, priority)


class ShardedPlaces:
    def __init__(self, shard_map: ShardMap) -> None:
        self._shard_map = shard_map
        self._readers = {shard: PlaceReader(shard.client) for shard in shard_map.shards}

    async def read(self, job_ids: Sequence[str]) -> dict[str, Place]:
        """Return the places of these jobs, of those whose Redis answers. Raises QueueUnavailable if none does."""
        mine: dict[Shard, list[str]] = {}
        for job_id in job_ids:
            mine.setdefault(await self._shard_map.of_job(job_id), []).append(job_id)
        answers, error = await self._shard_map.ask(lambda shard: self._readers[shard].read(mine[shard]), among=mine)
        if error and not answers:
            raise error
        return {job_id: place for _, places in answers for job_id, place in places.items()}


class ShardedRoutes(RouteTable):
    def __init__(self, shard_map: ShardMap) -> None:
        super().__init__(shard_map.home.client)
        self._shard_map = shard_map

    async def read(self) -> Routing:
        """Return the routes of all shards; where two have the same name, that of the earlier shard counts."""
        answers, error = await self._shard_map.ask(lambda shard: shard.routes.read())
        if error and not answers:
            raise error
        found = [routing for _, routing in answers]
        return Routing(
            routes={name: route for routing in reversed(found) for name, route in routing.routes.items()},
            default=next((routing.default for routing in found if routing.default), ""),
        )


class ShardedHosting(Hosting):
    """A host, its models and its orders are in the Redis that it connects to."""

    def __init__(self, shard_map: ShardMap) -> None:
        super().__init__(shard_map.home.client)
        self._shard_map = shard_map

    async def hosts(self) -> list[Host]:
        return await self._shard_map.gather(lambda shard: shard.hosting.hosts())

    async def all(self) -> dict[str, list[HostedModel]]:
        records = await self._shard_map.gather(_hosted)
        found: dict[str, list[HostedModel]] = {}
        for record in records:
            found.setdefault(record.model, []).append(record)
        return found

    async def of(self, model: str) -> list[HostedModel]:
        return await self._shard_map.gather(lambda shard: shard.hosting.of(model))

    async def place(self, host: str, order: Order) -> None:
        await (await self._of_host(host)).hosting.place(host, order)

    async def outcome(self, order_id: str) -> str | None:
        answers, _ = await self._shard_map.ask(lambda shard: shard.hosting.outcome(order_id))
        return next((outcome for _, outcome in answers if outcome), None)

    async def set_keep_alive(self, model: str, seconds: float) -> None:
        await (await self._shard_map.of_model(model)).hosting.set_keep_alive(model, seconds)

    async def _of_host(self, host: str) -> Shard:
        """Return the host's shard, the home for an unknown host."""
        answers, _ = await self._shard_map.ask(lambda shard: shard.hosting.hosts())
        return next((shard for shard, hosts in answers if host in [each.id for each in hosts]), self._shard_map.home)


async def _hosted(shard: Shard) -> list[HostedModel]:
    return [record for records in (await shard.hosting.all()).values() for record in records]


def _best(found: list[Known], model: Callable[[Known], str]) -> list[Known]:
    """Keep for each model the entry with the most workers, in the order of the models' names."""
    by_model = {model(each): each for each in sorted(found, key=lambda each: each.workers)}
    return [by_model[name] for name in sorted(by_model)]
