"""Stored chat completions: Redis keeps the request; the answer is in the job's log."""

from dataclasses import dataclass
from typing import Any

from api.schemas.chat import ChatCompletionRequest
from api.stores.json_store import RecordKind
from shared.domain.job import Job
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


STORED_CHATS = RecordKind(
    record=StoredChat, key=keys.chat, index=keys.chats_of, name="stored chat completion", param="completion_id"
)


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
