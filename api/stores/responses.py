"""Stored responses: Redis keeps the request; the answer is in the job's log."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from api.formats.common import SERVICE_TIERS, AnswerCollector, StreamFormatter
from api.formats.compaction import compacts_items
from api.formats.response import ResponseBuilder, ResponseCollector, ResponseStreamFormatter
from api.formats.response_calls import with_additional
from api.schemas.response import ENCRYPTED_REASONING, ResponseInput, ResponseRequest
from api.schemas.response_items import InputItem, MessageItem, ReferenceItem
from api.stores.conversations import Conversation
from api.stores.json_store import LATER, RecordKind, RecordStore
from shared.domain.job import Job, Priority
from shared.queue.protocols import StoredRecord
from shared.redis import keys

RESPONSE_PREFIX = "resp_"  # begins the ids of responses and of their jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRecord:
    """The stored part of a response, and the formatter of its job. `items` is the conversation up to the answer; the
    request itself sent those from index `own` on. `head` has the fields that the response repeats of the request. With
    `sealed`, its reasoning has a form that clients send back. `conversation` is the id of its conversation, if it has
    one."""

    id: str
    tenant: str
    created_s: int
    background: bool
    head: dict[str, Any]
    items: list[dict[str, Any]]
    own: int
    sealed: bool = field(default=False, metadata=LATER)
    conversation: str = field(default="", metadata=LATER)

    @property
    def created_ms(self) -> int:
        return self.created_s * 1000

    def builder(self, job_id: str) -> ResponseBuilder:
        """Return a builder of this response from the job's events. The job is its own, or an earlier one of the same
        Idempotency-Key."""
        tools = with_additional(self.head.get("tools") or (), self.items)
        how = {"sealed": self.sealed, "compacts": compacts_items(self.items)}
        return ResponseBuilder(job_id, self.head, created_s=self.created_s, tools=tools, **how)

    def stream(self, job: Job, *, ids: bool, after: int = -1) -> StreamFormatter:
        """Return the formatter of the stream, which leaves out the frames up to number `after`."""
        return ResponseStreamFormatter(self.builder(job.id), after=after, ids=ids)

    def whole(self, job: Job) -> AnswerCollector:
        return ResponseCollector(self.builder(job.id))

    def own_items(self) -> list[dict[str, Any]]:
        """Return the items of the request itself, each with an id."""
        mine = self.items[self.own :]
        return [
            {"id": f"item_{self.id.removeprefix(RESPONSE_PREFIX)}_{at}", "status": "completed", **item}
            for at, item in enumerate(mine)
        ]


RESPONSES = RecordKind(record=ResponseRecord, key=keys.response, name="response", param="response_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A request reads the items `before` it and its `own`. Both are in the conversation, if there is one, which changed
    last at `last_ms`."""

    before: list[dict[str, Any]] = field(default_factory=list)
    own: list[dict[str, Any]]
    conversation: Conversation | None = None
    last_ms: int = 0

    @property
    def items(self) -> list[dict[str, Any]]:
        return [*self.before, *self.own]


class ResponseStore(RecordStore[ResponseRecord]):
    """Responses. Those of a conversation are in its list."""

    def stored(self, record: ResponseRecord) -> StoredRecord:
        stored = super().stored(record)
        return replace(stored, index=keys.conversation_items(record.conversation)) if record.conversation else stored


def record_of(
    body: ResponseRequest,
    tenant: str,
    *,
    priority: Priority,
    history: History | None = None,
) -> ResponseRecord:
    """Create the record of a response. `priority` is the class of its job. A request without a `history` stands
    alone."""
    history = history or History(own=items_of(body))
    conversation = history.conversation
    return ResponseRecord(
        id=f"{RESPONSE_PREFIX}{secrets.token_hex(16)}",
        tenant=tenant,
        created_s=int(time.time()),
        background=bool(body.background),
        head=_head(body, priority),
        items=history.items,
        own=len(history.before),
        sealed=ENCRYPTED_REASONING in (body.include or ()),
        conversation=conversation.id if conversation else "",
    )


def items_of(body: ResponseInput) -> list[dict[str, Any]]:
    """Return the items of the request itself, as they are stored."""
    said = {"type": "message", "role": "user", "content": body.input}
    return stored_items([MessageItem.model_validate(said)] if isinstance(body.input, str) else body.input or ())


def stored_items(items: Sequence[InputItem]) -> list[dict[str, Any]]:
    return [item.model_dump(exclude_none=True, exclude=_without(item)) for item in items]


def _without(item: InputItem) -> set[str]:
    return set() if isinstance(item, ReferenceItem) else {"id", "status"}


def _head(body: ResponseRequest, priority: Priority) -> dict[str, Any]:
    """Return the fields that OpenAI's response repeats of its request, with their defaults."""
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    choice = body.tool_choice if isinstance(body.tool_choice, str | None) else body.tool_choice.model_dump()
    return {
        "model": body.model,
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "conversation": {"id": body.conversation_id} if body.conversation_id else None,
        "background": bool(body.background),
        "store": body.store is not False,
        "metadata": body.metadata or {},
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "tool_choice": choice or "auto",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": {"format": {"type": "text"}, "verbosity": "medium"} | text,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "presence_penalty": body.presence_penalty or 0,
        "frequency_penalty": body.frequency_penalty or 0,
        "top_logprobs": body.top_logprobs or 0,
        "truncation": body.truncation or "disabled",
        "service_tier": SERVICE_TIERS[priority],
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
    }
