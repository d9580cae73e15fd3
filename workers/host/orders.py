"""Carries out what operators order, and tells them how it went."""

import math
from collections.abc import Callable, Mapping

from shared.catalog.hosting import DONE
from shared.domain.hosting import Order, OrderVerb, When
from workers.host.fleet import Fleet
from workers.host.machine import WorkerState
from workers.host.remembered import Memory
from workers.host.standing import Standing

Outcomes = dict[str, str]  # by the order's id
ORDERED = "an operator ordered it"


class Orders:
    """`outcomes` are those that nobody was told yet. An order to load or to keep is done when the model is
    ready, and one to unload when its workers are gone."""

    def __init__(self, fleet: Fleet, memory: Memory, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._memory = memory
        self._clock = clock
        self.outcomes: Outcomes = {}

    def take(self, order: Order, standings: Mapping[str, Standing]) -> None:
        named = [order.model, *([order.instead] if order.verb is OrderVerb.SWITCH else [])]
        if missing := [name for name in named if name not in standings]:
            self.outcomes[order.id] = f"this host has no model {missing[0]!r}"
            return
        standing = standings[order.model]
        match order.verb:
            case OrderVerb.LOAD:
                self._load(order.id, standing)
            case OrderVerb.UNLOAD:
                self._unload(standing, order.when)
                standing.unloading.append(order.id)
            case OrderVerb.SWITCH:
                self._unload(standing, order.when)
                self._load(order.id, standings[order.instead])
            case OrderVerb.KEEP:
                spec = standing.spec
                self._memory.note(spec.name, spec.digest, kept_until_s=order.until_s)
                if order.until_s:
                    self._load(order.id, standing)
                else:
                    self.outcomes[order.id] = DONE

    def look(self, standings: Mapping[str, Standing]) -> None:
        """End the orders whose model is ready, is gone, or could not be loaded; unload what has become idle."""
        for name, standing in standings.items():
            if standing.unload_when is When.IDLE and not standing.workload.running:
                self._stop(standing, When.IDLE)
            if self._fleet.of(name, WorkerState.READY):
                self._end(standing.loading, DONE)
            elif standing.reason and not self._fleet.of(name):
                self._end(standing.loading, standing.reason)
            if not self._fleet.of(name):
                standing.unload_when = None
                self._end(standing.unloading, DONE)

    def drop(self, standing: Standing) -> None:
        """End the orders for a model that has left the file."""
        self._end(standing.loading, "the model is not in the file any more")
        self._end(standing.unloading, DONE)

    def _load(self, order_id: str, standing: Standing) -> None:
        standing.loaded()
        standing.unload_when = None
        standing.loading.append(order_id)

    def _unload(self, standing: Standing, when: When) -> None:
        spec = standing.spec
        if self._memory.of(spec.name, spec.digest).kept_until_s:
            self._memory.note(spec.name, spec.digest, kept_until_s=0.0)
        self._end(standing.loading, "another order unloads the model")
        standing.unload_when = when
        if when is not When.IDLE:
            self._stop(standing, when)

    def _stop(self, standing: Standing, when: When) -> None:
        now = self._clock()
        standing.absent_since_s = now
        if math.isinf(standing.unloaded_s):
            standing.unloaded_s = now
        for worker in self._fleet.of(standing.spec.name):
            if when is When.NOW or not worker.record.stopping:
                self._fleet.stop(worker, when, ORDERED, now)

    def _end(self, waiting: list[str], outcome: str) -> None:
        self.outcomes |= dict.fromkeys(waiting, outcome)
        waiting.clear()
