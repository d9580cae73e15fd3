"""Chat completions that were asked to be stored: what was asked, in Redis; what was answered is in the job's log."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from redis.asyncio import Redis

from api.pages import Asked, Body, Pick, page
from shared import keys
from shared.errors import NotFound
from shared.redis_client import translated


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
    def __init__(self, client: Redis, *, ttl_s: int) -> None:
        self._redis = client
        self._ttl_s = ttl_s

    async def save(self, chat: StoredChat) -> None:
        index = keys.chats_of(chat.tenant)
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(keys.chat(chat.id), json.dumps(asdict(chat)), ex=self._ttl_s)
                pipe.zadd(index, {chat.id: chat.created_ms})
                pipe.zremrangebyscore(index, "-inf", chat.created_ms - self._ttl_s * 1000)
                pipe.expire(index, self._ttl_s)
                await pipe.execute()

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

    async def page(self, tenant: str, asked: Asked, pick: Pick) -> tuple[list[Body], bool]:
        """As `api.pages` says."""
        return await page(self._redis, keys.chats_of(tenant), asked, pick)

    async def delete(self, chat: StoredChat) -> None:
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(keys.chat(chat.id))
                pipe.zrem(keys.chats_of(chat.tenant), chat.id)
                await pipe.execute()
