"""The queue and its channel in memory, for tests and for engines measured without Redis. Same contract, one process."""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from shared.errors import QueueFull
from shared.events import Cancelled, Event, Finished
from shared.job import Job
from shared.lifecycle import TERMINAL, Move, State, after, settling
from shared.queue import Delivery, Page, Write, finished


@dataclass(slots=True)
class _Record:
    job: Job
    subscriber: str
    queued_ms: float
    state: State = State.QUEUED
    log: list[Event] = field(default_factory=list)
    exec: str = ""
    worker: str = ""
    attempt: int = 0
    seen_ms: float = 0


class MemoryQueue:
    """`clock_ms` is passed in, so that a test can let leases run out without waiting."""

    def __init__(self, clock_ms: Callable[[], float], *, lease_ms: int = 3000) -> None:
        self._clock_ms = clock_ms
        self._lease_ms = lease_ms
        self._records: dict[str, _Record] = {}
        self._waiting: dict[str, deque[str]] = {}
        self._arrived = asyncio.Event()
        self._tokens = itertools.count()
        self._boxes: dict[str, asyncio.Queue[list[tuple[str, Sequence[Event]]]]] = {}
        self._drops: dict[str, asyncio.Queue[str]] = {}

    async def enqueue(self, job: Job, *, subscriber: str = "", jobs_max: int) -> int:
        waiting = self._waiting.setdefault(job.model, deque())
        if job.id in self._records:
            return len(waiting)
        if len(waiting) >= jobs_max:
            raise QueueFull(f"The queue of model {job.model} is full.", depth=len(waiting), retry_after_s=1)
        self._records[job.id] = _Record(job, subscriber, self._clock_ms())
        waiting.append(job.id)
        self._arrived.set()
        return len(waiting) - 1

    async def claim(self, model: str, *, worker: str, limit: int, wait_ms: int = 0) -> list[Delivery]:
        claimed = self._claim(model, worker, limit)
        if claimed or not wait_ms:
            return claimed
        self._arrived.clear()
        try:
            await asyncio.wait_for(self._arrived.wait(), wait_ms / 1000)
        except TimeoutError:
            return []
        return self._claim(model, worker, limit)

    async def renew(self, held: Sequence[Delivery], *, worker: str) -> list[str]:
        lost = []
        for delivery in held:
            if record := self._owned(delivery):
                record.seen_ms = self._clock_ms()
            else:
                lost.append(delivery.job.id)
        return lost

    async def append(self, writes: Sequence[Write]) -> list[str]:
        lost = []
        for write in writes:
            record = self._owned(write.delivery)
            if record is None or not self._log(record, write.events):
                lost.append(write.delivery.job.id)
        return lost

    async def settle(self, write: Write, *, worker: str) -> bool:
        record = self._owned(write.delivery)
        if record is None:
            return False
        self._move(record, settling(finished(write).outcome))
        record.exec = ""
        return self._log(record, write.events)

    async def release(self, delivery: Delivery, *, worker: str) -> None:
        if record := self._owned(delivery):
            self._move(record, Move.RELEASE)
            record.exec, record.seen_ms = "", float("-inf")
            record.attempt -= 1
            self._arrived.set()

    async def cancel(self, job_id: str) -> State | None:
        record = self._records.get(job_id)
        if record is None or record.state in TERMINAL:
            return record.state if record else None
        before = record.state
        self._move(record, Move.CANCEL)
        record.exec = ""
        self._log(record, (Finished(seq=len(record.log), outcome=Cancelled()),))
        if before is State.QUEUED:
            self._waiting[record.job.model].remove(job_id)
        else:
            self._drops.setdefault(record.worker, asyncio.Queue()).put_nowait(job_id)
        return before

    async def replay(self, job_id: str) -> State | None:
        record = self._records.get(job_id)
        if record is None or record.state is not State.FAILED:
            return record.state if record else None
        self._move(record, Move.REPLAY)
        record.log, record.attempt, record.queued_ms = [], 0, self._clock_ms()
        self._waiting[record.job.model].append(job_id)
        self._arrived.set()
        return State.FAILED

    async def depth(self, model: str) -> int:
        return len(self._waiting.get(model, ()))

    async def listen(self, subscriber: str) -> AsyncIterator[list[tuple[str, Sequence[Event]]]]:
        box = self._boxes.setdefault(subscriber, asyncio.Queue())
        while True:
            yield await box.get()

    async def dropped(self, worker: str) -> AsyncIterator[str]:
        drops = self._drops.setdefault(worker, asyncio.Queue())
        while True:
            yield await drops.get()

    async def read(self, cursors: Sequence[tuple[str, int]]) -> list[Page]:
        pages = []
        for job_id, start in cursors:
            record = self._records.get(job_id)
            pages.append(
                Page(state=record.state, events=tuple(record.log[start:])) if record else Page(state=None, events=())
            )
        return pages

    def _claim(self, model: str, worker: str, limit: int) -> list[Delivery]:
        now = self._clock_ms()
        abandoned = [
            record
            for record in self._records.values()
            if record.job.model == model and record.state is State.STARTED and now - record.seen_ms >= self._lease_ms
        ]
        waiting = self._waiting.setdefault(model, deque())
        claimed = [self._start(record, Move.RECLAIM, worker) for record in abandoned[:limit]]
        while waiting and len(claimed) < limit:
            claimed.append(self._start(self._records[waiting.popleft()], Move.CLAIM, worker))
        return claimed

    def _start(self, record: _Record, move: Move, worker: str) -> Delivery:
        self._move(record, move)
        record.exec, record.worker, record.seen_ms = f"exec-{next(self._tokens)}", worker, self._clock_ms()
        record.attempt += 1
        late = record.attempt == 1 and self._clock_ms() - record.queued_ms > record.job.patience_ms
        return Delivery(
            job=record.job,
            entry_id=record.exec,
            exec=record.exec,
            attempt=record.attempt,
            log=tuple(record.log),
            late=late,
        )

    def _owned(self, delivery: Delivery) -> _Record | None:
        record = self._records.get(delivery.job.id)
        return record if record and record.exec == delivery.exec else None

    @staticmethod
    def _move(record: _Record, move: Move) -> None:
        record.state = after(record.state, move)

    def _log(self, record: _Record, events: Sequence[Event]) -> bool:
        if not events:
            return True
        have, first = len(record.log), events[0].seq
        if have < first:
            return False
        record.log += events[have - first :]
        if record.subscriber:
            self._boxes.setdefault(record.subscriber, asyncio.Queue()).put_nowait([(record.job.id, events)])
        return True
