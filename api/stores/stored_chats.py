"""Stored chat completions: Redis keeps the request; the answer is in the job's log."""

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from api.schemas.chat import ChatCompletionRequest
from api.stores.json_store import AcceptedStore
from api.stores.pages import Body, PageRequest, Pick, page
from shared.domain.job import Job
from shared.queue.protocols import StoredRecord
from shared.redis import keys


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChat:
    """The stored part of a chat. `view` holds the encoded `RenderOptions` of its job."""

    id: str
    tenant: str
    model: str
    created_ms: int
    metadata: dict[str, str]
    messages: list[dict[str, Any]]
    view: str


class ChatStore(AcceptedStore[StoredChat]):
    def __init__(self, client: Redis, *, ttl_s: int, tenant_bytes_max: int) -> None:
        super().__init__(
            client,
            StoredChat,
            key=keys.chat,
            name="stored chat completion",
            param="completion_id",
            ttl_s=ttl_s,
            tenant_bytes_max=tenant_bytes_max,
        )

    def stored(self, chat: StoredChat) -> StoredRecord:
        return self._stored(chat, created_ms=chat.created_ms, index=keys.chats_of(chat.tenant))

    async def page(self, tenant: str, asked: PageRequest, pick: Pick) -> tuple[list[Body], bool]:
        """Return a page of the tenant's stored chats; see `api.stores.pages`."""
        return await page(self._redis, keys.chats_of(tenant), asked, pick)


def stored_chat(body: ChatCompletionRequest, job: Job, view: str) -> StoredChat:
    return StoredChat(
        id=job.id,
        tenant=job.tenant,
        model=job.model,
        created_ms=job.created_ms,
        metadata=body.metadata or {},
        messages=[message.model_dump(exclude_none=True) for message in body.messages],
        view=view,
    )
