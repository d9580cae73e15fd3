"""Events of a chat job in the shapes of the OpenAI API: chunks of a stream, or one whole completion."""

from collections.abc import Iterable
from typing import Any

import orjson

from api.formats.common import head, usage_object
from api.sse import DONE, frame
from shared.events import Completed, Delta, Event, Finished, Likelihood, Logprobs, Started, Usage
from shared.job import Job


class ChatChunks:
    """Formats the frames of one stream. What every frame shares is encoded once."""

    def __init__(self, job: Job, *, include_usage: bool) -> None:
        self._choices = range(job.sampling.n)
        self._head = head(job, "chat.completion.chunk")
        self._include_usage = include_usage
        shared = orjson.dumps(self._head | ({"usage": None} if include_usage else {}))[:-1]
        self._before_index = b"data: " + shared + b',"choices":[{"index":'
        self._before_text = b',"delta":{"content":'
        self._after_text = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    def block(self, events: Iterable[Event]) -> bytes:
        """All frames of these events; what only the log needs has none."""
        return b"".join(part for event in events for part in self._frames(event))

    def _frames(self, event: Event) -> Iterable[bytes]:
        match event:
            case Started():
                for choice in self._choices:
                    yield self._chunk(choice, {"role": "assistant", "content": "", "refusal": None}, None)
            case Delta():
                if event.logprobs:
                    logprobs = {"content": [_logprobs(each) for each in event.logprobs], "refusal": None}
                    yield self._chunk(event.choice, {"content": event.text}, None, logprobs)
                elif event.text:
                    index = str(event.choice).encode()
                    text = orjson.dumps(event.text)
                    yield self._before_index + index + self._before_text + text + self._after_text
                if event.finish_reason:
                    yield self._chunk(event.choice, {}, event.finish_reason)
            case Finished(outcome=Completed(usage=usage)):
                if self._include_usage:
                    yield frame(self._head | {"choices": [], "usage": usage_object(usage)})
                yield DONE
            case Finished():
                return

    def _chunk(
        self, choice: int, delta: dict[str, Any], reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        body = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._before_index[: -len(b'{"index":')] + orjson.dumps(body) + b"]}\n\n"


class WholeChat:
    """Collects one chat completion."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._texts: list[list[str]] = [[] for _ in range(job.sampling.n)]
        self._reasons: list[str | None] = [None] * job.sampling.n
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in range(job.sampling.n)]

    def add(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._texts[event.choice].append(event.text)
            self._logprobs[event.choice] += [_logprobs(each) for each in event.logprobs]
            self._reasons[event.choice] = event.finish_reason or self._reasons[event.choice]

    def body(self, usage: Usage) -> dict[str, Any]:
        asked = self._job.sampling.logprobs
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(texts), "refusal": None},
                "logprobs": None if asked is None else {"content": self._logprobs[index], "refusal": None},
                "finish_reason": reason,
            }
            for index, (texts, reason) in enumerate(zip(self._texts, self._reasons, strict=True))
        ]
        return head(self._job, "chat.completion") | {"choices": choices, "usage": usage_object(usage)}


def _logprobs(logprobs: Logprobs) -> dict[str, Any]:
    return _likelihood(logprobs.chosen) | {"top_logprobs": [_likelihood(each) for each in logprobs.top]}


def _likelihood(likelihood: Likelihood) -> dict[str, Any]:
    token = likelihood.token
    return {"token": token.decode(errors="replace"), "logprob": likelihood.logprob, "bytes": list(token)}
