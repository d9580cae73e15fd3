"""From events to text completions: frames of a stream, or one body."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from api.formats.common import head, usage_object
from api.http.sse import DONE, frame
from shared.domain.events import Completed, Delta, Echoed, Event, Finished, Likelihood, Logprobs, Started, Usage
from shared.domain.job import Job


@dataclass(frozen=True, slots=True)
class CompletionForm:
    """`n`: choices for each prompt, the best of those that were made. `logprobs`: whether they are shown."""

    n: int
    logprobs: bool


@dataclass(slots=True)
class Choice:
    """One answer as it grows. `offset`: how long the text of its listed tokens is."""

    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None
    offset: int = 0
    total: float = 0.0
    tokens: int = 0

    @property
    def mean(self) -> float:
        """Log probability for each token: what the best are the best by."""
        return self.total / max(self.tokens, 1)

    def echo(self, event: Echoed) -> None:
        self.texts.append(event.text)
        self._list(event.logprobs, first_unknown=True)

    def add(self, event: Delta) -> None:
        self.texts.append(event.text)
        self._list(event.logprobs)
        self.reason = event.finish_reason or self.reason
        self.total += sum(each.chosen.logprob for each in event.logprobs)
        self.tokens += len(event.logprobs)

    def body(self, form: CompletionForm) -> dict[str, Any]:
        """What has been added."""
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

    def take(self, form: CompletionForm) -> dict[str, Any]:
        """What has been added since the last time."""
        taken = self.body(form)
        self.texts, self.logprobs = [], []
        return taken

    def _list(self, logprobs: tuple[Logprobs, ...], *, first_unknown: bool = False) -> None:
        for at, each in enumerate(logprobs):
            unknown = first_unknown and at == 0
            token = _text(each.chosen)
            self.logprobs.append(
                {
                    "tokens": token,
                    "token_logprobs": None if unknown else each.chosen.logprob,
                    "top_logprobs": None if unknown else _top(each),
                    "text_offset": self.offset,
                }
            )
            self.offset += len(token)


class _Choices:
    """All that are made. A choice whose prompt comes back waits for it."""

    def __init__(self, job: Job) -> None:
        self.made = job.sampling.n
        self.all = [Choice(index) for index in range(self.made * len(job.request["prompts"]))]
        self._echo = bool(job.request["echo"])
        self._echoed: set[int] = set()
        self._early: dict[int, list[Delta]] = {}

    def add(self, event: Event) -> Iterator[Choice]:
        """Take the event; the choices that it adds to."""
        match event:
            case Echoed():
                self._echoed.add(event.prompt)
                for choice in self.all[event.prompt * self.made : (event.prompt + 1) * self.made]:
                    choice.echo(event)
                    yield choice
                for early in self._early.pop(event.prompt, ()):
                    yield from self.add(early)
            case Delta():
                prompt = event.choice // self.made
                if self._echo and prompt not in self._echoed:
                    self._early.setdefault(prompt, []).append(event)
                else:
                    self.all[event.choice].add(event)
                    yield self.all[event.choice]


class CompletionStreamFormatter:
    """Formats the frames of one stream."""

    tells_failure = False

    def __init__(self, job: Job, form: CompletionForm, *, include_usage: bool) -> None:
        self._head = head(job, "text_completion")
        self._form = form
        self._include_usage = include_usage
        self._choices = _Choices(job)

    def opening(self) -> bytes:
        return b""

    def frames(self, event: Event) -> Iterator[bytes]:
        match event:
            case Delta() | Echoed():
                for choice in self._choices.add(event):
                    body = choice.take(self._form)
                    if body["text"] or body["finish_reason"] or (body["logprobs"] and body["logprobs"]["tokens"]):
                        yield frame(self._head | {"choices": [body]} | ({"usage": None} if self._include_usage else {}))
            case Finished(outcome=Completed(usage=usage)):
                if self._include_usage:
                    yield frame(self._head | {"choices": [], "usage": usage_object(usage)})
                yield DONE
            case Started() | Finished():
                return


class CompletionCollector:
    """Collects all choices, and keeps the best."""

    def __init__(self, job: Job, form: CompletionForm) -> None:
        self._head = head(job, "text_completion")
        self._form = form
        self._choices = _Choices(job)

    def add(self, event: Event) -> None:
        for _ in self._choices.add(event):
            pass

    def body(self, usage: Usage) -> dict[str, Any]:
        made = self._choices.made
        kept: list[Choice] = []
        for begin in range(0, len(self._choices.all), made):
            candidates = self._choices.all[begin : begin + made]
            if self._form.n < made:
                candidates = sorted(candidates, key=lambda choice: -choice.mean)[: self._form.n]
            kept += candidates
        bodies = [choice.body(self._form) | {"index": index} for index, choice in enumerate(kept)]
        return self._head | {"choices": bodies, "usage": usage_object(usage)}


def _top(logprobs: Logprobs) -> dict[str, float]:
    """The likeliest tokens and the chosen one."""
    return {_text(each): each.logprob for each in (*logprobs.top, logprobs.chosen)}


def _text(likelihood: Likelihood) -> str:
    r"""As OpenAI writes tokens; those that are no whole characters look like bytes:\xe2\x80."""
    try:
        return likelihood.token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in likelihood.token)
