"""One answer of a source: its text so far, its stop strings, its budget and its tokens. Pure decisions."""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shared.domain.events import CallPart, Delta, FinishReason, Logprobs, Usage
from shared.domain.job import Sampling
from workers.runs.stop_strings import StopStrings
from workers.source import AnswerLost, ChatSource, Piece, Reasoning, Said, Text

ANSWER_CHARS_MAX = 4_000_000


@dataclass(slots=True, kw_only=True)
class Part:
    """The part that a piece adds to an answer. `reason` is set if nothing can follow, and `stop` if a stop
    string ended it."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()
    reason: FinishReason | None = None
    stop: str = ""

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.calls or self.logprobs or self.reason)


class Answer:
    """`said` is what earlier attempts logged. If the source is asked to repeat it, the answer is compared with it and
    skipped as far."""

    def __init__(self, source: ChatSource, sampling: Sampling, said: Said, *, repeats: bool) -> None:
        self.tokens = TokenCount(source.count)
        self.usage: Usage | None = None
        self.goes_on = bool(said) and not repeats
        self.counts_rest = self.goes_on and not source.counts_whole  # its usage is that of the rest alone
        self._stops = StopStrings(sampling.stop, included=sampling.include_stop_str_in_output)
        self._budget = None if source.keeps_budget else sampling.max_tokens
        self._wants_logprobs = sampling.logprobs is not None
        self._repetition = Repetition(Said() if self.goes_on else said)
        self._reason: FinishReason | None = None
        self._called = bool(said.calls)
        self._chars = 0
        if self.goes_on:
            self.tokens.add(said.text)
            self.tokens.add(said.reasoning, reasoning=True)
            self.tokens.add("".join(call.name + call.arguments for call in said.calls))

    def push(self, piece: Piece) -> Part:
        """Raises AnswerLost for a repeated answer that differs from what was said."""
        match piece:
            case FinishReason():  # it is a string, too
                self._reason = piece
                return Part()
            case Usage():
                self.usage = piece
                return Part()
            case str() | Text():
                part = self._text(Text(piece) if isinstance(piece, str) else piece)
            case Reasoning():
                text = self._counted(piece.text, piece.tokens, reasoning=True)
                part = Part(reasoning=self._repetition.reasoning(text))
            case CallPart():
                part = self._call(piece)
            case _:
                raise TypeError(f"a source gives no {type(piece).__name__}, but what penstock.engines.Piece names")
        if part.reason is None and self._spent:
            part.text += self._stops.end()
            part.reason = FinishReason.LENGTH
        return part

    def end(self) -> Part:
        """Return what is left when the source has nothing more to say."""
        if self._repetition.missing:
            raise AnswerLost("The repeated answer ended before what was said of it already.")
        usual = FinishReason.TOOL_CALLS if self._called else FinishReason.STOP
        return Part(text=self._stops.end(), reason=self._reason or usual)

    def _text(self, piece: Text) -> Part:
        fresh = self._repetition.text(self._counted(piece.text, piece.tokens))
        text = self._stops.push(fresh)
        logprobs = piece.logprobs if self._wants_logprobs and (fresh or not piece.text) else ()
        reason = FinishReason.STOP if self._stops.found else None
        return Part(text=text, logprobs=logprobs, reason=reason, stop=self._stops.found)

    def _call(self, piece: CallPart) -> Part:
        self._called = True
        self._counted(piece.name + piece.arguments, None, whole=True)
        fresh = self._repetition.call(piece)
        return Part(calls=(fresh,) if fresh else ())

    def _counted(self, text: str, tokens: int | None, *, reasoning: bool = False, whole: bool = False) -> str:
        """Count the text; return it, cut where the budget ends if it may be cut and the source told no tokens."""
        if self._budget is not None and tokens is None and not whole and self.tokens.with_more(text) > self._budget:
            sizes = range(1, len(text) + 1)
            text = text[: bisect_right(sizes, self._budget, key=lambda size: self.tokens.with_more(text[:size]))]
        self._chars += len(text)
        self.tokens.add(text, tokens, reasoning=reasoning)
        return text

    @property
    def _spent(self) -> bool:
        return self._chars > ANSWER_CHARS_MAX or (self._budget is not None and self.tokens.total >= self._budget)


class TokenCount:
    """The tokens of an answer: those that the source told, and those of the rest of its text, as `count` says."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self._told = self._told_reasoning = 0
        self._untold: list[str] = []
        self._untold_reasoning: list[str] = []

    def add(self, text: str, tokens: int | None = None, *, reasoning: bool = False) -> None:
        self._told += tokens or 0
        if reasoning:
            self._told_reasoning += tokens or 0
        if tokens is None:
            self._untold.append(text)
            if reasoning:
                self._untold_reasoning.append(text)

    def with_more(self, text: str) -> int:
        return self._told + self._count("".join([*self._untold, text]))

    @property
    def total(self) -> int:
        return self.with_more("")

    @property
    def reasoning(self) -> int:
        return self._told_reasoning + self._count("".join(self._untold_reasoning))


class Repetition:
    """Takes from an answer that is given again what was said of it before. Raises AnswerLost where it differs."""

    def __init__(self, said: Said) -> None:
        self._text = said.text
        self._reasoning = said.reasoning
        self._calls = {call.call: call for call in said.calls}

    @property
    def missing(self) -> bool:
        return bool(self._text or self._reasoning or any(call.name or call.arguments for call in self._calls.values()))

    def text(self, text: str) -> str:
        self._text, fresh = _compared(self._text, text)
        return fresh

    def reasoning(self, text: str) -> str:
        self._reasoning, fresh = _compared(self._reasoning, text)
        return fresh

    def call(self, part: CallPart) -> CallPart | None:
        """Return what is new in the part of a call, None if nothing is. Its id was said, and may be another one now."""
        if (said := self._calls.get(part.call)) is None:
            return part
        name, new_name = _compared(said.name, part.name)
        arguments, new_arguments = _compared(said.arguments, part.arguments)
        self._calls[part.call] = said._replace(name=name, arguments=arguments)
        return CallPart(part.call, "", new_name, new_arguments) if new_name or new_arguments else None


def _compared(said: str, text: str) -> tuple[str, str]:
    """Return what is missing of `said` after this text, and what the text adds to it."""
    if said[: len(text)] != text[: len(said)]:
        raise AnswerLost("The repeated answer differs from what was said of it already.")
    return said[len(text) :], text[len(said) :]


def said_by(deltas: Iterable[Delta]) -> Said:
    """Return what the deltas of one choice say together."""
    texts, reasoning, calls = [], [], dict[int, CallPart]()
    for delta in deltas:
        texts.append(delta.text)
        reasoning.append(delta.reasoning)
        for part in delta.calls:
            begun = calls.get(part.call, CallPart(part.call, "", "", ""))
            calls[part.call] = CallPart(
                part.call, begun.id + part.id, begun.name + part.name, begun.arguments + part.arguments
            )
    pieces = sum(bool(text) for text in (*texts, *reasoning))
    return Said(text="".join(texts), reasoning="".join(reasoning), calls=tuple(calls.values()), pieces=pieces)
