"""The names of a models file, listed for the API before any worker serves them: requests for them wait for a worker."""

import time
from collections.abc import Iterator
from typing import Any

from redis.asyncio import Redis

from shared.catalog.model_registry import ModelRegistry
from shared.catalog.routes import RouteTable
from shared.domain.job import ModelInfo
from shared.domain.routing import Route
from shared.models_file.reading import ModelsFile

UNKNOWN = "unknown"  # the engine of a model that was never loaded


class Announcement:
    """It remembers what it has listed, so that a name that has left the file is listed no longer. Raises
    QueueUnavailable."""

    def __init__(self, client: Redis) -> None:
        self._registry = ModelRegistry(client)
        self._routes = RouteTable(client)
        self._names: set[str] = set()
        self._routed: set[str] = set()

    async def write(self, file: ModelsFile) -> set[str]:
        """List the models of the file, its aliases, routes and default. Return the models that have left it."""
        aliases = {alias: Route(order=(model,)) for model, table in file.models.items() for alias in table.aliases}
        routes = {
            name: Route(order=tuple(route.order), spill_after_s=route.spill_after)
            for name, route in file.routes.items()
        }
        await self._routes.write(aliases | routes, file.default, before=self._routed)
        self._routed = {*aliases, *routes}
        infos = list(_infos(file))
        await self._registry.announce_absent(infos)
        names = {info.name for info in infos}
        gone, self._names = self._names - names, names
        return gone


def _infos(file: ModelsFile) -> Iterator[ModelInfo]:
    """Yield what is known of each model and adapter before a worker has loaded it."""
    for model, table in file.models.items():
        for name in (model, *table.adapters):
            parent = model if name != model else ""
            about: dict[str, Any] = {
                "engine": UNKNOWN,
                "context_length": 0,
                "resume": "",
                "created_s": int(time.time()),
            }
            yield ModelInfo(name=name, parent=parent, **about)
