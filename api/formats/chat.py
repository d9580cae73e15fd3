"""Formats the events of a chat job as OpenAI's chunks of a stream, or as one complete chat completion."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from api.formats.common import SERVICE_TIERS, AnswerCollector, StreamFormatter, WithEventIds, head, usage_object
from api.formats.usage_so_far import WithUsageSoFar
from api.http.event_position import START, Position
from api.http.sse import DONE, KEEP_ALIVE, frame
from shared.domain.events import CallPart, Completed, Delta, Event, Finished, Likelihood, Logprobs, Started, Usage
from shared.domain.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormatter:
    """Formats the answer of a chat with `n` choices."""

    n: int
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: bool = False

    def stream(self, job: Job, *, ids: bool, after: Position = START) -> StreamFormatter:
        """Return the formatter of the stream. With `ids`, it leaves out the frames up to `after`."""
        formatter: StreamFormatter = ChatStreamFormatter(job, n=self.n, include_usage=self.include_usage)
        formatter = WithUsageSoFar(formatter) if self.continuous_usage else formatter
        return WithEventIds(formatter, after=after) if ids else formatter

    def whole(self, job: Job) -> AnswerCollector:
        return ChatCollector(job, n=self.n, logprobs=self.logprobs)


class ChatStreamFormatter:
    """Formats the frames of one stream. The part that all frames share is encoded once."""

    tells_failure = False
    keep_alive = KEEP_ALIVE

    def __init__(self, job: Job, *, n: int, include_usage: bool) -> None:
        self._choices = range(n)
        self._head = _head(job, "chat.completion.chunk")
        self._include_usage = include_usage
        shared = orjson.dumps(self._head | ({"usage": None} if include_usage else {}))[:-1]
        self._before_index = b"data: " + shared + b',"choices":[{"index":'
        self._before_text = b',"delta":{"content":'
        self._after_text = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    def opening(self) -> bytes:
        return b""

    def frames(self, event: Event) -> Iterable[bytes]:
        match event:
            case Delta(finish_reason=None, reasoning="", calls=(), logprobs=()):
                return (self._text(event),) if event.text else ()
            case _:
                return self._others(event)

    def _text(self, event: Delta) -> bytes:
        """Return the frame of most tokens, without making a dictionary of it."""
        index, text = str(event.choice).encode(), orjson.dumps(event.text)
        return self._before_index + index + self._before_text + text + self._after_text

    def _others(self, event: Event) -> Iterable[bytes]:
        match event:
            case Started():
                for choice in self._choices:
                    yield self._chunk(choice, {"role": "assistant", "content": "", "refusal": None}, None)
            case Delta(reasoning="", calls=(), logprobs=()):
                if event.text:
                    yield self._text(event)
                if event.finish_reason:
                    yield self._chunk(event.choice, {}, event.finish_reason)
            case Delta():
                yield from self._rich(event)
            case Finished(outcome=Completed(usage=usage)):
                if self._include_usage:
                    yield frame(self._head | {"choices": [], "usage": usage_object(usage)})
                yield DONE
            case Finished():
                return

    def _rich(self, event: Delta) -> Iterable[bytes]:
        """Yield reasoning, text and calls, in the order of generation."""
        if event.reasoning:
            yield self._chunk(event.choice, {"reasoning_content": event.reasoning}, None)
        if event.text or event.logprobs:
            yield self._chunk(event.choice, {"content": event.text}, None, logprobs_object(event.logprobs))
        if event.calls:
            yield self._chunk(event.choice, {"tool_calls": [_call_delta(part) for part in event.calls]}, None)
        if event.finish_reason:
            yield self._chunk(event.choice, {}, event.finish_reason)

    def _chunk(
        self, choice: int, delta: dict[str, Any], reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        body = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._before_index[: -len(b'{"index":')] + orjson.dumps(body) + b"]}\n\n"


class MessageCollector:
    """Collects the message of one choice."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[Logprobs] = []

    def add(self, event: Delta) -> None:
        self._texts.append(event.text)
        self._reasoning.append(event.reasoning)
        self._logprobs += event.logprobs
        self.reason = event.finish_reason or self.reason
        for part in event.calls:
            if part.name:
                self._calls.append(_call(part))
            else:
                self._calls[part.call]["function"]["arguments"] += part.arguments

    def body(self) -> dict[str, Any]:
        text = "".join(self._texts)
        message = {"role": "assistant", "content": None if self._calls and not text else text, "refusal": None}
        if reasoning := "".join(self._reasoning):
            message["reasoning_content"] = reasoning
        return message | ({"tool_calls": self._calls} if self._calls else {})

    def logprobs(self) -> dict[str, Any]:
        return logprobs_object(self._logprobs) or {"content": [], "refusal": None}


class ChatCollector:
    """Collects one chat completion."""

    def __init__(self, job: Job, *, n: int, logprobs: bool) -> None:
        self._job = job
        self._logprobs = logprobs
        self._messages = [MessageCollector() for _ in range(n)]

    def add(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._messages[event.choice].add(event)

    def body(self, usage: Usage) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": message.body(),
                "logprobs": message.logprobs() if self._logprobs else None,
                "finish_reason": message.reason,
            }
            for index, message in enumerate(self._messages)
        ]
        return _head(self._job, "chat.completion") | {"choices": choices, "usage": usage_object(usage)}


def _head(job: Job, kind: str) -> dict[str, Any]:
    """Return the fields that begin a completion or a chunk. OpenAI's chats name the service tier in each chunk, too;
    its text completions name none."""
    return head(job, kind) | {"service_tier": SERVICE_TIERS[job.priority]}


def logprobs_object(logprobs: Sequence[Logprobs]) -> dict[str, Any] | None:
    return {"content": [_logprobs(each) for each in logprobs], "refusal": None} if logprobs else None


def _call(part: CallPart) -> dict[str, Any]:
    return {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}}


def _call_delta(part: CallPart) -> dict[str, Any]:
    """Format a part of a call. The first part has the call's id and name."""
    if part.name:
        return {"index": part.call, **_call(part)}
    return {"index": part.call, "function": {"arguments": part.arguments}}


def _logprobs(logprobs: Logprobs) -> dict[str, Any]:
    return likelihood_object(logprobs.chosen) | {"top_logprobs": [likelihood_object(each) for each in logprobs.top]}


def likelihood_object(likelihood: Likelihood) -> dict[str, Any]:
    token = likelihood.token
    return {"token": token.decode(errors="replace"), "logprob": likelihood.logprob, "bytes": list(token)}
