"""`/v1/chat/completions/{id}`: stored chat completions. Each key sees only its own."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request

from api.formats.listing import listing, page_of
from api.http.auth import caller_of
from api.http.json_route import JsonRoute
from api.schemas.base import Metadata, Strict
from api.serving.render_options import decode_render_options
from api.serving.services import Services, ServicesDep
from api.stores.pages import Body, PageRequest
from api.stores.stored_chats import StoredChat
from shared.domain.errors import NotFound
from shared.domain.events import Completed, Finished

router = APIRouter(route_class=JsonRoute)


class MetadataUpdate(Strict):
    metadata: Metadata
    """Names and values that replace those that are kept."""


async def _mine(completion_id: str, request: Request, services: ServicesDep) -> StoredChat:
    return await services.chats.get(completion_id, tenant=caller_of(request).tenant)


Mine = Annotated[StoredChat, Depends(_mine)]


@router.get("/v1/chat/completions")
async def list_chat_completions(
    request: Request,
    services: ServicesDep,
    model: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "asc",
) -> dict[str, Any]:
    """List the finished chat completions; `metadata[KEY]=VALUE` selects those with that metadata."""
    tenant = caller_of(request).tenant
    wanted = {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }

    async def pick(ids: Sequence[str]) -> list[Body]:
        found = []
        for chat in await services.chats.get_many(ids):
            if model in (None, chat.model) and wanted.items() <= chat.metadata.items():
                with suppress(NotFound):  # it has not finished
                    found.append(await _body(services, chat))
        return found

    asked = PageRequest(after=after, limit=limit, newest_first=order == "desc")
    bodies, more = await services.chats.page(tenant, asked, pick)
    return listing(bodies, more=more)


@router.get("/v1/chat/completions/{completion_id}")
async def retrieve_chat_completion(chat: Mine, services: ServicesDep) -> dict[str, Any]:
    return await _body(services, chat)


@router.post("/v1/chat/completions/{completion_id}")
async def update_chat_completion(body: MetadataUpdate, chat: Mine, services: ServicesDep) -> dict[str, Any]:
    changed = replace(chat, metadata=body.metadata)
    await services.queue.store(services.chats.stored(changed))
    return await _body(services, changed)


@router.delete("/v1/chat/completions/{completion_id}")
async def delete_chat_completion(chat: Mine, services: ServicesDep) -> dict[str, Any]:
    await services.queue.discard(services.chats.stored(chat))
    return {"id": chat.id, "object": "chat.completion.deleted", "deleted": True}


@router.get("/v1/chat/completions/{completion_id}/messages")
async def list_chat_messages(
    chat: Mine,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "asc",
) -> dict[str, Any]:
    """List the messages of the request."""
    messages = {f"{chat.id}-{at}": message for at, message in enumerate(chat.messages)}
    page, more = page_of(list(messages)[:: 1 if order == "asc" else -1], after=after, limit=limit)
    return listing([{"id": message_id, **messages[message_id]} for message_id in page], more=more)


async def _body(services: Services, chat: StoredChat) -> dict[str, Any]:
    """Build the completion from the job's log. Raises NotFound for an unfinished one."""
    (page,) = await services.queue.read([(chat.id, 0)])
    last = page.events[-1] if page.events else None
    if not isinstance(last, Finished) or not isinstance(last.outcome, Completed):
        raise NotFound(f"The chat completion {chat.id} has not finished.", param="completion_id")
    found, render_options = await services.job_records.record(chat.id), decode_render_options(chat.view)
    answer = render_options.formatter().whole(render_options.job(chat.id, model=found.model, priority=found.priority))
    for event in page.events:
        answer.add(event)
    return answer.body(last.outcome.usage) | {"metadata": chat.metadata}
