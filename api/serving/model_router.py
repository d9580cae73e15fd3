"""A router finds the models that may answer a request, by the name in it: a model's own, an alias, a route or none. An
unknown name is told those near to it."""

import asyncio
import difflib
import math
import time
from collections.abc import Callable

from api.http.auth import Caller, may_use
from api.serving.hosted_models import HostedModels
from shared.catalog.job_records import JobRecords
from shared.catalog.model_registry import ModelRegistry
from shared.catalog.routes import RouteTable
from shared.catalog.waits import WaitReader
from shared.domain.errors import Forbidden, InvalidRequest, NotFound, QueueUnavailable
from shared.domain.hosting import HostedState
from shared.domain.job import ModelInfo, Priority
from shared.domain.routing import Candidate, Route, Routing, preference
from shared.queue.protocols import Idempotency

KNOWN_FOR_S = 5.0
MISSED_FOR_S = 10.0  # the workers' next heartbeat registers a model again after Redis was emptied
ROUTES_FOR_S = 2.0
NAMES_MAX = 1000  # names that are compared with an unknown one
NAME_MAX = 200
NONE_NAMED = ("", "default")  # what chat clients send for a model that nobody chose


class ModelRouter:
    def __init__(
        self,
        model_registry: ModelRegistry,
        routes: RouteTable,
        waits: WaitReader,
        job_records: JobRecords,
        hosted_models: HostedModels,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._model_registry = model_registry
        self._routes = routes
        self._waits = waits
        self._job_records = job_records
        self._hosted_models = hosted_models
        self._clock = clock
        self._known: dict[str, tuple[float, ModelInfo]] = {}
        self._routing, self._routing_until = Routing(), -math.inf
        self._names: tuple[float, list[str]] = (-math.inf, [])

    async def models_for(
        self, name: str, caller: Caller, *, priority: Priority, idempotency: Idempotency | None = None
    ) -> list[ModelInfo]:
        """Return the models that may answer a request for `name`, the preferred one first; one for a model's own name.
        The model that an earlier request of the same Idempotency-Key went to comes first. Jobs of the class batch spill
        to no other model. Raises NotFound, Forbidden, or InvalidRequest for no name without a default."""
        routing = await self.routing()
        name = _named(name, routing)
        models = routing.models_of(name)
        allowed = [model for model in models if may_use(caller, name) or may_use(caller, model)]
        if not allowed:
            raise Forbidden(f"This key may not use the model '{name}'.", param="model")
        if len(models) == 1:
            return [await self._require_model(models[0], caller)]
        found = [info for model in allowed if (info := await self._find(model))]
        if not found:
            raise NotFound(
                f"None of the models of '{name}' exists here: {', '.join(allowed)}.",
                code="model_not_found",
                param="model",
            )
        route = routing.routes[name]
        return await self._preferred(found, route, priority, idempotency) if len(found) > 1 else found

    async def routing(self) -> Routing:
        """Return the routes, which may be `ROUTES_FOR_S` old, or older while Redis is away."""
        if self._clock() >= self._routing_until:
            try:
                self._routing = await self._routes.read()
            except QueueUnavailable:
                if self._routing_until == -math.inf:
                    raise
            self._routing_until = self._clock() + ROUTES_FOR_S
        return self._routing

    async def not_found(self, name: str, caller: Caller) -> NotFound:
        """Return the error of an unknown name, which tells the names near to it that the caller may use."""
        routing = await self.routing()
        names = [*await self._model_names(), *routing.routes]
        usable = [each for each in names if may_use(caller, each)][:NAMES_MAX]
        by_lower = {each.lower(): each for each in usable}
        near = [by_lower[each] for each in difflib.get_close_matches(name[:NAME_MAX].lower(), by_lower)]
        hint = f" Did you mean {_either(near)}?" if near else ""
        return NotFound(f"The model '{name}' does not exist here.{hint}", code="model_not_found", param="model")

    async def _preferred(
        self, found: list[ModelInfo], route: Route, priority: Priority, idempotency: Idempotency | None
    ) -> list[ModelInfo]:
        candidates = await asyncio.gather(*[self._candidate(info, priority) for info in found])
        spill_after_s = math.inf if priority is Priority.BATCH else route.spill_after_s
        order = preference(candidates, spill_after_s)
        if idempotency and (earlier := await self._job_records.model_of_request(idempotency.key)) in order:
            order.sort(key=lambda model: model != earlier)
        by_name = {info.name: info for info in found}
        return [by_name[model] for model in order]

    async def _candidate(self, info: ModelInfo, priority: Priority) -> Candidate:
        wait = await self._waits.read(info.name, priority)
        hosted = await self._hosted_models.of(info.name)
        failed = bool(hosted) and all(each.state is HostedState.FAILED for each in hosted)
        return Candidate(
            model=info.name,
            warm=wait.workers > 0,
            wait_s=wait.seconds if wait.workers else wait.seconds + await self._hosted_models.load_left_s(info.name),
            usable=not info.paused and (wait.workers > 0 or not failed),
        )

    async def _require_model(self, name: str, caller: Caller) -> ModelInfo:
        if info := await self._find(name):
            return info
        raise await self.not_found(name, caller)

    async def _find(self, name: str) -> ModelInfo | None:
        """Return the model's record, or the last known one for a moment, since a Redis that was emptied forgets it."""
        now = self._clock()
        until, known = self._known.get(name, (-math.inf, None))
        if known and until >= now:
            return known
        try:
            found = await self._model_registry.model(name)
        except NotFound:
            return None if known is None or now > until + MISSED_FOR_S else known
        self._known[name] = now + KNOWN_FOR_S, found
        return found

    async def _model_names(self) -> list[str]:
        """List all models. The list may be `KNOWN_FOR_S` old, since anybody can ask for unknown names all the time."""
        until, names = self._names
        if self._clock() >= until:
            names = [info.name for info in await self._model_registry.models()]
            self._names = self._clock() + KNOWN_FOR_S, names
        return names


def _named(name: str, routing: Routing) -> str:
    """Return the name itself, or the default for one that says nothing. Raises InvalidRequest without a default."""
    if name in NONE_NAMED and name not in routing.routes and routing.default:
        return routing.default
    if not name:
        raise InvalidRequest("Missing required parameter: 'model'.", param="model")
    return name


def _either(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
