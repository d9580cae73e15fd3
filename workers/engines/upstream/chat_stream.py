"""Reads the chunks of a streamed chat or completion, with the habits that providers have. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import orjson

from shared.domain.events import CallPart, FinishReason, Likelihood, Logprobs, Usage
from workers.engines.upstream.answers import failure_in
from workers.engines.upstream.errors import UpstreamBroken
from workers.source import Piece, Reasoning, Text

REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "content_filter": FinishReason.STOP,  # readers of release 0.2 know no other word for an end before the budget's
    "sensitive": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}
FAILED = frozenset({"abort", "error", "network_error", "insufficient_system_resource"})


class Reader(Protocol):
    """Reads the events of one answer."""

    @property
    def ended(self) -> bool:
        """True once the answer is whole."""

    def read(self, data: bytes) -> list[Piece]:
        """Return the pieces of one event. Raises UpstreamError."""


class ChunkReader:
    """The pieces of one answer. `ended` is true once its finish reason has come: a stream that ends before was cut."""

    def __init__(self) -> None:
        self.ended = False
        self._calls: list[tuple[int | None, str]] = []  # index and id of each call, as the upstream has them

    def read(self, data: bytes) -> list[Piece]:
        """Raises UpstreamError for an error in the stream."""
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise UpstreamBroken(f"sends what is no JSON: {data[:80]!r}") from error
        pieces: list[Piece] = []
        choices = chunk.get("choices")
        if not choices and (failure := failure_in(chunk)):
            raise failure
        for choice in choices or ():
            self._choice(choice, pieces)
        usage = chunk.get("usage") or _usage_elsewhere(chunk)
        if usage:
            pieces.append(usage_of(usage))
        return pieces

    def _choice(self, choice: Mapping[str, Any], pieces: list[Piece]) -> None:
        delta = choice.get("delta") or choice
        text = delta.get("content") or delta.get("text") or delta.get("refusal")
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning") or _details(delta):
            pieces.append(Reasoning(reasoning))
        if text:
            rows = choice.get("logprobs")
            pieces.append(Text(text, logprobs=_logprobs(rows)) if rows else Text(text))
        for call in delta.get("tool_calls") or ():
            pieces.append(self._call(call))
        if reason := choice.get("finish_reason"):
            if reason in FAILED:
                raise UpstreamBroken(f"ends its stream with {reason}")
            self.ended = True
            pieces.append(REASONS.get(reason, FinishReason.STOP))

    def _call(self, call: Mapping[str, Any]) -> CallPart:
        """The next part of a call. Calls are counted here: some upstreams leave the index out, begin it at 1, or give
        each call the same, and some say id and name again in each part."""
        function, id_, index = call.get("function") or {}, call.get("id") or "", call.get("index")
        arguments = function.get("arguments") or ""
        text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
        for number, known in reversed(list(enumerate(self._calls))):
            if (index is None and not id_) or known == (index, id_) or (not id_ and known[0] == index):
                return CallPart(number, "", "", text)
        self._calls.append((index, id_))
        return CallPart(len(self._calls) - 1, id_ or f"call_{len(self._calls)}", function.get("name") or "", text)


class WithoutEcho:
    """Reads an answer that may begin with the text that it continues, `said`, and leaves that out. A beginning that
    turns out to be another one is passed on whole."""

    def __init__(self, reader: Reader, said: str) -> None:
        self._reader = reader
        self._left = said  # of the echo
        self._held: list[Piece] = []  # what has been an echo so far

    @property
    def ended(self) -> bool:
        return self._reader.ended

    def read(self, data: bytes) -> list[Piece]:
        """Raises UpstreamError for an error in the stream."""
        return [passed for piece in self._reader.read(data) for passed in self._passed(piece)]

    def _passed(self, piece: Piece) -> list[Piece]:
        if not self._left or not isinstance(piece, Text | FinishReason):
            return [piece]
        if isinstance(piece, Text) and self._left.startswith(piece.text):
            self._left = self._left.removeprefix(piece.text)
            self._held.append(piece)
            return []
        if isinstance(piece, Text) and piece.text.startswith(self._left):
            begun, self._left = self._left, ""
            return [replace(piece, text=piece.text.removeprefix(begun))]
        self._left = ""
        return [*self._held, piece]


def usage_of(usage: Mapping[str, Any]) -> Usage:
    """The tokens that the upstream counted, with the names that providers have for those of its cache."""
    details, made = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    cached = details.get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or usage.get("cached_tokens")
    return Usage(
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        cached_tokens=cached or 0,
        reasoning_tokens=made.get("reasoning_tokens") or 0,
    )


def _usage_elsewhere(chunk: Mapping[str, Any]) -> Any:
    """Moonshot's is in the choice, Groq's in a field of its own."""
    choices = chunk.get("choices")
    return (choices and choices[0].get("usage")) or (chunk.get("x_groq") or {}).get("usage")


def _details(delta: Mapping[str, Any]) -> str:
    """MiniMax's and OpenRouter's reasoning, in parts."""
    return "".join(part.get("text") or "" for part in delta.get("reasoning_details") or ())


def _logprobs(rows: Mapping[str, Any]) -> tuple[Logprobs, ...]:
    """A chat's rows, or the lists of a completion."""
    if tokens := rows.get("tokens"):
        top = rows.get("top_logprobs") or [{}] * len(tokens)
        listed = zip(tokens, rows["token_logprobs"], top, strict=True)
        return tuple(
            Logprobs(
                Likelihood(token.encode(), logprob or 0.0),
                tuple(Likelihood(other.encode(), value) for other, value in (likely or {}).items()),
            )
            for token, logprob, likely in listed
        )
    return tuple(
        Logprobs(_likelihood(row), tuple(map(_likelihood, row.get("top_logprobs") or ())))
        for row in rows.get("content") or ()
    )


def _likelihood(row: Mapping[str, Any]) -> Likelihood:
    raw = row.get("bytes")
    return Likelihood(bytes(raw) if raw is not None else str(row["token"]).encode(), row["logprob"])
