"""Health of each Redis, polled every second, so that requests need not ask. Running jobs must always be able to write,
so new jobs are refused before memory is full. After each start of a Redis it is examined anew, and its append-only
file is rewritten."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from shared.domain.errors import QueueFull, QueueUnavailable, SettingsError
from shared.observability.metrics import ApiMetrics
from shared.redis.client import memory_share, translated
from shared.redis.health import require_healthy, rewrite_aof_once
from shared.settings import Settings

log = logging.getLogger(__name__)
PAUSE_S = 1.0
RETRY_AFTER_S = 10


class RedisMonitor:
    def __init__(self, clients: Sequence[Redis], settings: Settings, metrics: ApiMetrics) -> None:
        """There is one client for each Redis, the home first."""
        self._each = {client: _Watch(client, number, settings, metrics) for number, client in enumerate(clients)}

    def check(self, client: Redis) -> None:
        """Raise QueueFull while this Redis is short of memory, QueueUnavailable while it would lose jobs."""
        self._each[client].check()

    async def run(self) -> None:
        """Poll each Redis for ever, in a task of its own, since one may be slow to answer."""
        await asyncio.gather(*[watch.run() for watch in self._each.values()])


class _Watch:
    """The health of one Redis."""

    def __init__(self, client: Redis, number: int, settings: Settings, metrics: ApiMetrics) -> None:
        self._client = client
        self._settings = settings
        self._up = metrics.redis_up.labels(number)
        self._memory = metrics.redis_memory.labels(number)
        self._share = 0.0
        self._start = ""  # the run id that was examined last
        self._unfit = ""

    def check(self) -> None:
        if self._unfit:
            raise QueueUnavailable(f"The queue accepts no jobs that it would lose: {self._unfit}")
        if self._share >= self._settings.redis_memory_share:
            raise QueueFull(
                f"The queue's memory is {self._share:.0%} full.",
                reason="redis_memory",
                position=0,
                wait_s=0,
                retry_after_s=RETRY_AFTER_S,
            )

    async def run(self) -> None:
        away = False
        while True:
            try:
                await self._look()
                self._up.set(not self._unfit)
                away = False
            except QueueUnavailable as error:
                self._up.set(0)
                if not away:
                    log.warning("redis cannot be asked how it is", extra={"error": str(error)})
                away = True
            await asyncio.sleep(PAUSE_S)

    async def _look(self) -> None:
        with translated():
            info: Any = await self._client.info()
        self._share = memory_share(info)
        self._memory.set(self._share)
        new = info["run_id"] != self._start
        if new:
            await rewrite_aof_once(self._client, info)
        if new or self._unfit:
            await self._examine()
        self._start = info["run_id"]

    async def _examine(self) -> None:
        found = ""
        try:
            await require_healthy(self._client, self._settings)
        except SettingsError as error:
            found = str(error)
        if found not in ("", self._unfit):
            log.error("this redis would lose jobs; it gets none", extra={"error": found})
        self._unfit = found
