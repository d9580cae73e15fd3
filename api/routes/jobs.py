"""`/v1/jobs/{id}`: look at a job, pick up its stream, cancel it. Only for the tenant whose job it is."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api.auth import caller_of
from api.exchange import pick_up
from api.formats.position import position_after, sequence_number_after
from api.house import House, house_of
from api.responses import RESPONSE_PREFIX
from api.terms import LastEventId, StartingAfter
from api.view import View, decode_view
from shared.errors import NotFound
from shared.ledger import JobRecord

router = APIRouter()


@router.get("/v1/jobs/{job_id}", response_model=None)
async def retrieve_job(job_id: str, request: Request, house: Annotated[House, Depends(house_of)]) -> dict[str, Any]:
    """What became of a job."""
    record, view = await _mine(house, job_id, request)
    return job_object(record) | {"created": view.created_ms // 1000}


@router.get("/v1/jobs/{job_id}/events", response_model=None)
async def stream_job_events(
    job_id: str,
    request: Request,
    house: Annotated[House, Depends(house_of)],
    starting_after: StartingAfter = None,
    last_event_id: LastEventId = None,
) -> Response:
    """The job's stream from the frame after `starting_after` or `Last-Event-ID` on, in the shape of its endpoint, each
    frame with its `id`: while the job waits, runs, and as long as it is kept."""
    _, view = await _mine(house, job_id, request)
    job = view.job(job_id)
    if job_id.startswith(RESPONSE_PREFIX):
        record = await house.responses.get(job_id, tenant=view.tenant)
        chunks = record.stream(job, ids=True, after=sequence_number_after(starting_after, last_event_id))
    else:
        chunks = view.stream(job, ids=True, after=position_after(starting_after, last_event_id))
    return await pick_up(house, job, chunks)


@router.post("/v1/jobs/{job_id}/cancel", response_model=None)
async def cancel_job(job_id: str, request: Request, house: Annotated[House, Depends(house_of)]) -> dict[str, Any]:
    """Cancel a job unless it has ended."""
    await _mine(house, job_id, request)
    await house.queue.cancel(job_id, by="request")
    return await retrieve_job(job_id, request, house)


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
        "replay_of": record.replay_of or None,
        "replayed_as": record.replayed_as or None,
    }


async def _mine(house: House, job_id: str, request: Request) -> tuple[JobRecord, View]:
    """A job of another tenant is as good as none."""
    record = await house.ledger.record(job_id)
    if record.view:
        view = decode_view(record.view)
        if view.tenant == caller_of(request).tenant:
            return record, view
    raise NotFound(f"There is no job {job_id}.")
