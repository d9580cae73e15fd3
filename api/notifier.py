"""Sees that what has ended is told to whoever wants to know: responses in the background by the list to which the queue
adds them as they end, batches by whoever ends them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from redis.asyncio import Redis

from api.webhooks import LOOK_S, Webhooks
from shared import keys
from shared.errors import QueueUnavailable
from shared.events import Cancelled, Completed, Event, Finished, FinishReason
from shared.queue import JobChannel
from shared.redis_client import translated

log = logging.getLogger(__name__)
NOTICES_AT_ONCE = 100


class Notifier:
    def __init__(self, clients: Sequence[Redis], *, webhooks: Webhooks, channel: JobChannel) -> None:
        self._clients = clients
        self._webhooks = webhooks
        self._channel = channel

    async def run(self) -> None:
        """For ever; each by itself, since one may be long in answering."""
        hearing = [self._repeat(partial(self._hear, client)) for client in self._clients]
        await asyncio.gather(self._repeat(self._webhooks.run_due), *hearing)

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except QueueUnavailable as error:
                log.warning("webhooks wait for redis", extra={"error": str(error)})
            except Exception:
                log.exception("webhooks were not looked at")
            await asyncio.sleep(LOOK_S)

    async def _hear(self, client: Redis) -> None:
        """A notice goes when its deliveries are written, not before."""
        with translated():
            noticed: Any = await client.lrange(keys.NOTICES, 0, NOTICES_AT_ONCE - 1)
        for notice in noticed:
            job_id, _, tenant = notice.decode().partition(" ")
            (page,) = await self._channel.read([(job_id, 0)])
            await self._webhooks.notify(tenant, f"response.{_end(page.events)}", job_id)
            with translated():
                await client.lrem(keys.NOTICES, 1, notice)


def _end(events: tuple[Event, ...]) -> str:
    """How a response ended."""
    last = events[-1] if events else None
    match last:
        case Finished(outcome=Completed()):
            reasons = [getattr(event, "finish_reason", None) for event in events]
            return "incomplete" if FinishReason.LENGTH in reasons else "completed"
        case Finished(outcome=Cancelled()):
            return "cancelled"
        case _:
            return "failed"
