"""An operator orders the models of hosts to be loaded, unloaded, switched and kept. Each verb chooses the hosts, and
gives them an order."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.catalog.hosting import DONE, Hosting, best_of
from shared.catalog.routes import RouteTable
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.hosting import HostedModel, HostedState, Order, OrderVerb, When
from shared.models_file.problems import did_you_mean

FOREVER_S = 10 * 366 * 86400.0
LOOK_S = 0.2
LOADED = {HostedState.LOADING, HostedState.READY, HostedState.ASLEEP}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedOrder:
    """An order and the host that has it. `outcome` is DONE, or why it was not carried out; None while that is open."""

    host: str
    order: Order
    outcome: str | None = None

    @property
    def failure(self) -> str:
        return self.outcome if self.outcome and self.outcome != DONE else ""


class ModelOrders:
    """Every verb takes the name of a model or an alias, and `host` narrows it to one host, by its id or its hostname.
    Raises NotFound for a model that no host has, InvalidRequest for a name of several models, and QueueUnavailable."""

    def __init__(self, hosting: Hosting, routes: RouteTable, clock: Callable[[], float] = time.time) -> None:
        self._hosting = hosting
        self._routes = routes
        self._clock = clock

    async def load(self, name: str, *, host: str = "") -> list[PlacedOrder]:
        """Order the model's load from the host that is nearest to having it."""
        record = best_of(await self._records(name, host))
        return [await self._place(record, OrderVerb.LOAD)]

    async def unload(self, name: str, *, when: When = When.IDLE, host: str = "") -> list[PlacedOrder]:
        """Order the model's unloading from every host that has it loaded; there may be none."""
        loaded = [record for record in await self._records(name, host) if record.state in LOADED]
        return [await self._place(record, OrderVerb.UNLOAD, when=when) for record in loaded]

    async def unload_all(self, *, when: When = When.IDLE) -> list[PlacedOrder]:
        records = [record for records in (await self._hosting.all()).values() for record in records]
        loaded = [record for record in records if record.state in LOADED]
        return [await self._place(record, OrderVerb.UNLOAD, when=when) for record in loaded]

    async def switch(self, name: str, instead: str, *, when: When = When.RUNNING, host: str = "") -> list[PlacedOrder]:
        """Order that one model is unloaded and another one loaded in its place, on one host that has both."""
        after = {record.host: record for record in await self._records(instead, host)}
        before = [record for record in await self._records(name, host) if record.host in after]
        if not before:
            raise InvalidRequest(f"No host has both models, '{name}' and '{instead}'.", param="to")
        record = best_of(before)
        return [await self._place(record, OrderVerb.SWITCH, when=when, instead=after[record.host].model)]

    async def keep(self, name: str, for_s: float, *, host: str = "") -> list[PlacedOrder]:
        """Order that the model is not unloaded for another or when it is idle, for this long; 0 ends that. A model that
        is not loaded is loaded first, by the host that is nearest to having it."""
        records = await self._records(name, host)
        loaded = [record for record in records if record.state in LOADED]
        if not loaded:
            loaded = [best_of(records)] if for_s else records
        until_s = self._clock() + min(for_s, FOREVER_S) if for_s else 0
        return [await self._place(record, OrderVerb.KEEP, until_s=until_s) for record in loaded]

    async def outcomes(self, placed: Sequence[PlacedOrder], *, wait_s: float = 0) -> list[PlacedOrder]:
        """Return the orders with their outcomes, as far as they are known after `wait_s`."""
        known = {each.order.id: each for each in placed}
        until = time.monotonic() + wait_s
        while True:
            for each in [each for each in known.values() if each.outcome is None]:
                outcome = await self._hosting.outcome(each.order.id)
                known[each.order.id] = PlacedOrder(host=each.host, order=each.order, outcome=outcome)
            left_s = until - time.monotonic()
            if left_s <= 0 or all(each.outcome for each in known.values()):
                return list(known.values())
            await asyncio.sleep(min(LOOK_S, left_s))

    async def _records(self, name: str, host: str) -> list[HostedModel]:
        records = await self._hosting.of(await self.model_of(name))
        if host:
            ids = {each.id for each in await self._hosting.hosts() if host in (each.id, each.hostname)}
            records = [record for record in records if record.host in ids]
        if not records:
            where = f"The host '{host}' does not have" if host else "No host has"
            near = did_you_mean(name, await self._names())
            raise NotFound(f"{where} the model '{name}'{near or '.'}", code="model_not_found", param="name")
        return records

    async def _names(self) -> list[str]:
        """Return every name that an order may have."""
        return sorted({*(await self._hosting.all()), *(await self._routes.read()).routes})

    async def model_of(self, name: str) -> str:
        """Return the model that the name stands for. Raises InvalidRequest for a route over several."""
        models = (await self._routes.read()).models_of(name)
        if len(models) != 1:
            raise InvalidRequest(f"'{name}' stands for several models: {', '.join(models)}.", param="name")
        return models[0]

    async def _place(
        self, record: HostedModel, verb: OrderVerb, *, when: When = When.IDLE, until_s: float = 0, instead: str = ""
    ) -> PlacedOrder:
        order_id = f"order-{secrets.token_hex(8)}"
        order = Order(id=order_id, verb=verb, model=record.model, when=when, until_s=until_s, instead=instead)
        await self._hosting.place(record.host, order)
        return PlacedOrder(host=record.host, order=order)
