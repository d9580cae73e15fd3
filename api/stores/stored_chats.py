"""Chat completions that were asked to be stored: what was asked, in Redis; what was answered is in the job's log."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from redis.asyncio import Redis

from api.stores.pages import Body, PageRequest, Pick, page
from shared.domain.errors import NotFound
from shared.queue.protocols import StoredRecord
from shared.redis import keys
from shared.redis.client import translated


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChat:
    """`view`: what shapes the job's events again."""

    id: str
    tenant: str
    model: str
    created_ms: int
    metadata: dict[str, str]
    messages: list[dict[str, Any]]
    view: str


class ChatStore:
    """Reads them. The queue writes them, with their jobs."""

    def __init__(self, client: Redis, *, ttl_s: int, tenant_bytes_max: int) -> None:
        self._redis = client
        self._ttl_s = ttl_s
        self._tenant_bytes_max = tenant_bytes_max

    def stored(self, chat: StoredChat) -> StoredRecord:
        return StoredRecord(
            key=keys.chat(chat.id),
            id=chat.id,
            tenant=chat.tenant,
            created_ms=chat.created_ms,
            data=json.dumps(asdict(chat)),
            ttl_s=self._ttl_s,
            tenant_bytes_max=self._tenant_bytes_max,
            index=keys.chats_of(chat.tenant),
        )

    async def get(self, chat_id: str, *, tenant: str) -> StoredChat:
        """Raises NotFound, for a chat of another tenant too."""
        with translated():
            found: Any = await self._redis.get(keys.chat(chat_id))
        chat = StoredChat(**json.loads(found)) if found else None
        if chat is None or chat.tenant != tenant:
            raise NotFound(f"There is no stored chat completion {chat_id}.", param="completion_id")
        return chat

    async def get_many(self, chat_ids: Sequence[str]) -> list[StoredChat]:
        """Those that are still there."""
        with translated():
            found: Any = await self._redis.mget([keys.chat(chat_id) for chat_id in chat_ids])
        return [StoredChat(**json.loads(data)) for data in found if data]

    async def page(self, tenant: str, asked: PageRequest, pick: Pick) -> tuple[list[Body], bool]:
        """As `api.stores.pages` says."""
        return await page(self._redis, keys.chats_of(tenant), asked, pick)
