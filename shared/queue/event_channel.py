"""Events by pub/sub, and the log behind them. Pub/sub may lose messages silently; readers count and read the log."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import Any

import orjson
import redis.exceptions
from redis.asyncio import Redis

from shared.domain.codec import decode_event, event_from_wire
from shared.domain.errors import DecodeError
from shared.domain.events import Event, Failed, Finished
from shared.domain.lifecycle import state_of
from shared.queue.protocols import LogSlice
from shared.redis import keys
from shared.redis.client import translated

log = logging.getLogger(__name__)
RECONNECT_S = 0.2


class RedisChannel:
    def __init__(self, client: Redis) -> None:
        self._redis = client

    async def listen(self, subscriber: str) -> AsyncIterator[list[tuple[str, Sequence[Event]]]]:
        async for message in self._messages(keys.events_channel(subscriber)):
            try:
                published = list(orjson.loads(message))
            except (TypeError, ValueError) as error:
                log.warning("a published batch cannot be read", extra={"error": str(error)})
                continue
            yield list(_heard(published))

    async def dropped(self, worker: str) -> AsyncIterator[str]:
        async for message in self._messages(keys.control_channel(worker)):
            yield message.decode()

    async def wanted(self) -> AsyncIterator[str]:
        """Yield the names of models that wait for a worker or for an order's execution, as hosts hear of them."""
        async for message in self._messages(keys.WANTED):
            yield message.decode()

    async def previous(self, job_id: str) -> tuple[Event, ...]:
        """Return the events that the job had written before `rq requeue` ran it again."""
        with translated():
            rows: Any = await self._redis.lrange(keys.previous(job_id), 0, -1)
        return tuple(_events(0, rows))

    async def read(self, cursors: Sequence[tuple[str, int]]) -> list[LogSlice]:
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for job_id, start in cursors:
                    # The state first: if it says ended, the log read after it holds the end.
                    pipe.hget(keys.job(job_id), "status")
                    pipe.lrange(keys.log(job_id), start, -1)
                answers = await pipe.execute()
        return [
            LogSlice(state=None if status is None else state_of(status), events=tuple(_events(start, rows)))
            for (_, start), status, rows in zip(cursors, answers[::2], answers[1::2], strict=True)
        ]

    async def _messages(self, channel: str) -> AsyncIterator[bytes]:
        """Yield messages for ever. A lost connection is opened again; messages published meanwhile are missed."""
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
                if not lost:  # logged once, however long Redis is away
                    log.warning("subscription lost, reconnecting", extra={"channel": channel, "error": str(error)})
                lost = True
                await asyncio.sleep(RECONNECT_S)
            finally:
                with suppress(redis.exceptions.RedisError, OSError):  # the connection is lost anyway
                    await subscription.aclose()  # type: ignore[no-untyped-call]


def _heard(published: Sequence[Any]) -> Iterator[tuple[str, Sequence[Event]]]:
    """Yield the jobs and events of a published batch. A job whose events cannot be decoded is skipped: its reader finds
    them in the log.
    """
    for each in published:
        try:
            job_id, first, events = each
            yield job_id, [event_from_wire(first + i, wire) for i, wire in enumerate(events)]
        except (DecodeError, TypeError, ValueError) as error:
            log.warning("published events cannot be read", extra={"error": str(error)})


def _events(start: int, rows: Sequence[bytes]) -> Iterator[Event]:
    """Yield the events of a log. An event that cannot be decoded is yielded as a failure of the job, and ends them; the
    bytes stay in the log."""
    for seq, row in enumerate(rows, start):
        try:
            yield decode_event(seq, row)
        except DecodeError as error:
            log.error("a log cannot be read", extra={"seq": seq, "error": str(error)})
            message = f"The event {seq} of this job cannot be read by this release of Penstock."
            yield Finished(seq=seq, outcome=Failed(code="internal_error", message=message, detail=str(error)))
            return
