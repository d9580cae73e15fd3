"""Events by pub/sub, and the log behind them. Pub/sub may lose messages silently; readers count and read the log."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import redis.exceptions
from redis.asyncio import Redis

from shared import keys
from shared.codec import decode_event, event_from_wire
from shared.errors import DecodeError
from shared.events import Event
from shared.lifecycle import State
from shared.queue import Page
from shared.redis_client import translated

log = logging.getLogger(__name__)
RECONNECT_S = 0.2


class RedisChannel:
    def __init__(self, client: Redis) -> None:
        self._redis = client

    async def listen(self, subscriber: str) -> AsyncIterator[list[tuple[str, Sequence[Event]]]]:
        async for message in self._messages(keys.events_channel(subscriber)):
            try:
                batch: list[tuple[str, Sequence[Event]]] = [
                    (job_id, [event_from_wire(first + i, wire) for i, wire in enumerate(events)])
                    for job_id, first, events in orjson.loads(message)
                ]
            except (DecodeError, orjson.JSONDecodeError, ValueError) as error:
                log.warning("a published batch cannot be read", extra={"error": str(error)})
                continue
            yield batch

    async def dropped(self, worker: str) -> AsyncIterator[str]:
        async for message in self._messages(keys.control_channel(worker)):
            yield message.decode()

    async def previous(self, job_id: str) -> tuple[Event, ...]:
        """What the job had written before `rq requeue` ran it again."""
        with translated():
            rows: Any = await self._redis.lrange(keys.previous(job_id), 0, -1)
        return tuple(decode_event(seq, row) for seq, row in enumerate(rows))

    async def read(self, cursors: Sequence[tuple[str, int]]) -> list[Page]:
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for job_id, start in cursors:
                    # The state first: if it says ended, the log read after it holds the end.
                    pipe.hget(keys.job(job_id), "status")
                    pipe.lrange(keys.log(job_id), start, -1)
                answers = await pipe.execute()
        pages = []
        for (_, start), status, rows in zip(cursors, answers[::2], answers[1::2], strict=True):
            events = tuple(decode_event(start + i, row) for i, row in enumerate(rows))
            pages.append(Page(state=State(status.decode()) if status else None, events=events))
        return pages

    async def _messages(self, channel: str) -> AsyncIterator[bytes]:
        """Messages for ever. A lost connection is made again; what was published meanwhile is not heard."""
        lost = False
        while True:
            subscription = self._redis.pubsub(ignore_subscribe_messages=True)
            try:
                await subscription.subscribe(channel)
                if lost:
                    log.info("subscribed again", extra={"channel": channel})
                lost = False
                async for message in subscription.listen():
                    yield message["data"]
            except (redis.exceptions.RedisError, OSError) as error:
                if not lost:  # said once, however long Redis is away
                    log.warning("subscription lost, reconnecting", extra={"channel": channel, "error": str(error)})
                lost = True
                await asyncio.sleep(RECONNECT_S)
            finally:
                await subscription.aclose()  # type: ignore[no-untyped-call]
