"""vLLM's `continuous_usage_stats`: each chunk of a stream says how many tokens its choice has so far."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson

from api.formats.common import StreamFormatter
from shared.domain.events import Delta, Event, Finished, Started

HEAD, TAIL = b"data: ", b"\n\n"


class WithUsageSoFar:
    """Adds the usage to the frames of a chat or a completion. A model that answers in text alone has its tokens
    counted by its pieces, which is `estimated`."""

    def __init__(self, formatter: StreamFormatter) -> None:
        self.tells_failure, self.keep_alive = formatter.tells_failure, formatter.keep_alive
        self._formatter = formatter
        self._prompt_tokens = 0
        self._tokens: Counter[int] = Counter()
        self._estimated = False

    def opening(self) -> bytes:
        return self._formatter.opening()

    def frames(self, event: Event) -> Iterator[bytes]:
        match event:
            case Started():
                self._prompt_tokens = event.prompt_tokens
            case Delta():
                self._estimated = self._estimated or bool(event.text and not event.token_ids)
                self._tokens[event.choice] += len(event.token_ids) or bool(event.text or event.reasoning)
        frames = self._formatter.frames(event)
        yield from frames if isinstance(event, Finished) else map(self._counted, frames)

    def _counted(self, frame: bytes) -> bytes:
        body: dict[str, Any] = orjson.loads(frame.removeprefix(HEAD))
        completion = self._tokens[body["choices"][0]["index"]]
        usage = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self._prompt_tokens + completion,
        }
        body["usage"] = usage | ({"estimated": True} if self._estimated else {})
        return HEAD + orjson.dumps(body) + TAIL
