"""Stored responses: Redis keeps the request; the answer is in the job's log."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from api.formats.common import SERVICE_TIERS, AnswerCollector, StreamFormatter
from api.formats.response import ResponseBuilder, ResponseCollector, ResponseStreamFormatter
from api.http.problems import validation_problem
from api.schemas.chat import ChatCompletionRequest
from api.schemas.response import LOGPROBS, MessageItem, ResponseRequest
from api.stores.json_store import RecordKind
from shared.domain.errors import InvalidRequest
from shared.domain.job import Job, Priority
from shared.redis import keys

RESPONSE_PREFIX = "resp_"  # begins the ids of responses and of their jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRecord:
    """The stored part of a response, and the formatter of its job. `items` is the conversation up to the answer; the
    request itself sent those from index `own` on. `head` has the fields that the response repeats of the request."""

    id: str
    tenant: str
    created_s: int
    background: bool
    head: dict[str, Any]
    items: list[dict[str, Any]]
    own: int

    @property
    def created_ms(self) -> int:
        return self.created_s * 1000

    def builder(self, job_id: str) -> ResponseBuilder:
        """Return a builder of this response from the job's events. The job is its own, or an earlier one of the same
        Idempotency-Key."""
        return ResponseBuilder(job_id, self.head, created_s=self.created_s)

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


def record_of(
    body: ResponseRequest, tenant: str, before: Sequence[dict[str, Any]], *, priority: Priority
) -> ResponseRecord:
    """Create the record of a response. `before` is the conversation that it continues, `priority` the class of its
    job."""
    said = {"type": "message", "role": "user", "content": body.input}
    items = [MessageItem.model_validate(said)] if isinstance(body.input, str) else body.input
    own = [item.model_dump(exclude_none=True, exclude={"id", "status"}) for item in items]
    return ResponseRecord(
        id=f"{RESPONSE_PREFIX}{secrets.token_hex(16)}",
        tenant=tenant,
        created_s=int(time.time()),
        background=bool(body.background),
        head=_head(body, priority),
        items=[*before, *own],
        own=len(before),
    )


def chat_of(body: ResponseRequest, items: Sequence[dict[str, Any]]) -> ChatCompletionRequest:
    """Translate the request into a chat. Raises InvalidRequest."""
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    wanted = {
        "model": body.model,
        "messages": [*system, *_messages(items)],
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "service_tier": body.service_tier,
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "tools": [_chat_tool(tool.model_dump(exclude_none=True)) for tool in body.tools] if body.tools else None,
        "tool_choice": _chat_choice(body),
        "response_format": _chat_format(body),
        "stream": bool(body.stream),
    }
    if body.top_logprobs is not None or LOGPROBS in (body.include or ()):
        wanted |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    try:
        return ChatCompletionRequest.model_validate(
            {name: value for name, value in wanted.items() if value is not None}
        )
    except ValidationError as error:  # each item is valid, but there are too many items or calls
        problem = validation_problem(error)
        raise InvalidRequest(problem.message, param=problem.param) from None


def _head(body: ResponseRequest, priority: Priority) -> dict[str, Any]:
    """Return the fields that OpenAI's response repeats of its request, with their defaults."""
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    choice = body.tool_choice if isinstance(body.tool_choice, str | None) else body.tool_choice.model_dump()
    return {
        "model": body.model,
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "background": bool(body.background),
        "store": body.store is not False,
        "metadata": body.metadata or {},
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "tool_choice": choice or "auto",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": {"format": {"type": "text"}} | text,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "max_output_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_logprobs": body.top_logprobs,
        "truncation": "disabled",
        "service_tier": SERVICE_TIERS[priority],
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
    }


def _messages(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Translate items into chat messages. Calls belong to the assistant's message before them, or begin one; reasoning
    belongs to the message after it."""
    messages: list[dict[str, Any]] = []
    reasoning = ""
    for item in items:
        match item["type"]:
            case "message":
                said = {"role": item["role"], "content": _text(item["content"])}
                if item["role"] == "assistant" and reasoning:
                    said["reasoning_content"], reasoning = reasoning, ""
                messages.append(said)
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                if reasoning:
                    messages[-1]["reasoning_content"], reasoning = reasoning, ""
                messages[-1].setdefault("tool_calls", []).append(call)
            case "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": _text(item["output"])})
            case "reasoning":
                reasoning += "".join(part["text"] for part in item.get("content") or ())
    return messages


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", part.get("refusal", "")) for part in content)


def _chat_tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _chat_choice(body: ResponseRequest) -> Any:
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return choice
    if choice.type == "function":
        return {"type": "function", "function": {"name": choice.name}}
    tools = [{"type": "function", "function": {"name": tool.name}} for tool in choice.tools]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}


def _chat_format(body: ResponseRequest) -> Any:
    form = body.text.format if body.text else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "json_object"}
    schema = {"name": form.name, "schema": form.schema_, "strict": form.strict, "description": form.description}
    return {"type": "json_schema", "json_schema": {name: value for name, value in schema.items() if value is not None}}
