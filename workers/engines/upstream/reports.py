"""Reports of one worker's upstreams to all workers, through Redis. They are sent while answers go on: without Redis
they are dropped, and each worker goes by what it sees itself."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from shared.domain.errors import QueueUnavailable
from shared.process.tasks import end
from shared.queue.protocols import Quota
from shared.queue.quotas import Breaking, RedisQuotas
from shared.redis.client import connect
from workers.engines.upstream.breaker import FAILURES, FIRST_PAUSE_S, PAUSE_S_MAX, WITHIN_S

log = logging.getLogger(__name__)
SENDING_MAX = 64
CLEAR_S = 1.0  # an upstream that answers says so no more often
BREAKING = Breaking(failures=FAILURES, within_s=WITHIN_S, first_s=FIRST_PAUSE_S, longest_s=PAUSE_S_MAX)


class Reports:
    """Reports that nobody reads, for an upstream that is asked beside the queue."""

    def pause(self, quota: Quota, seconds: float, *, refused: int) -> None:
        """Let no worker claim a job for the quota for so long; `refused` requests count as not sent."""

    def spend(self, quota: Quota, count: int) -> None:
        """Requests were sent that no claim has taken; a negative count of them was taken, and not sent."""

    def fail(self, quota: Quota, opened: Callable[[float], None]) -> None:
        """A request failed. `opened` is told for how many seconds the breaker of all workers is open then."""

    def answer(self, quota: Quota) -> None:
        """The upstream answers."""


class RedisReports(Reports):
    """Use it in one event loop."""

    def __init__(self, redis_url: str) -> None:
        self._redis = connect(redis_url)
        self._quotas = RedisQuotas(self._redis)
        self._sending: set[asyncio.Task[None]] = set()
        self._cleared: dict[str, float] = {}

    async def close(self) -> None:
        await end(self._sending)
        await self._redis.aclose()

    def pause(self, quota: Quota, seconds: float, *, refused: int) -> None:
        self._send(partial(self._quotas.pause, quota, seconds, refused=refused))

    def spend(self, quota: Quota, count: int) -> None:
        if quota.requests or quota.tokens:
            self._send(partial(self._quotas.spend, quota, count))

    def fail(self, quota: Quota, opened: Callable[[float], None]) -> None:
        self._cleared.pop(quota.name, None)
        self._send(partial(self._fail, quota, opened))

    def answer(self, quota: Quota) -> None:
        now = time.monotonic()
        if now - self._cleared.get(quota.name, -CLEAR_S) >= CLEAR_S:
            self._cleared[quota.name] = now
            self._send(partial(self._quotas.clear, quota))

    async def _fail(self, quota: Quota, opened: Callable[[float], None]) -> None:
        if seconds := await self._quotas.fail(quota, BREAKING):
            opened(seconds)

    def _send(self, send: Callable[[], Awaitable[None]]) -> None:
        if len(self._sending) < SENDING_MAX:
            task = asyncio.create_task(_sent(send))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)


async def _sent(send: Callable[[], Awaitable[None]]) -> None:
    try:
        await send()
    except QueueUnavailable as error:
        log.warning("redis was not told of a quota", extra={"error": str(error)})
