"""Stored conversations: a log of the responses in it, and of the items that were added or removed beside them. Nothing
is written twice, so requests that come together lose nothing of each other."""

import secrets
import time
from dataclasses import dataclass, field, replace
from typing import Any

from redis.asyncio import Redis

from api.stores.json_store import RecordKind, RecordStore
from shared.queue.protocols import StoredRecord
from shared.redis import keys
from shared.redis.client import translated

CONVERSATION_PREFIX = "conv_"
ENTRY_PREFIX = "entry_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    id: str
    tenant: str
    created_ms: int
    metadata: dict[str, str]

    def body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": self.created_ms // 1000,
            "metadata": self.metadata,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A change of a conversation by its client: `items` that were added, each with an id, or the id of an item that was
    `removed`."""

    id: str
    tenant: str
    created_ms: int
    items: list[dict[str, Any]] = field(default_factory=list)
    removed: str = ""


CONVERSATIONS = RecordKind(record=Conversation, key=keys.conversation, name="conversation", param="conversation_id")
ENTRIES = RecordKind(record=Entry, key=keys.conversation_entry, name="entry", param="item_id")


class ConversationStore(RecordStore[Conversation]):
    """Conversations. Each lives for `ttl_s` seconds from its beginning, or from its last response; what it refers to
    lives longer."""

    def __init__(self, client: Redis, *, ttl_s: int, tenant_bytes_max: int) -> None:
        super().__init__(client, CONVERSATIONS, ttl_s=ttl_s, tenant_bytes_max=tenant_bytes_max)
        self.entries = RecordStore(client, ENTRIES, ttl_s=ttl_s, tenant_bytes_max=tenant_bytes_max)

    async def changed(self, conversation: Conversation, metadata: dict[str, str]) -> StoredRecord:
        """Return the conversation with other metadata, to be stored for as long as it would live without them."""
        with translated():
            left_s = await self._redis.ttl(keys.conversation(conversation.id))
        return replace(self.stored(replace(conversation, metadata=metadata)), ttl_s=max(left_s, 1))

    def stored_entry(self, conversation_id: str, entry: Entry) -> StoredRecord:
        return replace(self.entries.stored(entry), index=keys.conversation_items(conversation_id))

    async def members(self, conversation_id: str) -> list[tuple[str, int]]:
        """Return the ids of its responses and entries, the oldest first, each with when it came in milliseconds."""
        with translated():
            found: Any = await self._redis.zrange(keys.conversation_items(conversation_id), 0, -1, withscores=True)
        return [(member.decode(), int(score)) for member, score in found]


def new_conversation(tenant: str, metadata: dict[str, str]) -> Conversation:
    made_ms = int(time.time() * 1000)
    return Conversation(
        id=CONVERSATION_PREFIX + secrets.token_hex(16), tenant=tenant, created_ms=made_ms, metadata=metadata
    )


def addition(tenant: str, items: list[dict[str, Any]], *, created_ms: int) -> Entry:
    """Return the entry that adds items. It gives each an id."""
    base = secrets.token_hex(16)
    named = [{**item, "id": f"item_{base}_{at}", "status": "completed"} for at, item in enumerate(items)]
    return Entry(id=ENTRY_PREFIX + base, tenant=tenant, created_ms=created_ms, items=named)


def removal(tenant: str, item_id: str, *, created_ms: int) -> Entry:
    return Entry(id=ENTRY_PREFIX + secrets.token_hex(16), tenant=tenant, created_ms=created_ms, removed=item_id)
