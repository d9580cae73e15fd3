"""`/v1/jobs/{id}`: look at a job, resume its stream, cancel it. Each tenant sees only its own."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.http.auth import caller_of
from api.http.event_position import position_after, sequence_number_after
from api.http.request_options import LastEventId, StartingAfter
from api.serving.render_options import RenderOptions, decode_render_options
from api.serving.respond import resume_stream
from api.serving.services import Services, ServicesDep
from api.stores.responses import RESPONSE_PREFIX
from shared.catalog.hosting import best_of
from shared.catalog.job_records import JobRecord
from shared.domain.errors import NotFound
from shared.domain.lifecycle import State

router = APIRouter()


@router.get("/v1/jobs/{job_id}", response_model=None)
async def retrieve_job(job_id: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Show the state of a job."""
    record, render_options = await _mine(services, job_id, request)
    waiting = await _waiting_for(services, record) if record.state is State.QUEUED else {}
    return job_object(record) | {"created": render_options.created_ms // 1000} | waiting


@router.get("/v1/jobs/{job_id}/events", response_model=None)
async def stream_job_events(
    job_id: str,
    request: Request,
    services: ServicesDep,
    starting_after: StartingAfter = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Resume the job's stream behind the frame `starting_after` or `Last-Event-ID`, in the format of its endpoint, each
    frame with its `id`. This works while the job waits, runs, and as long as it is kept."""
    found, render_options = await _mine(services, job_id, request)
    job = render_options.job(job_id, model=found.model, priority=found.priority, not_before_ms=found.not_before_ms)
    if job_id.startswith(RESPONSE_PREFIX):
        record = await services.responses.get(job_id, tenant=render_options.tenant)
        formatter = record.stream(job, ids=True, after=sequence_number_after(starting_after, last_event_id))
    else:
        after = position_after(starting_after, last_event_id)
        formatter = render_options.formatter().stream(job, ids=True, after=after)
    return await resume_stream(services, job, formatter)


@router.post("/v1/jobs/{job_id}/cancel", response_model=None)
async def cancel_job(job_id: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Cancel a job unless it has ended."""
    await _mine(services, job_id, request)
    await services.queue.cancel(job_id, by="request")
    return await retrieve_job(job_id, request, services)


def job_object(record: JobRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "object": "job",
        "model": record.model,
        "status": record.state,
        "priority": record.priority,
        "attempts": record.attempts,
        "enqueued_at": record.enqueued_at,
        "started_at": record.started_at or None,
        "ended_at": record.ended_at or None,
        "not_before": record.not_before_ms / 1000 or None,
        "deadline": record.due_ms / 1000 or None,
        "replay_of": record.replay_of or None,
        "replayed_as": record.replayed_as or None,
    }


async def _waiting_for(services: Services, record: JobRecord) -> dict[str, Any]:
    """Say what is served before a queued job, and whether its model must be loaded first, for how long that may take.
    Nothing is said of a model that no host has."""
    left_s = await services.hosted_models.load_left_s(record.model)
    waiting: dict[str, Any] = {}
    if (place := (await services.places.read([record.id])).get(record.id)) and place.state is State.QUEUED:
        wait_s = round(place.wait_s + left_s, 1)
        about = {"tokens_ahead": place.tokens_ahead, "estimated_wait_s": wait_s}
        waiting = {"position": place.ahead + 1, **about}
    if records := await services.hosted_models.of(record.model):
        waiting |= {"model_state": best_of(records).state, "load_left_s": round(left_s, 1)}
    return waiting


async def _mine(services: Services, job_id: str, request: Request) -> tuple[JobRecord, RenderOptions]:
    """Return the caller's job. Raises NotFound for a job of another tenant, too."""
    record = await services.job_records.record(job_id)
    if record.view:
        render_options = decode_render_options(record.view)
        if render_options.tenant == caller_of(request).tenant:
            return record, render_options
    raise NotFound(f"There is no job {job_id}.")
