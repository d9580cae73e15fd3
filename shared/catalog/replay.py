"""The replay of failed jobs: find them, and run each once more."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from shared.catalog.api_keys import ApiKeyStore
from shared.catalog.job_records import JobRecord, JobRecords
from shared.catalog.model_registry import ModelRegistry
from shared.domain.codec import decode_job
from shared.domain.errors import DecodeError, InvalidRequest, NotFound
from shared.domain.job import Job, ModelInfo
from shared.domain.lifecycle import State
from shared.domain.suitability import require_suited
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
    empty when there is none. `refusal` says why the other model cannot serve it.
    """

    origin: str
    before: State | None
    job_id: str
    refusal: str = ""

    def body(self) -> dict[str, Any]:
        about = {"job": self.origin, "status": self.before, "replayed_as": self.job_id or None}
        return about | ({"refused": self.refusal} if self.refusal else {})


class Replayer:
    def __init__(
        self, queue: QueueProducer, job_records: JobRecords, model_registry: ModelRegistry, api_keys: ApiKeyStore
    ) -> None:
        self._queue = queue
        self._job_records = job_records
        self._model_registry = model_registry
        self._api_keys = api_keys

    async def find(self, wanted: Filter) -> AsyncIterator[JobRecord]:
        now = time.time()
        for model in await self._job_records.models() if wanted.model == EVERY_MODEL else [wanted.model]:
            async for job_id in self._job_records.all_failed(model):
                record = await self._job_records.record_or_none(job_id)
                if record and wanted.finds(record, now):
                    yield record

    async def target(self, name: str | None) -> ModelInfo | None:
        """Return the model that a replay shall go to, None for a job's own. Raises NotFound for an unknown one."""
        try:
            return await self._model_registry.model(name) if name else None
        except NotFound as error:
            raise NotFound(str(error), code=error.code, param="to_model") from error

    async def replay(
        self, job_ids: Iterable[str], *, rate_per_s: float, to: ModelInfo | None = None
    ) -> AsyncIterator[Replayed]:
        """Replay each job once, at most `rate_per_s` a second; 0 is no limit. With `to`, the new jobs are that model's,
        and a job that it cannot serve stays as it is."""
        for number, job_id in enumerate(job_ids):
            if number and rate_per_s:
                await asyncio.sleep(1 / rate_per_s)
            try:
                if to:
                    await self._require_suited(job_id, to)
                yield await self._replay(job_id, to.name if to else "")
            except InvalidRequest as error:
                yield Replayed(origin=job_id, before=State.FAILED, job_id="", refusal=str(error))

    async def _replay(self, job_id: str, model: str) -> Replayed:
        as_id = f"{job_id.partition('-')[0]}-{secrets.token_hex(16)}"
        before, replayed_as = await self._queue.replay(job_id, as_id=as_id, model=model)
        return Replayed(origin=job_id, before=before, job_id=replayed_as)

    async def _require_suited(self, job_id: str, to: ModelInfo) -> None:
        """Raise InvalidRequest if the model cannot serve the failed job, or if its key may not use the model."""
        record = await self._job_records.record_or_none(job_id)
        if record is None or record.state is not State.FAILED or record.replayed_as:
            return
        try:
            job = decode_job(record.payload.encode())
        except DecodeError as error:
            raise InvalidRequest(f"The job {job_id} cannot be read: {error}") from error
        await self.require_allowed(job, to)

    async def require_allowed(self, job: Job, to: ModelInfo) -> None:
        """Raise InvalidRequest if the model cannot serve the job, or if its key may not use the model."""
        with suppress(NotFound):  # its tenant has no key, or no longer
            key = await self._api_keys.get(job.tenant)
            if key.models and to.name not in key.models:
                raise InvalidRequest(f"The key {key.id} may not use the model '{to.name}'.")
        require_suited(job, to)
