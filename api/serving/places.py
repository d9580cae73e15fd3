"""Tells waiting streams where their jobs stand, by comments in the stream. All streams of a process are looked up by
one question to each Redis."""

import asyncio
import logging
import time
from collections.abc import Sequence

from api.serving.hosted_models import HostedModels
from api.serving.relay import JobStream, Relay
from shared.catalog.hosting import best_of
from shared.catalog.places import Place
from shared.domain.errors import QueueUnavailable
from shared.domain.hosting import HostedModel, HostedState, load_left_s
from shared.domain.lifecycle import State
from shared.sharded_catalog import ShardedPlaces

log = logging.getLogger(__name__)
LOOK_S = 1.0
STREAMS_MAX = 1000  # that are told; more than that wait without


class PlaceTeller:
    def __init__(self, relay: Relay, reader: ShardedPlaces, hosted_models: HostedModels) -> None:
        self._relay = relay
        self._reader = reader
        self._hosted_models = hosted_models

    async def run(self) -> None:
        """Tell the streams for ever, each at most once in `LOOK_S`, and only what has changed."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except QueueUnavailable as error:
                log.info("places are not known", extra={"error": str(error)})

    async def look(self) -> None:
        streams = self._relay.waiting()[:STREAMS_MAX]
        if not streams:
            return
        places = await self._reader.read([stream.job_id for stream in streams])
        for stream in streams:
            if place := places.get(stream.job_id):
                stream.tell(comment_of(place, stream, await self._hosted_models.of(stream.model), time.time()))


def comment_of(place: Place, stream: JobStream, hosted: Sequence[HostedModel], now_s: float) -> str:
    """Say in a few words where the job stands; '' if there is nothing to say. `hosted` is its model on hosts."""
    if place.state is State.SCHEDULED:
        return f"scheduled for {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(stream.not_before_s))}"
    if place.state is not State.QUEUED:
        return ""
    parts = [f"position {place.ahead + 1}"]
    if hosted and (best := best_of(hosted)).state is HostedState.LOADING:
        parts.append(f"the model loads ({best.progress:.0%})")
    if wait_s := place.wait_s + load_left_s(hosted, now_s):
        parts.append(f"about {_rounded(wait_s)} s")
    return ", ".join(parts)


def _rounded(seconds: float) -> int:
    """Round to steps that grow with the wait, so that a long wait is not told anew each second."""
    step = next((step for limit, step in ((20, 1), (60, 5), (600, 30)) if seconds < limit), 60)
    return max(round(seconds / step) * step, 1)
