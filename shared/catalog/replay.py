"""The replay of failed jobs: find them, and run each once more."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from shared.catalog.job_records import JobRecord, JobRecords
from shared.domain.lifecycle import State
from shared.queue.protocols import QueueProducer

EVERY_MODEL = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Selects failed jobs of a model, or of every model (`*`): jobs that failed within `since_s` seconds, whose failure
    contains the text `error`, and that belong to `tenant`. A filter that is None selects all."""

    model: str
    since_s: float | None = None
    error: str | None = None
    tenant: str | None = None

    def finds(self, record: JobRecord, now_s: float) -> bool:
        recent = self.since_s is None or record.ended_s >= now_s - self.since_s
        alike = self.error is None or self.error.lower() in record.traceback.lower()
        return record.state is State.FAILED and recent and alike and self.tenant in (None, record.tenant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A replayed job. `before` is its state until then, None when there is no such job; `job_id` is the new job's id,
    empty when there is none.
    """

    origin: str
    before: State | None
    job_id: str

    def body(self) -> dict[str, Any]:
        return {"job": self.origin, "status": self.before, "replayed_as": self.job_id or None}


class Replayer:
    def __init__(self, queue: QueueProducer, job_records: JobRecords) -> None:
        self._queue = queue
        self._job_records = job_records

    async def find(self, wanted: Filter) -> AsyncIterator[JobRecord]:
        now = time.time()
        for model in await self._job_records.models() if wanted.model == EVERY_MODEL else [wanted.model]:
            async for job_id in self._job_records.all_failed(model):
                record = await self._job_records.record_or_none(job_id)
                if record and wanted.finds(record, now):
                    yield record

    async def replay(self, job_ids: Iterable[str], *, rate_per_s: float) -> AsyncIterator[Replayed]:
        """Replay each job once, at most `rate_per_s` a second; 0 is no limit."""
        for number, job_id in enumerate(job_ids):
            if number and rate_per_s:
                await asyncio.sleep(1 / rate_per_s)
            prefix = job_id.partition("-")[0]
            before, replayed_as = await self._queue.replay(job_id, as_id=f"{prefix}-{secrets.token_hex(16)}")
            yield Replayed(origin=job_id, before=before, job_id=replayed_as)
