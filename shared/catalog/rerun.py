"""Reruns of kept jobs: the same request once more as another job, with changes. The job itself stays as it is."""

import secrets
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from shared.catalog.job_records import JobRecord, JobRecords
from shared.catalog.replay import EVERY_MODEL, Replayer
from shared.domain.codec import decode_job
from shared.domain.errors import DecodeError, InvalidRequest, NotFound, QueueFull
from shared.domain.job import Job, Kind, ModelInfo, Priority
from shared.domain.lifecycle import State
from shared.domain.suitability import require_fit
from shared.queue.protocols import Origin, QueueProducer, bounds_of
from shared.settings import Settings

RERUN_MAX = 1000  # jobs at a time
EXAMINED_MAX = 10_000  # jobs of a model that are looked at for those that are selected
ID_PREFIXES = {Kind.CHAT: "chatcmpl", Kind.COMPLETION: "cmpl", Kind.EMBEDDING: "embd", Kind.TOKENS: "tok"}
NOT_KEPT = "Its request is not kept. Set PENSTOCK_KEEP_REQUESTS=true for the API to keep the requests of later jobs."


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """A rerun has this model (which may be an adapter's name), this class, and these sampling parameters, by their
    names in `Sampling`. All that is None or not named stays as it was, the seed included."""

    model: str | None = None
    priority: Priority | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Selects kept jobs in one state, of a model or of every model (`*`), newest first if they have ended: those that
    came within `since_s` seconds and belong to `tenant`, at most `limit`. A filter that is None selects all."""

    model: str
    state: State
    since_s: float | None = None
    tenant: str | None = None
    limit: int = RERUN_MAX

    def finds(self, record: JobRecord, now_s: float) -> bool:
        recent = self.since_s is None or record.queued_s >= now_s - self.since_s
        return recent and self.tenant in (None, record.tenant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """A job that was run again as `job_id`, which is empty if `refusal` says why it was not."""

    origin: str
    job_id: str
    refusal: str = ""

    def body(self) -> dict[str, Any]:
        return {"job": self.origin, "rerun_as": self.job_id or None} | (
            {"refused": self.refusal} if self.refusal else {}
        )


class Rerunner:
    def __init__(self, queue: QueueProducer, job_records: JobRecords, replayer: Replayer, settings: Settings) -> None:
        self._queue = queue
        self._job_records = job_records
        self._replayer = replayer
        self._settings = settings

    async def find(self, wanted: Selection) -> list[str]:
        """List the ids of the selected jobs, among EXAMINED_MAX of each model."""
        found: list[tuple[float, str]] = []
        for model in await self._job_records.models() if wanted.model == EVERY_MODEL else [wanted.model]:
            found += await self._find_in(model, wanted, time.time())
        found.sort(key=lambda each: each[0], reverse=True)
        return [job_id for _, job_id in found[: wanted.limit]]

    async def rerun_all(self, job_ids: Sequence[str], changes: Changes) -> AsyncIterator[Rerun]:
        """Run each job again, in the batch class unless the changes name another one. A job that cannot be run again
        does not hold up the next. Raises NotFound for an unknown model, and InvalidRequest for too many jobs."""
        if len(job_ids) > RERUN_MAX:
            raise InvalidRequest(f"At most {RERUN_MAX} jobs may be run again at a time.", param="jobs")
        to = await self._replayer.target(changes.model)
        changes = replace(changes, priority=changes.priority or Priority.BATCH)
        for job_id in job_ids:
            try:
                yield await self._rerun(job_id, changes, to)
            except (InvalidRequest, NotFound, QueueFull) as error:
                yield Rerun(origin=job_id, job_id="", refusal=str(error))

    async def rerun(self, job_id: str, changes: Changes) -> Rerun:
        """Run one job again, in its own class unless the changes name another one. Raises NotFound, InvalidRequest or
        QueueFull."""
        return await self._rerun(job_id, changes, await self._replayer.target(changes.model))

    async def _find_in(self, model: str, wanted: Selection, now_s: float) -> list[tuple[float, str]]:
        """Return when each selected job of a model ended (0 if it has not), and its id."""
        found: list[tuple[float, str]] = []
        for job_id in await self._job_records.ids(model, wanted.state, limit=EXAMINED_MAX):
            record = await self._job_records.record_or_none(job_id)
            if record and wanted.finds(record, now_s):
                found.append((record.ended_s, job_id))
            if len(found) == wanted.limit:
                break
        return found

    async def _rerun(self, job_id: str, changes: Changes, to: ModelInfo | None) -> Rerun:
        record = await self._job_records.record(job_id)
        before = _request_of(record)
        if to and to.name != before.model:
            await self._replayer.require_allowed(before, to)
        job = self._changed(before, changes)
        if to:
            require_fit(job, to)
        origin = Origin(job_id=job_id, counts_cost=record.counts_cost)
        options = _render_options(record.view, job)
        bounds = bounds_of(self._settings)
        accepted = await self._queue.enqueue(job, bounds=bounds, render_options=options, origin=origin)
        return Rerun(origin=job_id, job_id=accepted.job_id)

    def _changed(self, job: Job, changes: Changes) -> Job:
        """Return the new job. Nobody waits for it, so nobody's leaving cancels it, and no webhook tells its end. It has
        no due date, and so it may wait for longer than a job that had one."""
        if changes.sampling and job.kind not in (Kind.CHAT, Kind.COMPLETION):
            param = min(changes.sampling)
            raise InvalidRequest(f"'{param}' must not be changed: a job of kind {job.kind} has none.", param=param)
        priority = changes.priority or job.priority
        moved = priority is not job.priority
        queue_s, run_s = self._settings.queue_deadline(priority), self._settings.run_deadline(priority)
        sampling: dict[str, Any] = changes.sampling | ({"seeded": True} if "seed" in changes.sampling else {})
        return replace(
            job,
            id=f"{ID_PREFIXES[job.kind]}-{secrets.token_hex(16)}",
            model=changes.model or job.model,
            created_ms=int(time.time() * 1000),
            priority=priority,
            queue_deadline_ms=int(queue_s * 1000) if moved or job.due_ms else job.queue_deadline_ms,
            run_deadline_ms=int(run_s * 1000) if moved else job.run_deadline_ms,
            sampling=replace(job.sampling, **sampling),
            grace_ms=None,
            keep_s=0,
            notify=False,
            not_before_ms=0,
            due_ms=0,
        )


def sampling_changes(given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the sampling parameters that were given; a list of stop sequences becomes a tuple."""
    values = {name: value for name, value in given if value is not None and value != ()}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _request_of(record: JobRecord) -> Job:
    """Return the job as it was admitted. Raises InvalidRequest if its request is gone or cannot be read."""
    if not record.payload:
        raise InvalidRequest(NOT_KEPT)
    try:
        return decode_job(record.payload.encode())
    except DecodeError as error:
        raise InvalidRequest(f"The job {record.id} cannot be read: {error}") from error


def _render_options(stored: str, job: Job) -> str:
    """Return the options that rebuild the stream of the job's answer, with the job's own deadlines and grace."""
    if not stored:
        return ""
    about = {"patience_ms": job.queue_deadline_ms, "run_ms": job.run_deadline_ms, "grace_ms": job.grace_ms}
    return orjson.dumps(orjson.loads(stored) | about | {"created_ms": job.created_ms}).decode()
