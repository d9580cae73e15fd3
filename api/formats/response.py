"""Formats a chat job's events as a response: its output items as they grow, and the events of its stream. The same log
always gives the same events with the same numbers."""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import orjson

from api.formats.chat import likelihood_object
from api.formats.common import estimated
from api.formats.response_calls import Call, call_of, called_by_name
from api.formats.response_names import as_sent
from api.formats.sealed import seal
from api.http.problems import problem_of_outcome
from api.http.sse import KEEP_ALIVE
from shared.domain.events import (
    CallPart,
    Cancelled,
    Completed,
    Delta,
    Event,
    Finished,
    FinishReason,
    Logprobs,
    Outcome,
    Started,
    Usage,
)

ResponseEvent = dict[str, Any]
# OpenAI's codes of a failed response. Agents read the first one, to compact their conversation.
FAILURES = {"context_length_exceeded": "context_length_exceeded", "invalid_request": "invalid_prompt"}


class ResponseBuilder:
    """Builds one response. `head` has the fields that the response repeats of its request, and `tools` all tools that
    may be called. With `sealed`, reasoning has a form that clients send back. With `compacts`, the text becomes the
    item of a compaction. `apply` returns the client's events, without numbers."""

    def __init__(
        self,
        response_id: str,
        head: dict[str, Any],
        *,
        created_s: int,
        tools: Sequence[dict[str, Any]] = (),
        sealed: bool = False,
        compacts: bool = False,
    ) -> None:
        self._head = {"id": response_id, "object": "response", "created_at": created_s, **head}
        self._base = response_id.partition("_")[2]
        self._output: list[dict[str, Any]] = []
        self._created_s = created_s
        self._completed_s: int | None = None
        self._tools = tools
        self._sealed = sealed
        self._compacts = compacts
        self._summary = ""
        self._open = ""  # the kind of the last item, while it grows
        self._call: Call | None = None
        self._reason: FinishReason | None = None
        self._usage: Usage | None = None
        self._error: dict[str, Any] | None = None
        self.status = "queued"

    def opening(self) -> list[ResponseEvent]:
        return [{"type": "response.created", "response": self.body()}]

    def apply(self, event: Event) -> list[ResponseEvent]:
        match event:
            case Started():
                self.status = "in_progress"
                return [{"type": "response.in_progress", "response": self.body()}]
            case Delta():
                return self._grow(event)
            case Finished():
                return self._finish(event)
        return []

    def body(self) -> dict[str, Any]:
        incomplete = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        return self._head | {
            "completed_at": self._completed_s,
            "status": self.status,
            "error": self._error,
            "incomplete_details": incomplete,
            "output": [dict(item) for item in self._output],
            "usage": response_usage(self._usage) if self._usage else None,
        }

    def _grow(self, event: Delta) -> list[ResponseEvent]:
        events: list[ResponseEvent] = []
        if event.reasoning:
            events += self._ensure("reasoning")
            events.append(self._text_delta("response.reasoning_text.delta", event.reasoning))
        if event.text and self._compacts:
            events += self._compact(event.text)
        elif event.text:
            events += self._ensure("message")
            logprobs = [_flat(each) for each in event.logprobs]
            self._output[-1]["content"][0]["logprobs"] += logprobs
            events.append(self._text_delta("response.output_text.delta", event.text) | {"logprobs": logprobs})
        for part in event.calls:
            events += self._grow_call(part)
        if event.finish_reason:
            self._reason = event.finish_reason
        return events

    def _compact(self, text: str) -> list[ResponseEvent]:
        """Add to the summary, which its item has when it is complete."""
        self._summary += text
        if self._open == "compaction":
            return []
        events = self._close("completed")
        self._open = "compaction"
        item_id = f"cmp_{self._base}_{len(self._output)}"
        return [*events, self._add({"id": item_id, "type": "compaction", "encrypted_content": ""})]

    def _text_delta(self, kind: str, text: str) -> ResponseEvent:
        self._output[-1]["content"][0]["text"] += text
        return {"type": kind, **self._place(), "content_index": 0, "delta": text}

    def _ensure(self, kind: str) -> list[ResponseEvent]:
        """Ensure that the last item is an open one of this kind."""
        if self._open == kind:
            return []
        events = self._close("completed")
        self._open = kind
        name = {"message": "msg", "reasoning": "rs"}[kind]
        item: dict[str, Any] = {"id": f"{name}_{self._base}_{len(self._output)}", "type": kind, "status": "in_progress"}
        if kind == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item |= {"role": "assistant", "content": []}
        else:
            part = {"type": "reasoning_text", "text": ""}
            item |= {"summary": [], "content": []}
        events.append(self._add(item))
        item["content"] = [part]
        # This is a copy, since the part grows by the same event.
        events.append(
            {"type": "response.content_part.added", **self._place(), "content_index": 0, "part": deepcopy(part)}
        )
        return events

    def _add(self, item: dict[str, Any]) -> ResponseEvent:
        self._output.append(item)
        return {"type": "response.output_item.added", "output_index": len(self._output) - 1, "item": dict(item)}

    def _grow_call(self, part: CallPart) -> list[ResponseEvent]:
        events: list[ResponseEvent] = []
        if part.name:
            events = self._close("completed")
            self._open = "call"
            self._call = call_of(part, called_by_name(self._tools), base=f"{self._base}_{len(self._output)}")
            events.append(self._add(self._call.item))
        if part.arguments and self._call:
            events += self._call.feed(part.arguments, self._place())
        return events

    def _close(self, status: str) -> list[ResponseEvent]:
        """Close the open item."""
        if not self._open:
            return []
        item, kind, self._open = self._output[-1], self._open, ""
        if kind == "compaction":
            item["encrypted_content"] = seal(self._summary.strip())
            return [{"type": "response.output_item.done", "output_index": len(self._output) - 1, "item": item}]
        item["status"] = status
        if kind == "reasoning" and self._sealed:
            item["encrypted_content"] = seal(item["content"][0]["text"])
        if self._call:
            events, self._call = self._call.close(self._place()), None
        else:
            part = item["content"][0]
            logprobs = {"logprobs": part["logprobs"]} if kind == "message" else {}
            place = {**self._place(), "content_index": 0}
            events = [
                {"type": f"response.{part['type']}.done", **place, "text": part["text"], **logprobs},
                {"type": "response.content_part.done", **place, "part": part},
            ]
        return [
            *events,
            {"type": "response.output_item.done", "output_index": len(self._output) - 1, "item": item},
        ]

    def _finish(self, event: Finished) -> list[ResponseEvent]:
        outcome: Outcome = event.outcome
        cut = not isinstance(outcome, Completed) or self._reason is FinishReason.LENGTH
        events = self._close("incomplete" if cut else "completed")
        match outcome:
            case Completed(usage=usage):
                self._usage = usage
                self.status = "incomplete" if cut else "completed"
                if not cut and event.ended_ms:
                    self._completed_s = max(event.ended_ms // 1000, self._created_s)
            case Cancelled():
                self.status = "cancelled"
            case _:
                self.status = "failed"
                problem = problem_of_outcome(outcome)
                assert problem
                message, _ = as_sent(problem.message, problem.param)
                self._error = {"code": FAILURES.get(problem.code, "server_error"), "message": message}
        kind = "failed" if self.status == "cancelled" else self.status  # the Responses API has no event for it
        return [*events, {"type": f"response.{kind}", "response": self.body()}]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}


class ResponseStreamFormatter:
    """Formats the frames of one stream after number `after`. With `ids`, each carries its number as `id`, too."""

    tells_failure = True
    keep_alive = KEEP_ALIVE

    def __init__(self, builder: ResponseBuilder, *, after: int = -1, ids: bool = False) -> None:
        self._builder = builder
        self._after = after
        self._ids = ids
        self._number = 0

    def opening(self) -> bytes:
        return b"".join(self._framed(self._builder.opening()))

    def frames(self, event: Event) -> Iterator[bytes]:
        return self._framed(self._builder.apply(event))

    def _framed(self, events: Iterable[ResponseEvent]) -> Iterator[bytes]:
        for each in events:
            number, self._number = self._number, self._number + 1
            if number > self._after:
                data = orjson.dumps(each | {"sequence_number": number})
                name = b"id: %d\n" % number if self._ids else b""
                yield b"event: " + each["type"].encode() + b"\ndata: " + data + b"\n" + name + b"\n"


class ResponseCollector:
    """Collects one response."""

    def __init__(self, builder: ResponseBuilder) -> None:
        self._builder = builder

    def add(self, event: Event) -> None:
        self._builder.apply(event)

    def body(self, usage: Usage) -> dict[str, Any]:
        return self._builder.body()


def item_object(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item of the input as lists show it: a plain text becomes a content part."""
    if item["type"] == "message" and isinstance(item["content"], str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        part = {"type": kind, "text": item["content"]}
        return item | {"content": [part | {"annotations": []} if kind == "output_text" else part]}
    return item


def _flat(logprobs: Logprobs) -> dict[str, Any]:
    return likelihood_object(logprobs.chosen) | {"top_logprobs": [likelihood_object(each) for each in logprobs.top]}


def response_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    } | estimated(usage)
