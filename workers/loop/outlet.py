"""The outlet writes the events of runs to Redis: those of all running jobs by one call, and the last ones of each job
by a call of their own, which settles it."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from shared.domain.errors import QueueUnavailable
from shared.domain.events import Delta, Failed, Finished
from shared.observability.metrics import WorkerMetrics
from shared.queue.protocols import LOST, SETTLED, Delivery, QueueConsumer, Write
from workers.loop.held_jobs import HeldJobs
from workers.loop.redis_outage import RedisOutage
from workers.runners.outbox import Outbox, Update

log = logging.getLogger(__name__)


class Outlet:
    """Its `queue` is a `RedisQueue`; runners put events into its `outbox`."""

    def __init__(
        self,
        worker: str,
        *,
        queue: QueueConsumer,
        held: HeldJobs,
        outbox: Outbox,
        outage: RedisOutage,
        metrics: WorkerMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._worker = worker
        self._queue = queue
        self._held = held
        self._outbox = outbox
        self._outage = outage
        self._metrics = metrics
        self._clock = clock

    async def run(self) -> None:
        """Write events until the outbox is closed and empty."""
        while updates := await self._outbox.take():
            written = [self._timed(update) for update in updates if update.events]
            for update in written:
                if held := self._held.of(update.run.delivery):
                    held.wrote(update.events)
            running = [update for update in written if not isinstance(update.events[-1], Finished)]
            if running:
                await self.append([_write(update) for update in running])
            ended = [update for update in written if isinstance(update.events[-1], Finished)]
            await asyncio.gather(*[self.settle(_write(update)) for update in ended])
            await self._put_back([update.run.delivery for update in updates if update.put_back])

    def _timed(self, update: Update) -> Update:
        """Return the update with the time of its last event, if that ends the job."""
        last = update.events[-1]
        if not isinstance(last, Finished):
            return update
        return replace(update, events=[*update.events[:-1], replace(last, ended_ms=int(self._clock() * 1000))])

    async def append(self, writes: Sequence[Write]) -> None:
        """Write events of jobs that go on, all by one call, until Redis has them or refuses them."""
        while writes:
            try:
                refused = await self._queue.append(writes)
            except QueueUnavailable as error:
                await self._outage.pause("append", error)
                continue
            again = []
            for write in writes:
                length = refused.get(write.delivery.job.id)
                if length == LOST:
                    self._lose(write)
                elif length is not None and (whole := self._with_what_redis_lost(write, length)):
                    again.append(whole)
                elif length is not None:
                    await self._end_with_gap(write.delivery, length)
            writes = again

    async def settle(self, write: Write) -> None:
        """Write the last events of a job, which end it, until Redis has them or another worker has the job."""
        while True:
            try:
                answer = await self._queue.settle(write, worker=self._worker)
            except QueueUnavailable as error:
                await self._outage.pause("settle", error)
                continue
            if answer in (SETTLED, LOST):
                break
            write = self._with_what_redis_lost(write, answer) or _gap(write.delivery, answer)
        if answer == LOST:
            self._lose(write)
        else:
            last = write.events[-1]
            assert isinstance(last, Finished)
            self._held.end(write.delivery, last)

    async def _put_back(self, deliveries: Sequence[Delivery]) -> None:
        """Hand jobs back that cannot be computed here now, for any worker to claim."""
        while deliveries:
            try:
                await self._held.release(deliveries)
                return
            except QueueUnavailable as error:
                await self._outage.pause("release", error)

    def _lose(self, write: Write) -> None:
        """Give up a job whose claim token is no longer valid: its events go nowhere."""
        wasted = sum(len(event.token_ids) for event in write.events if isinstance(event, Delta))
        self._metrics.wasted.labels(write.delivery.job.model).inc(wasted)
        self._metrics.fenced.labels(write.delivery.job.model).inc()
        self._held.lose(write.delivery, found="write")

    def _with_what_redis_lost(self, write: Write, length: int) -> Write | None:
        """The write, after the events that were in the log beyond `length`; None if they are not known here."""
        log.warning("redis has lost the end of a log", extra={"job_id": write.delivery.job.id, "length": length})
        held = self._held.of(write.delivery)
        before = held.log[length : write.events[0].seq] if held else []
        events = (*before, *write.events)
        return replace(write, events=events) if events[0].seq == length else None

    async def _end_with_gap(self, delivery: Delivery, length: int) -> None:
        """End a job whose log has a gap that no worker can fill."""
        if held := self._held.of(delivery):
            held.stop_computing()
        await self.settle(_gap(delivery, length))


def _write(update: Update) -> Write:
    return Write(delivery=update.run.delivery, events=tuple(update.events))


def _gap(delivery: Delivery, length: int) -> Write:
    failed = Failed(code="internal_error", message="A part of the job's log is lost, and no worker has it.")
    return Write(delivery=delivery, events=(Finished(seq=length, outcome=failed),))
