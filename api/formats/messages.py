"""Formats a chat job's events as Anthropic's Messages API does: as the events of a stream, or as one message. The same
log always gives the same frames. (platform.claude.com/docs/en/build-with-claude/streaming)"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from api.formats.common import AnswerCollector, StreamFormatter, WithEventIds, estimated
from api.formats.sealed import MARK, seal
from api.http.anthropic import error_object
from api.http.event_position import START, Position
from api.http.problems import problem_of_outcome
from shared.domain.events import CallPart, Completed, Delta, Event, Finished, FinishReason, Started, Usage
from shared.domain.job import Job, Priority

Json = dict[str, Any]
STOP_REASONS = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
}
# Anthropic's names of the classes; an answer names the class in which it was served.
SERVICE_TIERS = {Priority.INTERACTIVE: "priority", Priority.STANDARD: "standard", Priority.BATCH: "batch"}
INPUT = TypeAdapter(Json)
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class Thinking(StrEnum):
    """The client gets nothing of the reasoning, its text, or only a signature that holds it."""

    HIDDEN = "hidden"
    SHOWN = "shown"
    SEALED = "sealed"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesFormatter:
    """Formats the answer of a chat as a message. `max_tokens` is the longest answer that the client asked for."""

    thinking: Thinking = Thinking.HIDDEN
    max_tokens: int = 0

    def stream(self, job: Job, *, ids: bool, after: Position = START) -> StreamFormatter:
        """Return the formatter of the stream. With `ids`, it leaves out the frames up to `after`."""
        formatter = MessagesStreamFormatter(job, thinking=self.thinking, max_tokens=self.max_tokens)
        return WithEventIds(formatter, after=after) if ids else formatter

    def whole(self, job: Job) -> AnswerCollector:
        return MessagesCollector(job, thinking=self.thinking, max_tokens=self.max_tokens)


class _Ending:
    """The reason why the answer ended. One that is cut off before it has `max_tokens` has filled the context."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._reason = FinishReason.STOP
        self._stop = ""

    def note(self, event: Delta) -> None:
        if event.finish_reason:
            self._reason, self._stop = event.finish_reason, event.stop

    def body(self, usage: Usage) -> Json:
        reason = "stop_sequence" if self._stop else STOP_REASONS[self._reason]
        if reason == "max_tokens" and usage.completion_tokens < self._max_tokens and not usage.estimated:
            reason = "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": self._stop or None}


class MessagesStreamFormatter:
    """Formats the frames of one stream. One content block is open at a time."""

    tells_failure = True
    keep_alive = PING

    def __init__(self, job: Job, *, thinking: Thinking, max_tokens: int) -> None:
        self._job = job
        self._thinking = thinking
        self._ending = _Ending(max_tokens)
        self._open = ""  # the type of the last block, while it grows
        self._index = -1
        self._reasoning = ""  # that of the open block, if it is sealed

    def opening(self) -> bytes:
        return b""

    def frames(self, event: Event) -> Iterator[bytes]:
        match event:
            case Started(prompt_tokens=tokens):
                usage = usage_object(Usage(prompt_tokens=tokens, completion_tokens=0), self._job.priority)
                unended = {"stop_reason": None, "stop_sequence": None}
                message = _head(self._job) | {"content": [], **unended, "usage": usage}
                yield _frame("message_start", {"message": message})
            case Delta():
                self._ending.note(event)
                yield from self._grow(event)
            case Finished(outcome=Completed(usage=usage)):
                yield from self._close()
                about = {"delta": self._ending.body(usage), "usage": usage_object(usage, self._job.priority)}
                yield _frame("message_delta", about)
                yield _frame("message_stop", {})
            case Finished(outcome=outcome):
                problem = problem_of_outcome(outcome)
                assert problem
                yield _frame("error", {"error": error_object(problem.status, problem.code, problem.message)})

    def _grow(self, event: Delta) -> Iterator[bytes]:
        if event.reasoning and self._thinking is not Thinking.HIDDEN:
            yield from self._reason(event.reasoning)
        if event.text:
            if self._open != "text":
                yield from self._begin({"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": event.text})
        for part in event.calls:
            yield from self._call(part)

    def _reason(self, text: str) -> Iterator[bytes]:
        if self._open != "thinking":
            yield from self._begin({"type": "thinking", "thinking": "", "signature": ""})
        if self._thinking is Thinking.SEALED:
            self._reasoning += text
        else:
            yield self._delta({"type": "thinking_delta", "thinking": text})

    def _call(self, part: CallPart) -> Iterator[bytes]:
        if part.name:
            yield from self._begin({"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
        if part.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": part.arguments})

    def _begin(self, block: Json) -> Iterator[bytes]:
        yield from self._close()
        self._open = block["type"]
        self._index += 1
        yield _frame("content_block_start", {"index": self._index, "content_block": block})

    def _delta(self, delta: Json) -> bytes:
        return _frame("content_block_delta", {"index": self._index, "delta": delta})

    def _close(self) -> Iterator[bytes]:
        """Close the open block."""
        if not self._open:
            return
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": _signature(self._reasoning)})
        self._open = self._reasoning = ""
        yield _frame("content_block_stop", {"index": self._index})


class MessagesCollector:
    """Collects one message."""

    def __init__(self, job: Job, *, thinking: Thinking, max_tokens: int) -> None:
        self._job = job
        self._thinking = thinking
        self._ending = _Ending(max_tokens)
        self._blocks: list[tuple[Json, list[str]]] = []  # each with the parts of its text

    def add(self, event: Event) -> None:
        if not isinstance(event, Delta):
            return
        self._ending.note(event)
        if event.reasoning and self._thinking is not Thinking.HIDDEN:
            self._add("thinking", event.reasoning)
        if event.text:
            self._add("text", event.text)
        for part in event.calls:
            if part.name:
                self._blocks.append(({"type": "tool_use", "id": part.id, "name": part.name}, []))
            self._blocks[-1][1].append(part.arguments)

    def _add(self, kind: str, text: str) -> None:
        if not self._blocks or self._blocks[-1][0]["type"] != kind:
            self._blocks.append(({"type": kind}, []))
        self._blocks[-1][1].append(text)

    def body(self, usage: Usage) -> Json:
        content = [self._block(block, "".join(parts)) for block, parts in self._blocks]
        counted = usage_object(usage, self._job.priority)
        return _head(self._job) | {"content": content, **self._ending.body(usage), "usage": counted}

    def _block(self, block: Json, text: str) -> Json:
        if block["type"] == "text":
            return block | {"text": text}
        if block["type"] == "tool_use":
            return block | {"input": _input(text)}
        if self._thinking is Thinking.SEALED:
            return block | {"thinking": "", "signature": _signature(text)}
        return block | {"thinking": text, "signature": _signature("")}


def usage_object(usage: Usage, priority: Priority) -> Json:
    """Return the counts as Anthropic defines them: `input_tokens` leaves out what came from the cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "service_tier": SERVICE_TIERS[priority],
    } | estimated(usage)


def _head(job: Job) -> Json:
    return {"id": job.id, "type": "message", "role": "assistant", "model": job.model}


def _signature(reasoning: str) -> str:
    """Return the signature of a thinking block. Clients send no block back that has none."""
    return seal(reasoning) if reasoning else MARK


def _input(arguments: str) -> Json:
    """Return a call's arguments as an object, as far as they were written. What is no object is kept as Anthropic's
    documents say. (platform.claude.com/docs/en/agents-and-tools/tool-use/fine-grained-tool-streaming)"""
    try:
        return INPUT.validate_json(arguments or "{}", experimental_allow_partial="trailing-strings")
    except ValidationError:
        return {"INVALID_JSON": arguments}


def _frame(kind: str, body: Json) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **body}) + b"\n\n"
