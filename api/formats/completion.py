"""Formats events as text completions: frames of a stream, or one body."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from api.formats.common import AnswerCollector, StreamFormatter, WithEventIds, head, never_streamed, usage_object
from api.formats.usage_so_far import WithUsageSoFar
from api.http.event_position import START, Position
from api.http.sse import DONE, KEEP_ALIVE, frame
from shared.domain.events import Completed, Delta, Echoed, Event, Finished, Likelihood, Logprobs, Started, Usage
from shared.domain.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionFormatter:
    """Formats a text completion. The client gets the best `n` of the `candidates` of each prompt. `echo` returns each
    prompt before its choices; `logprobs` adds log probabilities."""

    prompts: int
    candidates: int
    n: int
    echo: bool = False
    logprobs: bool = False
    include_usage: bool = False
    continuous_usage: bool = False

    def stream(self, job: Job, *, ids: bool, after: Position = START) -> StreamFormatter:
        """Return the formatter of the stream. With `ids`, it leaves out the frames up to `after`. Raises InvalidRequest
        if the best of several candidates are wanted, since these are known at the end."""
        if self.n < self.candidates:
            raise never_streamed()
        formatter: StreamFormatter = CompletionStreamFormatter(job, self)
        formatter = WithUsageSoFar(formatter) if self.continuous_usage else formatter
        return WithEventIds(formatter, after=after) if ids else formatter

    def whole(self, job: Job) -> AnswerCollector:
        return CompletionCollector(job, self)


@dataclass(slots=True)
class Choice:
    """One choice as it grows. `offset` is the length in characters of its listed tokens' text."""

    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None
    offset: int = 0
    total: float = 0.0
    tokens: int = 0

    @property
    def mean(self) -> float:
        """Return the mean log probability per token, which ranks the candidates."""
        return self.total / max(self.tokens, 1)

    def add(self, event: Delta | Echoed) -> None:
        self.texts.append(event.text)
        if isinstance(event, Echoed):
            tokens = [each.chosen.token for each in event.logprobs]
            self._list(event.logprobs, [None, *map(_value, event.logprobs[1:])], offsets_in(event.text, tokens))
            self.offset = len(event.text)
            return
        offsets = []
        for each in event.logprobs:
            offsets.append(self.offset)
            self.offset += _length(each.chosen.token)
        self._list(event.logprobs, list(map(_value, event.logprobs)), offsets)
        self.reason = event.finish_reason or self.reason
        self.total += sum(each.chosen.logprob for each in event.logprobs)
        self.tokens += len(event.logprobs)

    def body(self, form: CompletionFormatter) -> dict[str, Any]:
        """Return the complete choice."""
        logprobs = None
        if form.logprobs:
            names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
            logprobs = {name: [each[name] for each in self.logprobs] for name in names}
        return {
            "text": "".join(self.texts),
            "index": self.index,
            "logprobs": logprobs,
            "finish_reason": self.reason,
        }

    def flush(self, form: CompletionFormatter) -> dict[str, Any]:
        """Return the part that was added since the last call."""
        taken = self.body(form)
        self.texts, self.logprobs = [], []
        return taken

    def _list(self, logprobs: Sequence[Logprobs], values: Sequence[float | None], offsets: Sequence[int]) -> None:
        """List tokens. The first of a prompt follows nothing, so it has no value."""
        for each, value, offset in zip(logprobs, values, offsets, strict=False):
            self.logprobs.append(
                {
                    "tokens": _text(each.chosen),
                    "token_logprobs": value,
                    "top_logprobs": None if value is None else _top(each),
                    "text_offset": offset,
                }
            )


class _Choices:
    """All generated choices. A choice whose prompt is echoed waits for the echo."""

    def __init__(self, form: CompletionFormatter) -> None:
        self.all = [Choice(index) for index in range(form.candidates * form.prompts)]
        self._candidates = form.candidates
        self._echo = form.echo
        self._echoed: set[int] = set()
        self._early: dict[int, list[Delta]] = {}

    def of_prompt(self, prompt: int) -> list[Choice]:
        return self.all[prompt * self._candidates : (prompt + 1) * self._candidates]

    def ready(self, event: Event) -> list[tuple[Choice, Delta | Echoed]]:
        """Return in order the events that can be added now, each with its choice. A choice whose prompt is echoed waits
        for the echo."""
        match event:
            case Echoed():
                self._echoed.add(event.prompt)
                echoed: list[tuple[Choice, Delta | Echoed]] = [(each, event) for each in self.of_prompt(event.prompt)]
                return echoed + [(self.all[each.choice], each) for each in self._early.pop(event.prompt, ())]
            case Delta() if self._echo and (prompt := event.choice // self._candidates) not in self._echoed:
                self._early.setdefault(prompt, []).append(event)
            case Delta():
                return [(self.all[event.choice], event)]
        return []


class CompletionStreamFormatter:
    """Formats the frames of one stream."""

    tells_failure = False
    keep_alive = KEEP_ALIVE

    def __init__(self, job: Job, form: CompletionFormatter) -> None:
        self._head = head(job, "text_completion")
        self._form = form
        self._no_usage: dict[str, Any] = {"usage": None} if form.include_usage else {}
        self._choices = _Choices(form)

    def opening(self) -> bytes:
        return b""

    def frames(self, event: Event) -> Iterator[bytes]:
        match event:
            case Delta() | Echoed():
                for choice, part in self._choices.ready(event):
                    choice.add(part)
                    body = choice.flush(self._form)
                    if body["text"] or body["finish_reason"] or (body["logprobs"] and body["logprobs"]["tokens"]):
                        yield frame(self._head | {"choices": [body]} | self._no_usage)
            case Finished(outcome=Completed(usage=usage)):
                if self._form.include_usage:
                    yield frame(self._head | {"choices": [], "usage": usage_object(usage)})
                yield DONE
            case Started() | Finished():
                return


class CompletionCollector:
    """Collects all choices, and keeps the best."""

    def __init__(self, job: Job, form: CompletionFormatter) -> None:
        self._head = head(job, "text_completion")
        self._form = form
        self._choices = _Choices(form)

    def add(self, event: Event) -> None:
        for choice, part in self._choices.ready(event):
            choice.add(part)

    def body(self, usage: Usage) -> dict[str, Any]:
        kept: list[Choice] = []
        for prompt in range(self._form.prompts):
            candidates = self._choices.of_prompt(prompt)
            if self._form.n < self._form.candidates:
                candidates = sorted(candidates, key=lambda choice: -choice.mean)[: self._form.n]
            kept += candidates
        bodies = [choice.body(self._form) | {"index": index} for index, choice in enumerate(kept)]
        return self._head | {"choices": bodies, "usage": usage_object(usage)}


def offsets_in(text: str, tokens: Sequence[bytes]) -> list[int]:
    """Return where in the text, in characters, each of its tokens begins. A token that the text does not show, like one
    that a tokenizer puts before every text, takes no place in it."""
    written, at, begun, offsets = text.encode(), 0, 0, []
    for token in tokens:
        if at == 0 and not written.startswith(token):
            token = token.removeprefix(b" ")  # some tokenizers write a space before a text that has none
        offsets.append(begun - (at < len(written) and not _length(written[at : at + 1])))  # or within a character
        if written.startswith(token, at):
            at, begun = at + len(token), begun + _length(token)
    return offsets if at == len(written) else list(accumulate(map(_length, tokens), initial=0))[:-1]


def _length(token: bytes) -> int:
    """Return how many characters begin in the token, which may be a part of one."""
    return sum(byte & 0xC0 != 0x80 for byte in token)


def _value(logprobs: Logprobs) -> float:
    return logprobs.chosen.logprob


def _top(logprobs: Logprobs) -> dict[str, float]:
    """Return the log probabilities of the likeliest tokens and the chosen one, by their text."""
    return {_text(each): each.logprob for each in (*logprobs.top, logprobs.chosen)}


def _text(likelihood: Likelihood) -> str:
    r"""Write a token as OpenAI does; one that is not complete characters looks like bytes:\xe2\x80."""
    try:
        return likelihood.token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in likelihood.token)
