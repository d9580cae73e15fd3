"""From one subscription per process to every open stream of events, each in order, without a gap or a repeat.

What is heard by pub/sub is counted; a gap, a silence or an overflow is filled from the job's log. A slow reader holds
at most `buffer_max` events and reads the rest from the log at its own pace.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from shared.errors import DecodeError, QueueUnavailable
from shared.events import Cancelled, Event, Expired, Failed, Finished
from shared.lifecycle import TERMINAL, State
from shared.queue import JobChannel, JobQueue, Page
from shared.tasks import end
from shared.telemetry import ApiMetrics

log = logging.getLogger(__name__)
RETRY_S = 0.2
CANCELS_MAX = 10_000
EXPIRY_GRACE_S = 2.0  # for a worker to expire the job itself


class JobStream:
    """The events of one job. Read by one task through `take`."""

    def __init__(self, job_id: str, *, buffer_max: int, now: float) -> None:
        self.job_id = job_id
        self.next_seq = 0
        self.heard_at = now
        self.expires_at: float | None = None  # set when the job is enqueued
        self.ended = False
        self.behind = False
        self._buffer_max = buffer_max
        self._pending: list[Event] = []
        self._arrived = asyncio.Event()

    @property
    def accepted(self) -> bool:
        return self.expires_at is not None

    def overdue(self, now: float) -> bool:
        """Enqueued, never started, and its queue deadline has passed: no worker runs that would say so."""
        return self.expires_at is not None and self.next_seq == 0 and now > self.expires_at

    def hear(self, events: Sequence[Event], now: float) -> None:
        """Keep what is next; note a gap or an overflow, to be filled from the log."""
        self.heard_at = now
        for event in events:
            if event.seq < self.next_seq or self.ended:
                continue
            if event.seq > self.next_seq or len(self._pending) >= self._buffer_max:
                self.behind = True
                break
            self._pending.append(event)
            self.next_seq += 1
            self.ended = isinstance(event, Finished)
        self._arrived.set()

    def fill(self, page: Page, now: float) -> None:
        """Take what the log says. A job that ended without a last event (by RQ's hand, or lost) gets one here."""
        self.behind = False
        self.hear(page.events, now)
        if not self.behind and not self.ended and (page.state is None or page.state in TERMINAL):
            outcome = Cancelled() if page.state is State.CANCELED else _lost(page.state)
            self.hear([Finished(seq=self.next_seq, outcome=outcome)], now)

    def ready(self) -> list[Event]:
        """All that can be passed on now."""
        events, self._pending = self._pending, []
        self._arrived.clear()
        return events

    async def wait(self) -> None:
        if not self._pending and not self.behind:
            await self._arrived.wait()


class Relay:
    """`name` is this process's channel. `run` owns the tasks; without it nothing is heard."""

    def __init__(
        self,
        name: str,
        *,
        queue: JobQueue,
        channel: JobChannel,
        silence_ms: int,
        buffer_max: int,
        metrics: ApiMetrics,
    ) -> None:
        self.name = name
        self._queue = queue
        self._channel = channel
        self._silence_s = silence_ms / 1000
        self._buffer_max = buffer_max
        self._metrics = metrics
        self._streams: dict[str, JobStream] = {}
        self._cancels: asyncio.Queue[str] = asyncio.Queue(CANCELS_MAX)
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = [tasks.create_task(work()) for work in (self._hear, self._watch, self._cancel)]

    async def close(self) -> None:
        """Cancel what was left behind, then end `run`."""
        try:
            await asyncio.wait_for(self._cancels.join(), 2)
        except TimeoutError:
            log.warning("jobs of lost clients were not all cancelled")
        await end(self._tasks)

    @contextmanager
    def open(self, job_id: str) -> Iterator[JobStream]:
        """Hear the job from its first event; opened before the job is enqueued. Leaving before the end cancels it."""
        stream = JobStream(job_id, buffer_max=self._buffer_max, now=self._now())
        self._streams[job_id] = stream
        self._metrics.open_streams.inc()
        try:
            yield stream
        finally:
            del self._streams[job_id]
            self._metrics.open_streams.dec()
            if stream.accepted and not stream.ended:
                self._abandon(job_id)

    def accept(self, stream: JobStream, *, patience_ms: int) -> None:
        """The job is enqueued, or may be: from now on its log counts, and leaving the stream cancels it."""
        stream.expires_at = self._now() + patience_ms / 1000 + EXPIRY_GRACE_S

    async def take(self, stream: JobStream) -> list[Event]:
        """The next events, at least one; everything that is there, so that a busy stream needs fewer writes."""
        while True:
            await stream.wait()
            if events := stream.ready():
                self._metrics.events.inc(len(events))
                return events
            if stream.behind:
                await self._refill([stream])

    def _abandon(self, job_id: str) -> None:
        try:
            self._cancels.put_nowait(job_id)
        except asyncio.QueueFull:  # Redis has been away for long; the job runs to its end for nobody
            log.warning("a lost client's job is not cancelled", extra={"job_id": job_id})

    async def _hear(self) -> None:
        async for batch in self._channel.listen(self.name):
            now = self._now()
            for job_id, events in batch:
                if stream := self._streams.get(job_id):
                    stream.hear(events, now)

    async def _watch(self) -> None:
        """Pub/sub loses messages without a sign, so every silent stream is compared with its log."""
        while True:
            await asyncio.sleep(self._silence_s / 2)
            self._expire()
            limit = self._now() - self._silence_s
            silent = [s for s in self._streams.values() if s.accepted and not s.ended and s.heard_at < limit]
            if silent:
                await self._refill(silent)

    def _expire(self) -> None:
        now = self._now()
        for stream in [stream for stream in self._streams.values() if stream.overdue(now)]:
            stream.hear([Finished(seq=0, outcome=Expired())], now)
            self._abandon(stream.job_id)

    async def _refill(self, streams: list[JobStream]) -> None:
        try:
            pages = await self._channel.read([(stream.job_id, stream.next_seq) for stream in streams])
        except (QueueUnavailable, DecodeError) as error:
            log.warning("the log cannot be read", extra={"error": str(error), "streams": len(streams)})
            await asyncio.sleep(RETRY_S)
            return
        self._metrics.refills.inc(len(streams))
        for stream, page in zip(streams, pages, strict=True):
            stream.fill(page, self._now())

    async def _cancel(self) -> None:
        """Cancel the jobs of clients that have left, however long Redis takes to listen."""
        while True:
            job_id = await self._cancels.get()
            while True:
                try:
                    await self._queue.cancel(job_id)
                    break
                except QueueUnavailable:
                    await asyncio.sleep(RETRY_S)
            self._cancels.task_done()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _lost(state: State | None) -> Failed:
    if state is None:
        return Failed(code="job_lost", message="The job is no longer in the queue: somebody deleted it.")
    return Failed(code="job_lost", message=f"The job was ended outside of Penstock as {state}.")
