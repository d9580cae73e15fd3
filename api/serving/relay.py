"""Relays one subscription per process to every open stream of events, in order, without a gap or a repeat.

Events from pub/sub are counted; a gap, a silence or an overflow is filled from the job's log. A slow reader holds at
most `buffer_max` events and reads the rest from the log at its own pace.
"""

import asyncio
import logging
import math
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from api.serving.leaving import Leaving
from shared.domain.errors import QueueUnavailable, Stopping
from shared.domain.events import Cancelled, Deadline, Event, Expired, Failed, Finished
from shared.domain.job import Job
from shared.domain.lifecycle import TERMINAL, State
from shared.observability.metrics import ApiMetrics
from shared.process.tasks import end
from shared.queue.protocols import EventChannel, LogSlice, QueueProducer

log = logging.getLogger(__name__)
RETRY_S = 0.2
DIVERGED = Failed(
    code="job_lost", message="Redis has lost a part of this answer, and its new part does not continue it."
)
EXPIRY_GRACE_S = 2.0  # time for a worker to expire the job itself


class JobStream:
    """The events of one job, which one task reads through `Relay.next_events`."""

    def __init__(self, job: Job, *, buffer_max: int, now: float) -> None:
        self.job_id, self.model = job.id, job.model
        self.grace_s = math.inf if job.grace_ms is None else job.grace_ms / 1000
        self.next_seq = 0
        self.heard_at = now
        self.expires_at = math.inf
        self.enqueued = False
        self.ended = False
        self._queue_deadline_s, self._run_s = job.queue_deadline_ms / 1000, job.run_deadline_ms / 1000
        self.behind = False
        self._buffer_max = buffer_max
        self._pending: list[Event] = []
        self._pending_since = now
        self._known = array("q")  # a digest of each event
        self._waiting: asyncio.Future[None] | None = None
        self.not_before_s = job.not_before_ms / 1000
        self.tells_place = False  # its reader passes comments on
        self._comment = self._told = ""

    def mark_enqueued(self, now: float, *, logged: bool) -> None:
        """Note that the job is enqueued, or that nobody knows: from now on its log is read, and leaving it cancels it.
        `logged` means that the job was there before.
        """
        self.enqueued = True
        self.behind = logged
        delay_s = max(self.not_before_s - time.time(), 0)
        self.expires_at = now + delay_s + self._queue_deadline_s + EXPIRY_GRACE_S

    def overdue(self, now: float) -> Deadline | None:
        """Return the deadline that has passed without a worker that expires the job."""
        if self.ended or now <= self.expires_at:
            return None
        return Deadline.RUN if self.next_seq else Deadline.QUEUE

    def hear(self, events: Sequence[Event], now: float) -> None:
        """Buffer the next events; note a gap or an overflow, to be filled from the log."""
        self.heard_at = now
        if not self._pending:
            self._pending_since = now
        if self.next_seq == 0 and events and self._run_s:
            self.expires_at = now + self._run_s + EXPIRY_GRACE_S
        for event in events:
            if self.ended:
                return
            if event.seq < self.next_seq:
                self._compare(event)
                continue
            if event.seq > self.next_seq or len(self._pending) >= self._buffer_max:
                self.behind = True
                break
            self._pending.append(event)
            self._known.append(_digest(event))
            self.next_seq += 1
            self.ended = isinstance(event, Finished)
        self.wake()

    def _compare(self, event: Event) -> None:
        """Compare a repeated event with its first copy, which it must equal; if not, the log lost its end, the answer
        was regenerated differently, and later events would not fit."""
        if _digest(event) != self._known[event.seq]:
            self._pending.append(Finished(seq=self.next_seq, outcome=DIVERGED))
            self.ended = True
            self.wake()

    def fill(self, page: LogSlice, now: float) -> None:
        """Buffer the events of the log. A job that ended without a last event (ended by RQ, or lost) gets one here."""
        self.behind = False
        self.hear(page.events, now)
        if not self.behind and not self.ended and (page.state is None or page.state in TERMINAL):
            outcome = Cancelled() if page.state is State.CANCELED else _lost(page.state)
            self.hear([Finished(seq=self.next_seq, outcome=outcome)], now)

    def ready(self) -> list[Event]:
        """Return all events that can be passed on now."""
        events, self._pending = self._pending, []
        return events

    def tell(self, comment: str) -> None:
        """Let the reader pass a comment on, unless it was the last one."""
        if self.tells_place and comment and comment != self._told:
            self._comment = self._told = comment
            self.wake()

    def take_comment(self) -> str:
        comment, self._comment = self._comment, ""
        return comment

    @property
    def has_comment(self) -> bool:
        return bool(self._comment)

    def lag(self, now: float) -> float:
        """Return for how many seconds the oldest event has waited to be passed on."""
        return now - self._pending_since if self._pending else 0

    def wake(self) -> None:
        """Wake the reader, which looks again at what there is."""
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait(self) -> None:
        """Wait for events or for `wake`. A future costs a third of an asyncio.Event, once for every token."""
        if not self._pending and not self.behind and not self._comment:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting


class Relay:
    """The streams of this process. `name` is its channel. `run` owns the tasks; without it no events arrive."""

    def __init__(
        self,
        name: str,
        *,
        queue: QueueProducer,
        channel: EventChannel,
        silence_ms: int,
        buffer_max: int,
        metrics: ApiMetrics,
    ) -> None:
        self.name = name
        self._channel = channel
        self._silence_s = silence_ms / 1000
        self._buffer_max = buffer_max
        self._metrics = metrics
        self._streams: dict[str, list[JobStream]] = {}
        self._leaving = Leaving(partial(queue.leave, subscriber=name), metrics)
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = [tasks.create_task(work()) for work in (self._hear, self._check_silent, self._leaving.run)]

    def quiet(self) -> None:
        """Prepare for the end of this process: no more jobs are cancelled, since a client whose stream breaks may
        resume it at another process. From now on `next_events` raises Stopping."""
        self._closing = True
        for stream in self._all():
            stream.wake()

    async def close(self) -> None:
        """Leave at once the jobs that are due, then end `run`."""
        await self._leaving.close()
        await end(self._tasks)

    @contextmanager
    def open(self, job: Job) -> Iterator[JobStream]:
        """Open a stream of the job's events before the job is enqueued. When its last stream is closed before the
        end, the job is cancelled after its grace, unless another process reads it."""
        stream = JobStream(job, buffer_max=self._buffer_max, now=self._now())
        self._streams.setdefault(job.id, []).append(stream)
        self._leaving.remove(job.id)
        self._metrics.open_streams.inc()
        try:
            yield stream
        finally:
            self._metrics.open_streams.dec()
            self._streams[job.id].remove(stream)
            if not self._streams[job.id]:
                del self._streams[job.id]
                if stream.enqueued and not stream.ended and not self._closing:
                    self._leaving.add(job.id, grace_s=stream.grace_s)

    def mark_enqueued(self, stream: JobStream, *, logged: bool = False) -> None:
        """Note that the job is enqueued, or that nobody knows. `logged` means that it was there before: its log
        is read first."""
        stream.mark_enqueued(self._now(), logged=logged)

    def waiting(self) -> list[JobStream]:
        """List the streams that tell the place of a job of which nothing has come yet."""
        return [stream for stream in self._all() if stream.tells_place and not stream.next_seq and not stream.ended]

    async def next_events(self, stream: JobStream) -> list[Event]:
        """Return the next events: at least one, and all that are there, so that a busy stream needs fewer writes. There
        are none before a comment of a stream that `tells_place`. Raises Stopping."""
        while True:
            if not self._closing:
                await stream.wait()
            if events := stream.ready():
                self._metrics.events.inc(len(events))
                return events
            if self._closing:
                raise Stopping("the relay stops")
            if stream.has_comment:
                return []
            if stream.behind:
                await self._refill([stream])

    async def _hear(self) -> None:
        """Hear what publish() in lifecycle.lua sends to this process's channel, `keys.events_channel(self.name)`."""
        async for batch in self._channel.listen(self.name):
            now = self._now()
            for job_id, events in batch:
                for stream in self._streams.get(job_id, ()):
                    stream.hear(events, now)

    async def _check_silent(self) -> None:
        """Compare every silent stream with its log, since pub/sub loses messages without a sign."""
        while True:
            await asyncio.sleep(self._silence_s / 2)
            self._expire()
            now = self._now()
            self._metrics.relay_lag.set(max((stream.lag(now) for stream in self._all()), default=0))
            limit = now - self._silence_s
            silent = [s for s in self._all() if s.enqueued and not s.ended and s.heard_at < limit]
            if silent:
                await self._refill(silent)

    def _expire(self) -> None:
        now = self._now()
        for stream in self._all():
            if deadline := stream.overdue(now):
                stream.expires_at = math.inf
                stream.hear([Finished(seq=stream.next_seq, outcome=Expired(deadline=deadline))], now)
                self._leaving.add(stream.job_id, grace_s=0)

    async def _refill(self, streams: list[JobStream]) -> None:
        try:
            pages = await self._channel.read([(stream.job_id, stream.next_seq) for stream in streams])
        except QueueUnavailable as error:
            self._metrics.redis_errors.inc()
            log.warning("the log cannot be read", extra={"error": str(error), "streams": len(streams)})
            await asyncio.sleep(RETRY_S)
            return
        self._metrics.refills.inc(len(streams))
        for stream, page in zip(streams, pages, strict=True):
            stream.fill(page, self._now())

    def _all(self) -> list[JobStream]:
        return [stream for streams in self._streams.values() for stream in streams]

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _digest(event: Event) -> int:
    """Return a digest of the event. An event with a field that is not plain data has no known writer: it is passed on,
    to fail in its reader, and must not fail the whole relay."""
    try:
        return hash(event)
    except TypeError:
        return 0


def _lost(state: State | None) -> Failed:
    if state is None:
        return Failed(code="job_lost", message="The job is no longer in the queue: somebody deleted it.")
    return Failed(code="job_lost", message=f"The job was ended outside of Penstock as {state}.")
