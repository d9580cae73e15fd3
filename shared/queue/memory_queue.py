"""The queue and its channels in memory, for tests and for engines measured without Redis: the same contract, within one
process.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from shared.domain.codec import encode_job
from shared.domain.errors import IdempotencyKeyReused, QueueFull, StorageFull
from shared.domain.events import Cancelled, Completed, Deadline, Event, Finished
from shared.domain.job import Job, Kind
from shared.domain.lifecycle import TERMINAL, Move, State, after, settling
from shared.queue.fair_queue import FairQueue
from shared.queue.protocols import (
    ANY_ROOM,
    LOST,
    SETTLED,
    Accepted,
    Bounds,
    Delivery,
    Idempotency,
    InUse,
    LogSlice,
    Origin,
    RateLimits,
    Room,
    StoredRecord,
    Write,
    finished,
)

NEWCOMER_SHARE = 5
RECORD_BYTES = 300
ELSEWHERE_MS = 300


@dataclass(slots=True, eq=False)
class _Record:
    job: Job
    subscribers: list[str]
    queued_ms: float
    trace: str = ""
    state: State = State.QUEUED
    log: list[Event] = field(default_factory=list)
    claim_token: str = ""
    worker: str = ""
    attempt: int = 0
    lease_ms: float = 0
    deadline_ms: float | None = None
    isolated: bool = False
    progressed: bool = False  # since its last claim
    replayed_as: str = ""
    bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.bytes = len(encode_job(self.job))


class MemoryQueue:
    """The queue in memory. `clock_ms` is passed in, so that a test can let leases run out without waiting. Only Redis
    enforces rate limits and quotas.
    """

    def __init__(self, clock_ms: Callable[[], float], *, lease_ms: int = 3000, attempts_max: int = 3) -> None:
        self._clock_ms = clock_ms
        self._lease_ms = lease_ms
        self._attempts_max = attempts_max
        self._records: dict[str, _Record] = {}
        self._running: dict[str, _Record] = {}
        self._lines: dict[str, FairQueue] = {}
        self._keys: dict[str, tuple[str, str]] = {}
        self.stored: dict[str, StoredRecord] = {}  # by key
        self._stored_until_ms: dict[str, float] = {}
        self._suspects: dict[str, str] = {}  # by worker
        self._paused: set[str] = set()
        self._arrived = asyncio.Event()
        self._tokens = itertools.count()
        self._boxes: dict[str, asyncio.Queue[list[tuple[str, Sequence[Event]]]]] = {}
        self._drops: dict[str, asyncio.Queue[str]] = {}

    async def enqueue(
        self,
        job: Job,
        *,
        bounds: Bounds,
        subscriber: str = "",
        idempotency: Idempotency | None = None,
        rate_limits: RateLimits | None = None,
        render_options: str = "",
        trace: str = "",
        record: StoredRecord | None = None,
        origin: Origin | None = None,
    ) -> Accepted:
        line = self._line(job.model)
        accepted = Accepted(job_id=job.id, created_ms=job.created_ms, ahead=line.waiting(job))
        if job.id in self._records:
            return accepted
        if idempotency and (earlier := self._earlier(idempotency)):
            self._subscribe(earlier, subscriber)
            return Accepted(job_id=earlier.job.id, created_ms=earlier.job.created_ms, attached=True)
        if record:
            self._require_storage(record)
        if reason := self._refusal(job, bounds):
            about = {"reason": reason, "position": accepted.ahead + 1}
            raise QueueFull(f"The queue of model {job.model} is full.", **about, wait_s=0, retry_after_s=1)  # type: ignore[arg-type]
        if record:
            await self.store(record)
        if idempotency:
            self._keys[idempotency.key] = job.id, idempotency.fingerprint
        new = _Record(job, [subscriber] if subscriber else [], self._clock_ms(), trace=trace)
        if job.not_before_ms > self._clock_ms():
            new.state = State.SCHEDULED
            self._records[job.id] = new
        else:
            self._accept(new)
        return accepted

    async def charge(self, tenant: str, rate_limits: RateLimits) -> float:
        return 0.0

    async def store(self, record: StoredRecord) -> None:
        self._require_storage(record)
        self.stored[record.key] = record
        self._stored_until_ms[record.key] = self._clock_ms() + record.ttl_s * 1000

    async def discard(self, record: StoredRecord) -> None:
        self.stored.pop(record.key, None)

    async def attach(self, job_id: str, *, subscriber: str) -> State | None:
        record = self._records.get(job_id)
        if record is None:
            return None
        self._subscribe(record, subscriber)
        return record.state

    async def claim(
        self, model: str, *, worker: str, limit: int, room: Room = ANY_ROOM, wait_ms: int = 0
    ) -> list[Delivery]:
        self._queue_due()
        claimed = self._claim(model, worker, limit, room)
        if claimed or not wait_ms:
            return claimed
        self._arrived.clear()
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self._arrived.wait()
        except TimeoutError:
            return []
        return self._claim(model, worker, limit, room)

    async def renew(self, held: Sequence[Delivery], *, worker: str) -> list[str]:
        lost = []
        for delivery in held:
            if record := self._owned(delivery):
                record.lease_ms = self._clock_ms() + self._lease_ms
            else:
                lost.append(delivery.job.id)
        return lost

    async def append(self, writes: Sequence[Write]) -> dict[str, int]:
        refused = {}
        for write in writes:
            record = self._owned(write.delivery)
            if record is None:
                refused[write.delivery.job.id] = LOST
            elif not self._log(record, write.events):
                refused[write.delivery.job.id] = len(record.log)
            elif len(record.log) > 1:
                record.progressed = True
                if record.isolated:
                    record.isolated = False
                    self._suspects.pop(record.worker, None)
        return refused

    async def settle(self, write: Write, *, worker: str) -> int:
        record = self._owned(write.delivery)
        if record is None:
            return LOST
        if write.events[0].seq > len(record.log):
            return len(record.log)
        outcome = finished(write).outcome
        self._close(record, settling(outcome))
        took = outcome.usage.prompt_tokens + outcome.usage.completion_tokens if isinstance(outcome, Completed) else 0
        if record.job.kind is Kind.TOKENS:
            took = record.job.prompt_tokens_estimate
        self._line(record.job.model).charge(record.job, took - _cost(record.job))
        self._log(record, write.events)
        return SETTLED

    async def release(self, held: Sequence[Delivery], *, worker: str) -> None:
        for delivery in held:
            if record := self._owned(delivery):
                self._move(record, Move.RELEASE)
                record.claim_token, record.lease_ms = "", self._clock_ms()
                record.attempt -= 1
                record.queued_ms = self._clock_ms()
        self._suspects.pop(worker, None)
        self._arrived.set()

    async def cancel(self, job_id: str, *, by: str = "its client") -> State | None:
        record = self._records.get(job_id)
        if record is None or record.state in TERMINAL:
            return record.state if record else None
        before = record.state
        if before is State.QUEUED:
            self._line(record.job.model).remove(record.job)
        self._close(record, Move.CANCEL)
        self._log(record, (Finished(seq=len(record.log), outcome=Cancelled()),))
        if before is State.STARTED:
            self._drops.setdefault(record.worker, asyncio.Queue()).put_nowait(job_id)
        return before

    async def leave(self, job_id: str, *, subscriber: str) -> None:
        if record := self._records.get(job_id):
            if others := [other for other in record.subscribers if other != subscriber]:
                record.subscribers = others
            else:
                await self.cancel(job_id)

    async def replay(self, job_id: str, *, as_id: str, model: str = "") -> tuple[State | None, str]:
        record = self._records.get(job_id)
        if record is None or record.state is not State.FAILED:
            return (record.state if record else None), ""
        if not record.replayed_as:
            record.replayed_as = as_id
            self._accept(
                _Record(replace(record.job, id=as_id, model=model or record.job.model, due_ms=0), [], self._clock_ms())
            )
        return State.FAILED, record.replayed_as

    async def depth(self, model: str) -> int:
        return len(self._line(model))

    async def pause(self, model: str, *, paused: bool) -> None:
        (self._paused.add if paused else self._paused.discard)(model)
        self._arrived.set()

    async def forget_model(self, model: str) -> InUse:
        running = sum(record.job.model == model for record in self._running.values())
        scheduled = sum(r.job.model == model and r.state is State.SCHEDULED for r in self._records.values())
        in_use = InUse(jobs=len(self._line(model)) + running + scheduled, workers=0)
        if not in_use:
            self._paused.discard(model)
        return in_use

    async def listen(self, subscriber: str) -> AsyncIterator[list[tuple[str, Sequence[Event]]]]:
        box = self._boxes.setdefault(subscriber, asyncio.Queue())
        while True:
            yield await box.get()

    async def dropped(self, worker: str) -> AsyncIterator[str]:
        drops = self._drops.setdefault(worker, asyncio.Queue())
        while True:
            yield await drops.get()

    async def read(self, cursors: Sequence[tuple[str, int]]) -> list[LogSlice]:
        pages = []
        for job_id, start in cursors:
            record = self._records.get(job_id)
            pages.append(
                LogSlice(state=record.state, events=tuple(record.log[start:]))
                if record
                else LogSlice(state=None, events=())
            )
        return pages

    def _queue_due(self) -> None:
        """Queue the jobs whose time has come."""
        for record in self._records.values():
            if record.state is State.SCHEDULED and record.job.not_before_ms <= self._clock_ms():
                self._move(record, Move.QUEUE)
                record.queued_ms = self._clock_ms()
                self._accept(record)

    def _line(self, model: str) -> FairQueue:
        return self._lines.setdefault(model, FairQueue())

    def _accept(self, record: _Record) -> None:
        self._records[record.job.id] = record
        self._line(record.job.model).push(record.job, record.queued_ms)
        self._arrived.set()

    def _earlier(self, idempotency: Idempotency) -> _Record | None:
        """Return the job that this idempotency key created, if it can still be used."""
        job_id, fingerprint = self._keys.get(idempotency.key, ("", idempotency.fingerprint))
        if fingerprint != idempotency.fingerprint:
            raise IdempotencyKeyReused("This Idempotency-Key came before with another body.")
        record = self._records.get(job_id)
        return record if record and record.state not in (State.FAILED, State.CANCELED) else None

    def _refusal(self, job: Job, bounds: Bounds) -> str:
        line = self._line(job.model)
        if job.not_before_ms > self._clock_ms():
            scheduled = [r for r in self._records.values() if r.state is State.SCHEDULED and r.job.model == job.model]
            return "queue_full" if len(scheduled) >= bounds.jobs_max else ""
        newcomer = line.of_tenant(job) * NEWCOMER_SHARE < bounds.jobs_max
        if len(line) >= bounds.jobs_max * (1 + newcomer / NEWCOMER_SHARE):
            return "queue_full"
        waiting = [r.bytes for r in self._records.values() if r.state is State.QUEUED and r.job.model == job.model]
        if waiting and sum(waiting) + len(encode_job(job)) > bounds.bytes_max:
            return "queue_bytes_full"
        return ""

    def _require_storage(self, record: StoredRecord) -> None:
        now = self._clock_ms()
        self.stored = {key: each for key, each in self.stored.items() if self._stored_until_ms[key] > now}
        own = {key: _bytes(each) for key, each in self.stored.items() if each.tenant == record.tenant}
        if sum((own | {record.key: _bytes(record)}).values()) > record.tenant_bytes_max:
            raise StorageFull(used=sum(own.values()), bytes_max=record.tenant_bytes_max)

    def _subscribe(self, record: _Record, subscriber: str) -> None:
        if subscriber and subscriber not in record.subscribers and record.state not in TERMINAL:
            record.subscribers.append(subscriber)

    def _claim(self, model: str, worker: str, limit: int, room: Room) -> list[Delivery]:
        now, claimed, left = self._clock_ms(), list[Delivery](), room.sequences
        lapsed = [r for r in self._running.values() if r.job.model == model and r.lease_ms <= now]
        for record in lapsed:
            fits = record.job.sequences <= left or now - record.lease_ms > ELSEWHERE_MS
            if left > 0 and fits and len(claimed) < limit and (delivery := self._reclaim(record, worker)):
                claimed.append(delivery)
                left -= record.job.sequences
        while model not in self._paused and len(claimed) < limit and left > 0:
            job = self._line(model).pop(_cost, room.fits)
            if job is None:
                break
            claimed.append(self._start(self._records[job.id], Move.CLAIM, worker, 1))
            left -= job.sequences
        return claimed

    def _reclaim(self, record: _Record, worker: str) -> Delivery | None:
        suspect = self._suspects.get(record.worker) if record.claim_token else None
        attempt = 2 if record.progressed and record.claim_token else record.attempt + 1
        if suspect not in (None, record.job.id):
            attempt = min(attempt, record.attempt)
        if attempt == self._attempts_max and attempt > 1 and worker in self._suspects:
            return None
        return self._start(record, Move.RECLAIM, worker, attempt)

    def _start(self, record: _Record, move: Move, worker: str, attempt: int) -> Delivery:
        self._move(record, move)
        now = self._clock_ms()
        self._running[record.job.id] = record
        record.claim_token, record.worker, record.attempt = f"exec-{next(self._tokens)}", worker, attempt
        record.lease_ms = now + self._lease_ms
        if record.deadline_ms is None and (run_ms := record.job.run_ms(now)):
            record.deadline_ms = now + run_ms
        record.progressed = False
        record.isolated = attempt == self._attempts_max and attempt > 1
        if record.isolated:
            self._suspects[worker] = record.job.id
        left = None if record.deadline_ms is None else record.deadline_ms - now
        late = Deadline.QUEUE if attempt == 1 and now - record.queued_ms > record.job.queue_deadline_ms else None
        return Delivery(
            job=record.job,
            claim_token=record.claim_token,
            attempt=attempt,
            log=tuple(record.log),
            late=Deadline.RUN if left is not None and left <= 0 else late,
            left_ms=left,
            isolated=record.isolated,
            waited_ms=now - record.queued_ms,
            trace=record.trace,
        )

    def _owned(self, delivery: Delivery) -> _Record | None:
        record = self._records.get(delivery.job.id)
        return record if record and record.claim_token == delivery.claim_token else None

    def _close(self, record: _Record, move: Move) -> None:
        self._move(record, move)
        self._running.pop(record.job.id, None)
        if record.isolated:
            self._suspects.pop(record.worker, None)
        record.claim_token, record.isolated = "", False
        if record.job.sequences > 1:
            self._arrived.set()

    @staticmethod
    def _move(record: _Record, move: Move) -> None:
        record.state = after(record.state, move)

    def _log(self, record: _Record, events: Sequence[Event]) -> bool:
        have, first = len(record.log), events[0].seq
        if have < first:
            return False
        record.log += events[have - first :]
        for subscriber in record.subscribers:
            self._boxes.setdefault(subscriber, asyncio.Queue()).put_nowait([(record.job.id, events)])
        return True


def _bytes(record: StoredRecord) -> int:
    return len(record.data.encode()) + RECORD_BYTES


def _cost(job: Job) -> int:
    return job.prompt_tokens_estimate + (256 if job.output_tokens_max is None else job.output_tokens_max)
