"""A worker waits while Redis does not serve, and says so once."""

import asyncio
import logging

from shared.domain.errors import QueueUnavailable
from shared.observability.metrics import WorkerMetrics

log = logging.getLogger(__name__)
RETRY_S = 0.2


class RedisOutage:
    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._logged = False

    async def pause(self, verb: str, error: QueueUnavailable) -> None:
        """Count a call that failed, and wait before the next one."""
        self._metrics.redis_errors.inc()
        if not self._logged:
            log.warning("redis does not serve", extra={"verb": verb, "error": str(error)})
        self._logged = True
        await asyncio.sleep(RETRY_S)

    def over(self) -> None:
        """Log the next outage again."""
        self._logged = False
