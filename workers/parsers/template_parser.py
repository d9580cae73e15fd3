"""The template parser splits an answer's text into text, reasoning and tool calls, each as soon as it is certain.

transformers' response parser finds the regions; the reader of the model's tool format reads the calls in them. A model
that brings a response template of its own is parsed by that alone.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers.utils.chat_parsing import ResponseParser

from shared.domain.events import CallPart, FinishReason
from workers.parsers.output_parser import ParsedDelta
from workers.parsers.tool_calls import ArgumentsDelta, CallReader, CallStarted, Found, PlainText
from workers.parsers.tool_formats import Thinking, ToolFormat

REASONING = ("reasoning", "reasoning_content", "thinking")  # the names that templates give it
CALLS = ("calls", "tool_calls")


class TemplateParser:
    """`template` is a response template of transformers. `prompt` is the end of the prompt, for templates that look at
    it; `opened` is the part of the answer that the prompt already holds. The ids of calls derive from `seed`, so that
    they stay the same when another worker continues the job."""

    def __init__(
        self,
        template: Mapping[str, Any],
        *,
        seed: str,
        reader: Callable[[], CallReader] | None = None,
        tools: list[dict[str, Any]] | None = None,
        parallel: bool = True,
        prompt: str = "",
        opened: str = "",
    ) -> None:
        self._parser = ResponseParser(dict(template), prefix=prompt, tools=tools)
        self._make_reader = reader
        self._reader: CallReader | None = None
        self._parallel = parallel
        self._seed = seed
        self._calls: list[CallPart] = []
        self._cut = False
        self._count = 0
        self._begun = False  # some text has been shown
        self._space = ""  # white space that counts only if text follows it
        self._region = ""  # the text of the open region, in case it is not what its mark says
        self._broken = False
        self.reasoning = any(event["field"] in REASONING for event in self._parser.initial_events[-1:])
        self.enough = False
        if opened:
            self.push(opened)
            self.reasoning = True

    @property
    def called(self) -> bool:
        return self._count > 0

    def push(self, text: str, reason: FinishReason | None = None) -> ParsedDelta:
        shown: list[str] = []
        thought: list[str] = []
        self._calls, self._cut = [], reason is FinishReason.LENGTH
        for event in self._events(text, last=reason is not None):
            match event:
                case {"type": "region_chunk", "field": field, "text": piece} if field in REASONING:
                    thought.append(piece)
                case {"field": field} if field in CALLS:
                    shown += self._call(event)
                case {"type": "region_chunk", "text": piece}:
                    shown.append(piece)
                case {"field": field, "type": kind} if field in REASONING:
                    self.reasoning = kind == "region_open"
        return ParsedDelta(self._spaced("".join(shown), last=reason is not None), "".join(thought), tuple(self._calls))

    def _events(self, text: str, *, last: bool) -> list[dict[str, Any]]:
        """The regions of the text. A region that is not what its mark says is text, and so is all that follows."""
        self._region += text
        if self._broken:
            return [_shown(text)]
        try:
            events: list[dict[str, Any]] = self._parser.feed(text)
            if last:
                events += self._parser.finalize()[1]
        except (ValueError, KeyError, TypeError, RecursionError):
            self._broken = True
            return [_shown(self._region)]
        if events and events[-1]["type"] != "region_chunk":
            self._region = ""
        return events

    def _call(self, event: dict[str, Any]) -> Iterable[str]:
        """Read a region of calls; return the parts that turn out to be text."""
        match event:
            case {"type": "region_open"}:
                self._reader = self._make_reader() if self._make_reader else None
                return []
            case {"type": "region_chunk", "text": text} if self._reader:
                return list(self._read(self._reader.feed(text)))
            case {"type": "region_close"} if self._reader:
                text_found = list(self._read(self._reader.end(cut=self._cut)))
                self.enough = self.called and not self._parallel
                return text_found
            case {"type": "region_close", "value": value}:
                return list(self._read(_parsed(value)))
        return []

    def _read(self, found: Iterable[Found]) -> Iterable[str]:
        for each in found:
            match each:
                case CallStarted() if self.called and not self._parallel:
                    self.enough = True
                case _ if self.enough:
                    pass
                case CallStarted(name=name):
                    self._count += 1
                    self._calls.append(CallPart(self._count - 1, self._id(), name, ""))
                case ArgumentsDelta(text=text):
                    self._argue(text)
                case PlainText(text=text):
                    yield text

    def _argue(self, text: str) -> None:
        last = self._calls.pop() if self._calls else CallPart(self._count - 1, "", "", "")
        self._calls.append(last._replace(arguments=last.arguments + text))

    def _id(self) -> str:
        return "call_" + hashlib.blake2b(f"{self._seed} {self._count}".encode(), digest_size=12).hexdigest()

    def _spaced(self, text: str, *, last: bool) -> str:
        """The text without white space before the first word, and without white space that only separates calls."""
        text = self._space + text
        if not self._begun:
            text = text.lstrip()
        words = text.rstrip()
        self._space = text[len(words) :]
        self._begun = self._begun or bool(words)
        if last and not self.called:
            words += self._space
        return words


def response_template(thinking: Thinking | None, tool_format: ToolFormat | None) -> dict[str, Any]:
    """A response template in the form of transformers."""
    fields: dict[str, Any] = {"content": {"content": "text"}}
    if thinking:
        opening, closing = map(re.escape, thinking)
        fields["reasoning"] = {"open_pattern": rf"\s*{opening}\s*", "close_pattern": rf"\s*{closing}"}
    if tool_format:
        ends = {"close_pattern": tool_format.closing} if tool_format.closing else {}
        fields["calls"] = {"open_pattern": tool_format.opening, "repeats": True, **ends}
    return {"start_anchor": "\0", "fields": fields}  # it never sees a prompt, so the anchor does not matter


def _parsed(value: Any) -> Iterable[Found]:
    """Read a call, or a list of them, in the shape that response templates give them."""
    for call in value if isinstance(value, list) else [value]:
        function = call["function"]
        arguments = function["arguments"]
        yield CallStarted(function["name"])
        yield ArgumentsDelta(arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def _shown(text: str) -> dict[str, Any]:
    return {"type": "region_chunk", "field": "content", "text": text}
