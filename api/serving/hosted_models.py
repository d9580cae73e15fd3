"""Requests learn here what hosts tell of their models. It is read once a second at most, and never refuses one."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from shared.catalog.hosting import Hosting
from shared.domain.durations import seconds_of
from shared.domain.errors import QueueUnavailable
from shared.domain.hosting import HostedModel, load_left_s

log = logging.getLogger(__name__)
KNOWN_FOR_S = 1.0


class HostedModels:
    def __init__(self, hosting: Hosting, clock: Callable[[], float] = time.time) -> None:
        self.hosting = hosting
        self._clock = clock
        self._records: Mapping[str, Sequence[HostedModel]] = {}
        self._until = -math.inf

    async def of(self, model: str) -> Sequence[HostedModel]:
        """Return the model's record on each host that has it, which may be `KNOWN_FOR_S` old, or older while Redis is
        away."""
        if self._clock() >= self._until:
            self._until = self._clock() + KNOWN_FOR_S  # others that come meanwhile take what is known
            try:
                self._records = await self.hosting.all()
            except QueueUnavailable:
                log.warning("what hosts have is not known, while Redis is away")
        return self._records.get(model, ())

    async def load_left_s(self, model: str) -> float:
        """Estimate how long the model still has to be loaded: 0 if it is there, or if nobody can tell."""
        return load_left_s(await self.of(model), self._clock())

    async def keep(self, model: str, keep_alive: float | str | None) -> None:
        """Tell the host how long the model stays loaded after its next work, as its client wrote it. Nothing is told of
        a model that no host has, or while Redis is away."""
        if keep_alive is None or not await self.of(model):
            return
        seconds = seconds_of(keep_alive)
        with suppress(QueueUnavailable):
            await self.hosting.set_keep_alive(model, -1 if math.isinf(seconds) else seconds)
