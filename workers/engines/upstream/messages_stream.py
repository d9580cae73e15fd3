"""Reads the events of Anthropic's streamed messages. Pure. (platform.claude.com/docs/en/build-with-claude/streaming)"""

from collections.abc import Mapping
from typing import Any

import orjson

from shared.domain.events import CallPart, FinishReason, Usage
from workers.engines.upstream.answers import error_in_stream
from workers.engines.upstream.errors import UpstreamBroken
from workers.source import Piece, Reasoning, Said, Text

REASONS = {"max_tokens": FinishReason.LENGTH, "tool_use": FinishReason.TOOL_CALLS}  # all others end an answer


class MessagesReader:
    """`ended` is true once the message is whole. The spaces at the end of what was said may come again; they are left
    out then."""

    def __init__(self, said: Said) -> None:
        self.ended = False
        self._spaces = said.text[len(said.text.rstrip()) :]
        self._prompt: Mapping[str, Any] = {}
        self._calls: dict[int, int] = {}  # the number of the call in each block

    def read(self, data: bytes) -> list[Piece]:
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise UpstreamBroken(f"sends what is no JSON: {data[:80]!r}") from error
        match event:
            case {"type": "content_block_delta", "index": block, "delta": delta}:
                return self._delta(block, delta)
            case {"type": "content_block_start", "index": block, "content_block": {"type": "tool_use"} as use}:
                number = self._calls[block] = len(self._calls)
                return [CallPart(number, use["id"], use["name"], "")]
            case {"type": "message_start", "message": message}:
                self._prompt = message.get("usage") or {}
            case {"type": "message_delta", "delta": delta}:
                return [*self._reason(delta), self._usage(event.get("usage") or {})]
            case {"type": "message_stop"}:
                self.ended = True
            case {"type": "error", "error": error}:
                raise error_in_stream(error)
        return []

    def _delta(self, block: int, delta: Mapping[str, Any]) -> list[Piece]:
        match delta:
            case {"type": "text_delta", "text": text}:
                text = self._without_spaces(text)
                return [Text(text)] if text else []
            case {"type": "thinking_delta", "thinking": text}:
                return [Reasoning(text)] if text else []
            case {"type": "input_json_delta", "partial_json": text} if block in self._calls:
                return [CallPart(self._calls[block], "", "", text)] if text else []
        return []

    def _without_spaces(self, text: str) -> str:
        while self._spaces and text:
            if text[0] != self._spaces[0]:
                self._spaces = ""
            else:
                text, self._spaces = text[1:], self._spaces[1:]
        return text

    def _reason(self, delta: Mapping[str, Any]) -> list[Piece]:
        reason = delta.get("stop_reason")
        return [REASONS.get(reason, FinishReason.STOP)] if reason else []

    def _usage(self, made: Mapping[str, Any]) -> Usage:
        cached = self._prompt.get("cache_read_input_tokens") or 0
        written = self._prompt.get("cache_creation_input_tokens") or 0
        return Usage(
            prompt_tokens=(self._prompt.get("input_tokens") or 0) + cached + written,
            completion_tokens=made.get("output_tokens") or 0,
            cached_tokens=cached,
        )
