"""`/v1/responses`: create, stream, retrieve, resume, cancel and delete. Each key sees only its own."""

import logging
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response

from api.formats.listing import listing, page_of
from api.formats.response import item_object
from api.http.auth import caller_of
from api.http.event_position import sequence_number_after
from api.http.json_route import JsonRoute
from api.http.problems import Problem, Refused
from api.http.request_options import LastEventId, RequestOptionsDep, StartingAfter
from api.schemas.response import CompactRequest, InputTokensRequest, ResponseRequest
from api.serving.render_options import decode_render_options
from api.serving.respond import respond, respond_whole, resume_stream, submit
from api.serving.response_chat import named_as_sent
from api.serving.response_history import history_of
from api.serving.response_items import response_now
from api.serving.response_submission import compaction_submission, input_tokens_submission
from api.serving.services import Services, ServicesDep
from api.serving.submission import response_submission
from api.stores.responses import ResponseRecord, record_of
from shared.domain.errors import InvalidRequest, PenstockError

log = logging.getLogger(__name__)
router = APIRouter(route_class=JsonRoute)


@router.post("/v1/responses", response_model=None)
async def create_response(
    body: ResponseRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Create a response: complete, streamed or in the background. One in the background goes on when its client
    leaves."""
    priority = services.admission.priority(options, body.service_tier)
    tenant = options.caller.tenant
    history = await history_of(services, body, tenant=tenant)
    record = record_of(body, tenant, priority=priority, history=history)
    store = body.store is not False
    submission = await response_submission(services, body, options, record, store=store, after_ms=history.last_ms)
    if record.background and not body.stream:
        job, headers = await submit(services, submission, options)
        assert isinstance(submission.formatter, ResponseRecord)
        answer: Response = JSONResponse(submission.formatter.builder(job.id).body(), headers=headers)
    else:
        with named_as_sent():
            answer = await respond(services, submission, options, request, streamed=bool(body.stream))
    if history.conversation:
        await _let_live_on(services, history.conversation.id)
    return answer


@router.get("/v1/responses", include_in_schema=False)
async def refuse_websocket(request: Request) -> Response:
    """Refuse a WebSocket by the status at which Codex asks by POST at once. For any other request, the method is
    wrong."""
    if request.headers.get("upgrade", "").lower() != "websocket":
        raise HTTPException(405, "Method Not Allowed", {"allow": "POST"})
    message = "Responses are served by POST here, not by a WebSocket."
    raise Refused(Problem(code="websocket_not_served", message=message))


async def _let_live_on(services: Services, conversation_id: str) -> None:
    """Let the conversation live as long as its new response, unless it was deleted meanwhile. If that fails, the
    response is there all the same."""
    try:
        conversation = await services.conversations.get(conversation_id)
        await services.queue.store(services.conversations.stored(conversation))
    except PenstockError as error:
        log.warning("a conversation does not live on", extra={"conversation": conversation_id, "error": str(error)})


@router.post("/v1/responses/input_tokens", response_model=None)
async def count_input_tokens(
    body: InputTokensRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Count the tokens that a response of this body would read."""
    history = await history_of(services, body, tenant=options.caller.tenant)
    submission = await input_tokens_submission(services, body, options, history.items)
    with named_as_sent():
        return await respond_whole(services, submission, options, request)


@router.post("/v1/responses/compact", response_model=None)
async def compact_conversation(
    body: CompactRequest, request: Request, options: RequestOptionsDep, services: ServicesDep
) -> Response:
    """Let the model summarise a conversation. The answer has what the user said, and an item with the summary: both are
    the input of the next response, in place of the conversation."""
    history = await history_of(services, body, tenant=options.caller.tenant)
    submission = await compaction_submission(services, body, options, history.items)
    with named_as_sent():
        return await respond_whole(services, submission, options, request)


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
    return listing([item_object(items[item_id]) for item_id in wanted], more=more)
