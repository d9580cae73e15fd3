"""Whether Redis has memory for more jobs. Asked once a second, so that a request costs nothing: jobs that run must
always be able to write, so new ones stop before memory does."""

import asyncio
import logging
from typing import Any

from redis.asyncio import Redis

from shared.errors import QueueFull, QueueUnavailable
from shared.redis_client import memory_share, translated

log = logging.getLogger(__name__)
PAUSE_S = 1.0
RETRY_AFTER_S = 10


class Pressure:
    def __init__(self, client: Redis, *, share_max: float) -> None:
        self._redis = client
        self._share_max = share_max
        self.share = 0.0

    def check(self) -> None:
        """Raise QueueFull while Redis is short of memory."""
        if self.share >= self._share_max:
            raise QueueFull(
                f"The queue's memory is {self.share:.0%} full.",
                reason="redis_memory",
                position=0,
                wait_s=0,
                retry_after_s=RETRY_AFTER_S,
            )

    async def run(self) -> None:
        while True:
            try:
                with translated():
                    info: Any = await self._redis.info("memory")
                self.share = memory_share(info)
            except QueueUnavailable as error:
                log.warning("memory of redis unknown", extra={"error": str(error)})
            await asyncio.sleep(PAUSE_S)
