"""`/v1/conversations`: conversations whose items responses read and add to. Each key sees only its own."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request

from api.formats.listing import listing, page_of
from api.formats.response import item_object
from api.http.auth import caller_of
from api.http.json_route import JsonRoute
from api.schemas.conversation import ConversationItemsRequest, ConversationRequest, ConversationUpdate
from api.serving.conversations import add_items, contents_of, remove_item, require_room
from api.serving.response_items import with_references
from api.serving.services import ServicesDep
from api.stores.conversations import Conversation, new_conversation
from api.stores.responses import RESPONSE_PREFIX, stored_items
from shared.domain.errors import NotFound

router = APIRouter(route_class=JsonRoute)
EMPTY = ConversationRequest(metadata=None, items=None)
Include = Annotated[list[str] | None, Query()]


async def _mine(conversation_id: str, request: Request, services: ServicesDep) -> Conversation:
    return await services.conversations.get(conversation_id, tenant=caller_of(request).tenant)


Mine = Annotated[Conversation, Depends(_mine)]


@router.post("/v1/conversations")
async def create_conversation(
    request: Request, services: ServicesDep, body: ConversationRequest = EMPTY
) -> dict[str, Any]:
    """Create a conversation, with up to 20 items. It lives as long as a response, from its last response on."""
    conversation = new_conversation(caller_of(request).tenant, body.metadata or {})
    items = await with_references(services, stored_items(body.items or ()), tenant=conversation.tenant)
    require_room(items)
    await services.queue.store(services.conversations.stored(conversation))
    if items:
        await add_items(services, conversation, items, last_ms=conversation.created_ms)
    return conversation.body()


@router.get("/v1/conversations/{conversation_id}")
async def retrieve_conversation(conversation: Mine) -> dict[str, Any]:
    return conversation.body()


@router.post("/v1/conversations/{conversation_id}")
async def update_conversation(body: ConversationUpdate, conversation: Mine, services: ServicesDep) -> dict[str, Any]:
    await services.queue.store(await services.conversations.changed(conversation, body.metadata))
    return conversation.body() | {"metadata": body.metadata}


@router.delete("/v1/conversations/{conversation_id}")
async def delete_conversation(conversation: Mine, services: ServicesDep) -> dict[str, Any]:
    """Delete a conversation and the items that were added to it. Its responses stay until they expire."""
    members = [member for member, _ in await services.conversations.members(conversation.id)]
    own = [member for member in members if not member.startswith(RESPONSE_PREFIX)]
    for entry in await services.conversations.entries.get_many(own):
        await services.queue.discard(services.conversations.stored_entry(conversation.id, entry))
    await services.queue.discard(services.conversations.stored(conversation))
    return {"id": conversation.id, "object": "conversation.deleted", "deleted": True}


@router.get("/v1/conversations/{conversation_id}/items")
async def list_conversation_items(
    conversation: Mine,
    services: ServicesDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    include: Include = None,
) -> dict[str, Any]:
    """List the items, the last first by default. Those of a response come when it has ended."""
    items = {item["id"]: item for item in (await contents_of(services, conversation)).items}
    wanted, more = page_of(list(items)[:: 1 if order == "asc" else -1], after=after, limit=limit)
    return listing([item_object(items[item_id]) for item_id in wanted], more=more)


@router.post("/v1/conversations/{conversation_id}/items")
async def create_conversation_items(
    body: ConversationItemsRequest, conversation: Mine, services: ServicesDep, include: Include = None
) -> dict[str, Any]:
    """Add up to 20 items at the end."""
    items = await with_references(services, stored_items(body.items), tenant=conversation.tenant)
    contents = await contents_of(services, conversation)
    require_room([*contents.items, *items])
    added = await add_items(services, conversation, items, last_ms=max(_now_ms(), contents.last_ms + 1))
    return listing([item_object(item) for item in added], more=False)


@router.get("/v1/conversations/{conversation_id}/items/{item_id}")
async def retrieve_conversation_item(
    conversation: Mine, item_id: str, services: ServicesDep, include: Include = None
) -> dict[str, Any]:
    for item in (await contents_of(services, conversation)).items:
        if item["id"] == item_id:
            return item_object(item)
    raise NotFound(f"There is no item {item_id} in the conversation {conversation.id}.", param="item_id")


@router.delete("/v1/conversations/{conversation_id}/items/{item_id}")
async def delete_conversation_item(conversation: Mine, item_id: str, services: ServicesDep) -> dict[str, Any]:
    """Remove an item from the conversation, and return the conversation."""
    await remove_item(services, conversation, item_id, now_ms=_now_ms())
    return conversation.body()


def _now_ms() -> int:
    return int(time.time() * 1000)
