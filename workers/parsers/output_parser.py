"""What more there is of a chat's answer than text, and the answer that is nothing but text."""

from typing import NamedTuple, Protocol

from shared.domain.events import CallPart, FinishReason


class ParsedDelta(NamedTuple):
    """What more there is of an answer."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()


class OutputParser(Protocol):
    """One choice's answer. `reasoning`: it has not begun to say anything. `called`: it calls tools. `enough`: it has
    called all that it may, so nothing need follow."""

    @property
    def reasoning(self) -> bool: ...

    @property
    def called(self) -> bool: ...

    @property
    def enough(self) -> bool: ...

    def push(self, text: str, reason: FinishReason | None = None) -> ParsedDelta:
        """The next piece; `reason` when none follows."""


class PlainParser:
    """All of it is text."""

    reasoning = False
    called = False
    enough = False

    def push(self, text: str, reason: FinishReason | None = None) -> ParsedDelta:
        return ParsedDelta(text)
