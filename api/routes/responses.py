"""`/v1/responses`: create, stream, retrieve, resume, cancel and delete. Each key sees only its own."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from api.formats.listing import listing, page_of
from api.http.auth import caller_of
from api.http.event_position import sequence_number_after
from api.http.json_route import JsonRoute
from api.http.request_options import LastEventId, RequestOptionsDep, StartingAfter
from api.schemas.response import ResponseInput, ResponseRequest
from api.serving.render_options import decode_render_options
from api.serving.respond import respond, resume_stream, submit
from api.serving.response_items import own_items, response_now
from api.serving.services import Services, ServicesDep
from api.serving.submission import response_submission
from api.stores.responses import ResponseRecord, record_of
from shared.domain.errors import InvalidRequest, NotFound

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/responses", response_model=None)
async def create_response(
    body: ResponseRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Create a response: complete, streamed or in the background. One in the background goes on when its client
    leaves."""
    priority = services.admission.priority(options, body.service_tier)
    tenant = options.caller.tenant
    before, own = await _before(body, services, request), await own_items(services, body, tenant=tenant)
    record = record_of(body, tenant, priority=priority, before=before, own=own)
    submission = await response_submission(services, body, options, record, store=body.store is not False)
    if record.background and not body.stream:
        job, headers = await submit(services, submission, options)
        return JSONResponse(record.builder(job.id).body(), headers=headers)
    return await respond(services, submission, options, request, streamed=bool(body.stream))


async def _mine(response_id: str, request: Request, services: ServicesDep) -> ResponseRecord:
    return await services.responses.get(response_id, tenant=caller_of(request).tenant)


Mine = Annotated[ResponseRecord, Depends(_mine)]


@router.get("/v1/responses/{response_id}", response_model=None)
async def retrieve_response(
    record: Mine,
    services: ServicesDep,
    options: RequestOptionsDep,
    stream: bool = False,
    starting_after: StartingAfter = None,
    last_event_id: LastEventId = None,
    include: Annotated[list[str] | None, Query()] = None,
    include_obfuscation: bool = False,
) -> Response:
    """Return the response as it is now, or stream its events after `starting_after` or `Last-Event-ID` until it
    ends."""
    if starting_after is not None and not stream:
        raise InvalidRequest("'starting_after' is only allowed with 'stream': true.", param="starting_after")
    if include_obfuscation:
        raise InvalidRequest("'include_obfuscation' is not supported here.", param="include_obfuscation")
    if not stream:
        return JSONResponse(await response_now(services, record))
    found = await services.job_records.record(record.id)
    job = decode_render_options(found.view).job(record.id)
    after = sequence_number_after(starting_after, last_event_id)
    return await resume_stream(services, job, record.stream(job, ids=options.event_ids, after=after))


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(record: Mine, services: ServicesDep) -> dict[str, Any]:
    """Cancel a response that was created in the background. One that has ended does not change."""
    if not record.background:
        raise InvalidRequest("Only a response with 'background': true can be cancelled.", param="response_id")
    await services.queue.cancel(record.id, by="request")
    return await response_now(services, record)


@router.delete("/v1/responses/{response_id}")
async def delete_response(record: Mine, services: ServicesDep) -> dict[str, Any]:
    """Delete a response, and cancel it if it still runs."""
    await services.queue.cancel(record.id, by="request")
    await services.queue.discard(services.responses.stored(record))
    return {"id": record.id, "object": "response.deleted", "deleted": True}


@router.get("/v1/responses/{response_id}/input_items")
async def list_input_items(
    record: Mine,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """List the input items of the request, the last first by default."""
    items = {item["id"]: item for item in record.own_items()}
    ids = list(items)[:: 1 if order == "asc" else -1]
    wanted, more = page_of(ids, after=after, limit=limit)
    return listing([_listed(items[item_id]) for item_id in wanted], more=more)


async def _before(body: ResponseInput, services: Services, request: Request) -> list[dict[str, Any]]:
    """Return the conversation that the request continues. Raises InvalidRequest if its last response has no answer."""
    if body.previous_response_id is None:
        return []
    try:
        record = await _mine(body.previous_response_id, request, services)
    except NotFound as error:
        raise NotFound(str(error), param="previous_response_id") from error
    now = await response_now(services, record)
    if now["status"] not in ("completed", "incomplete"):
        message = f"The previous response is {now['status']}; only one with an answer can be continued."
        raise InvalidRequest(message, param="previous_response_id")
    return [*record.items, *now["output"]]


def _listed(item: dict[str, Any]) -> dict[str, Any]:
    """Return the item with a plain text written as a content part."""
    if item["type"] == "message" and isinstance(item["content"], str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        part = {"type": kind, "text": item["content"]}
        return item | {"content": [part | {"annotations": []} if kind == "output_text" else part]}
    return item
