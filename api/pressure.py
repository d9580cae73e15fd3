"""How Redis is. Asked once a second, so that a request costs nothing: jobs that run must always be able to write, so
new ones stop before memory does; and after a restart its file is mended."""

import asyncio
import logging
from typing import Any

from redis.asyncio import Redis

from shared.checkup import mend
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
        self._mended = ""  # the start of Redis that has been seen to

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
                    info: Any = await self._redis.info()
                self.share = memory_share(info)
                if info["run_id"] != self._mended:
                    await mend(self._redis, info)
                    self._mended = info["run_id"]
            except QueueUnavailable as error:
                log.warning("redis cannot be asked how it is", extra={"error": str(error)})
            await asyncio.sleep(PAUSE_S)
