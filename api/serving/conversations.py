"""Reads what a stored conversation holds now, and changes it."""

from dataclasses import dataclass
from typing import Any

import orjson

from api.serving.response_items import response_now
from api.serving.services import Services
from api.stores.conversations import Conversation, addition, removal
from api.stores.responses import RESPONSE_PREFIX, ResponseRecord
from shared.domain.errors import ConversationLocked, InvalidRequest, NotFound

Json = dict[str, Any]
MEMBERS_MAX = 1000  # responses and entries of one conversation; with more, it can only be deleted
BYTES_MAX = 8_000_000  # of a conversation to which items are added, since each request reads all of it
ANSWERED = ("completed", "incomplete")
RUNNING = ("queued", "in_progress")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A conversation's items, the oldest first, each with an id. `last_ms` is when it changed last. `running` is the id
    of a response that has not ended, '' without one."""

    items: list[Json]
    last_ms: int
    running: str


async def contents_of(services: Services, conversation: Conversation) -> Contents:
    """Read a conversation. The last response that was answered holds everything before it; of the others, those that
    are not in there come behind it. A response that failed or was cancelled leaves nothing. Raises InvalidRequest for a
    conversation with too many."""
    members = await services.conversations.members(conversation.id)
    if len(members) > MEMBERS_MAX:
        message = f"The conversation {conversation.id} has more than {MEMBERS_MAX} responses and changes."
        raise InvalidRequest(message, param="conversation")
    answers = _Answers(services, [member for member, _ in members if member.startswith(RESPONSE_PREFIX)])
    items = await answers.last()
    known = {_base(item["id"]) for item in items}
    missing = [member for member, _ in members if _base(member) not in known]
    entries = {entry.id: entry for entry in await services.conversations.entries.get_many(_others(missing))}
    removed = {entry.removed for entry in entries.values()}
    for member in missing:
        items += entries[member].items if member in entries else await answers.added_by(member)
    last_ms = members[-1][1] if members else conversation.created_ms
    kept = [item for item in items if item["id"] not in removed]
    return Contents(items=kept, last_ms=last_ms, running=answers.running)


class _Answers:
    """The responses of a conversation, each read once and only if it is needed."""

    def __init__(self, services: Services, ids: list[str]) -> None:
        self._services = services
        self._ids = ids
        self._read: dict[str, tuple[ResponseRecord, Json] | None] = {}
        self.running = ""

    async def last(self) -> list[Json]:
        """Return the items of the last answered response, and all before them; none without one."""
        for response_id in reversed(self._ids):
            if found := await self._answered(response_id):
                record, now = found
                return [*record.items[: record.own], *record.own_items(), *now["output"]]
        return []

    async def added_by(self, response_id: str) -> list[Json]:
        """Return the items that a response added; none for one without an answer."""
        found = await self._answered(response_id)
        return [*found[0].own_items(), *found[1]["output"]] if found else []

    async def _answered(self, response_id: str) -> tuple[ResponseRecord, Json] | None:
        if response_id not in self._read:
            self._read[response_id] = None
            for record in await self._services.responses.get_many([response_id]):
                now = await response_now(self._services, record)
                if now["status"] in ANSWERED:
                    self._read[response_id] = record, now
                elif now["status"] in RUNNING:
                    self.running = response_id
        return self._read[response_id]


def _base(item_id: str) -> str:
    """Return the part that the ids of all items of one response or entry share."""
    return item_id.split("_")[1]


def _others(members: list[str]) -> list[str]:
    return [member for member in members if not member.startswith(RESPONSE_PREFIX)]


async def to_go_on(services: Services, conversation: Conversation) -> Contents:
    """Read a conversation that a response shall continue. Raises ConversationLocked while another one does."""
    contents = await contents_of(services, conversation)
    if contents.running:
        message = f"The conversation {conversation.id} waits for the response {contents.running}; try again then."
        raise ConversationLocked(message, param="conversation")
    return contents


def require_room(items: list[Json]) -> None:
    """Raise InvalidRequest if a conversation has no room for all these items."""
    size = len(orjson.dumps(items))
    if size > BYTES_MAX:
        message = f"The conversation would have {size} bytes with these items; at most {BYTES_MAX} are kept."
        raise InvalidRequest(message, param="items")


async def add_items(services: Services, conversation: Conversation, items: list[Json], *, last_ms: int) -> list[Json]:
    """Add items; return them with their ids. Raises StorageFull."""
    entry = addition(conversation.tenant, items, created_ms=last_ms)
    await services.queue.store(services.conversations.stored_entry(conversation.id, entry))
    return entry.items


async def remove_item(services: Services, conversation: Conversation, item_id: str, *, now_ms: int) -> None:
    """Remove an item. Raises NotFound for one that is not in the conversation."""
    contents = await contents_of(services, conversation)
    if item_id not in {item["id"] for item in contents.items}:
        raise NotFound(f"There is no item {item_id} in the conversation {conversation.id}.", param="item_id")
    entry = removal(conversation.tenant, item_id, created_ms=max(now_ms, contents.last_ms + 1))
    await services.queue.store(services.conversations.stored_entry(conversation.id, entry))
