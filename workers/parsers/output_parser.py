"""Output parsers split an answer's text into text, reasoning and tool calls; `PlainParser` is for answers of text
alone."""

from typing import NamedTuple, Protocol

from shared.domain.events import CallPart, FinishReason


class ParsedDelta(NamedTuple):
    """The parts that a piece of an answer adds."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()


class OutputParser(Protocol):
    """A parser of one choice's answer. `reasoning`: the model reasons, and has not begun to answer. `called`: it has
    called tools. `enough`: it has made all calls that it may, so nothing need follow."""

    @property
    def reasoning(self) -> bool: ...

    @property
    def called(self) -> bool: ...

    @property
    def enough(self) -> bool: ...

    def push(self, text: str, reason: FinishReason | None = None) -> ParsedDelta:
        """Parse the next piece; `reason` is given with the last one."""


class PlainParser:
    """A parser that takes all of an answer as text."""

    reasoning = False
    called = False
    enough = False

    def push(self, text: str, reason: FinishReason | None = None) -> ParsedDelta:
        return ParsedDelta(text)
