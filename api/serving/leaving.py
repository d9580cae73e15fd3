"""Jobs whose readers have left this process: each is left in the queue after its grace, however slow Redis is."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress

from shared.domain.errors import QueueUnavailable
from shared.observability.metrics import ApiMetrics

log = logging.getLogger(__name__)
JOBS_MAX = 10_000
AT_ONCE = 16  # fewer than the pool has, since requests need connections, too
AGAIN_S = 1.0
CLOSE_S = 2.0
CLOSE_LOOK_S = 0.2


class Leaving:
    """Calls the queue's `leave` for each job when its grace has passed, which cancels the job unless another process
    still reads it."""

    def __init__(self, leave: Callable[[str], Awaitable[None]], metrics: ApiMetrics) -> None:
        self._leave = leave
        self._metrics = metrics
        self._due: dict[str, float] = {}
        self._added = asyncio.Event()
        self._turns = asyncio.Semaphore(AT_ONCE)

    def add(self, job_id: str, *, grace_s: float) -> None:
        """Leave the job after its grace; an infinite one lets it run to its end."""
        if math.isinf(grace_s):
            return
        if len(self._due) >= JOBS_MAX:  # Redis has been away for long; the job runs to its end without a reader
            log.warning("a lost client's job is not cancelled", extra={"job_id": job_id})
            return
        self._due[job_id] = _now() + grace_s
        self._added.set()

    def remove(self, job_id: str) -> None:
        """Keep the job, which has a reader again."""
        self._due.pop(job_id, None)

    async def run(self) -> None:
        """Leave jobs as they become due, for ever."""
        while True:
            self._added.clear()
            await self._leave_due()
            next_due = min(self._due.values(), default=math.inf)
            with suppress(TimeoutError):  # not wait_for, which can swallow a cancel in Python 3.11
                async with asyncio.timeout_at(None if math.isinf(next_due) else next_due):
                    await self._added.wait()

    async def close(self) -> None:
        """Leave all jobs that are due by now."""
        owed = self._owed()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._leave_due()
                while any(job_id in self._due for job_id in owed):
                    await asyncio.sleep(CLOSE_LOOK_S)
                    await self._leave_due()
        except TimeoutError:
            log.warning("jobs of lost clients were not all cancelled")

    def _owed(self) -> list[str]:
        now = _now()
        return [job_id for job_id, due in self._due.items() if due <= now]

    async def _leave_due(self) -> None:
        await asyncio.gather(*map(self._try, self._owed()))

    async def _try(self, job_id: str) -> None:
        """Leave the job; if its Redis is away, try again after a while."""
        async with self._turns:
            if job_id not in self._due:
                return
            try:
                await self._leave(job_id)
            except QueueUnavailable:
                self._metrics.redis_errors.inc()
                if job_id in self._due:
                    self._due[job_id] = _now() + AGAIN_S
            else:
                self.remove(job_id)


def _now() -> float:
    return asyncio.get_running_loop().time()
