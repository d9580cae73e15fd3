"""Sends webhook deliveries. The queue lists background responses as they end; the process that ends a batch adds its
deliveries itself.

Each delivery is a task of its own, and each tenant's are bounded, so that a slow receiver holds up no other tenant's
deliveries.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from redis.asyncio import Redis

from api.stores.webhook_deliveries import WebhookDelivery, shared_out
from api.stores.webhooks import Webhooks
from shared.domain.errors import NotFound, QueueUnavailable
from shared.domain.events import Cancelled, Completed, Event, Finished, FinishReason
from shared.process.tasks import end
from shared.queue.protocols import EventChannel
from shared.redis import keys
from shared.redis.client import translated

log = logging.getLogger(__name__)
LOOK_S = 1.0
NOTICES_AT_ONCE = 100
TAKEN_AT_ONCE = 100
AT_ONCE = 100
EACH_AT_ONCE = 4  # deliveries of one tenant
BUSY_S = 2.0  # until a delivery that found no room is tried again


class WebhookNotifier:
    def __init__(self, clients: Sequence[Redis], *, webhooks: Webhooks, channel: EventChannel) -> None:
        self._clients = clients
        self._webhooks = webhooks
        self._channel = channel
        self._telling: dict[asyncio.Task[None], str] = {}  # the tenant of each

    async def run(self) -> None:
        """Send for ever. Each Redis has a task of its own, since one may be slow to answer."""
        hearing = [self._repeat(partial(self._hear, client)) for client in self._clients]
        try:
            await asyncio.gather(self._repeat(self._tell_due), *hearing)
        finally:
            await end(list(self._telling))

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except QueueUnavailable as error:
                log.warning("webhooks wait for redis", extra={"error": str(error)})
            except Exception:
                log.exception("webhooks were not looked at")
            await asyncio.sleep(LOOK_S)

    async def _tell_due(self) -> None:
        """Start all due deliveries that find room; put off the others, so that they do not hide later ones."""
        while len(self._telling) < AT_ONCE:
            due = await self._webhooks.queue.claim(TAKEN_AT_ONCE)
            running = Counter(self._telling.values())
            now, wait = shared_out(due, running=running, at_once=AT_ONCE, each_at_once=EACH_AT_ONCE)
            for delivery in now:
                task = asyncio.create_task(self._tell(delivery))
                self._telling[task] = delivery.tenant
                task.add_done_callback(self._telling.pop)
            await self._webhooks.queue.put_off(wait, seconds=BUSY_S)
            if len(due) < TAKEN_AT_ONCE:
                return

    async def _tell(self, delivery: WebhookDelivery) -> None:
        """Attempt a delivery once. If this process fails, the delivery is due again when its lease runs out."""
        queue = self._webhooks.queue
        try:
            endpoint = await self._webhooks.get(delivery.endpoint, tenant=delivery.tenant)
            result = await self._webhooks.send(endpoint, delivery.event, delivery.payload)
            if result.good:
                await queue.remove(delivery)
                return
            if not result.attempted:
                await queue.put_off([delivery], seconds=BUSY_S)
                return
            about = {"delivery": delivery.id, "status": result.status, "error": result.error}
            log.info("webhook not taken", extra=about)
            await queue.retry_later(delivery)
        except NotFound:
            await queue.remove(delivery)
        except QueueUnavailable as error:
            log.warning("a webhook waits for redis", extra={"delivery": delivery.id, "error": str(error)})
        except Exception:
            log.exception("a webhook was not told", extra={"delivery": delivery.id})

    async def _hear(self, client: Redis) -> None:
        """Turn notices into deliveries. A notice is removed only after its deliveries are written."""
        with translated():
            noticed: Any = await client.lrange(keys.NOTICES, 0, NOTICES_AT_ONCE - 1)
        for notice in noticed:
            job_id, _, tenant = notice.decode().partition(" ")
            await self._webhooks.notify(tenant, f"response.{await self._end_of(job_id)}", job_id)
            with translated():
                await client.lrem(keys.NOTICES, 1, notice)

    async def _end_of(self, job_id: str) -> str:
        (page,) = await self._channel.read([(job_id, 0)])
        return _end(page.events)


def _end(events: tuple[Event, ...]) -> str:
    """Return the webhook event of a response's end."""
    last = events[-1] if events else None
    match last:
        case Finished(outcome=Completed()):
            reasons = [getattr(event, "finish_reason", None) for event in events]
            return "incomplete" if FinishReason.LENGTH in reasons else "completed"
        case Finished(outcome=Cancelled()):
            return "cancelled"
        case _:
            return "failed"
