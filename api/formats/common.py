"""What all formats share: the protocols, the ids of frames, and what chat and text completions have in common."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from api.http.event_position import START, Position
from shared.domain.errors import InvalidRequest
from shared.domain.events import Event, Usage
from shared.domain.job import Job, Priority

FINGERPRINT = "penstock-1"
# OpenAI's names for the classes. An answer names the one in which it was served, whatever was asked for.
SERVICE_TIERS = {Priority.INTERACTIVE: "priority", Priority.STANDARD: "default", Priority.BATCH: "flex"}


class Formatter(Protocol):
    """Shapes the events of a job for its client. Behind it stand `RenderOptions` for chats and text completions,
    `ResponseRecord` for responses, and `WholeOnly` for all that is never streamed.

    `job` is the job that is really done: an earlier one where an Idempotency-Key was sent again."""

    def stream(self, job: Job, *, ids: bool) -> "StreamFormatter":
        """Make what frames the stream. With `ids` each frame says where it belongs, so that the stream can be picked up
        behind it. Raises InvalidRequest for an answer that only comes whole."""

    def whole(self, job: Job) -> "AnswerCollector":
        """Make what collects the whole answer."""


class AnswerCollector(Protocol):
    """What a whole answer is collected in."""

    def add(self, event: Event) -> None: ...

    def body(self, usage: Usage) -> dict[str, Any]: ...


class StreamFormatter(Protocol):
    """What turns events into the frames of a stream. `tells_failure`: one of them says that the job failed; else the
    stream is broken off with an error."""

    tells_failure: bool

    def opening(self) -> bytes:
        """Frames before any event."""

    def frames(self, event: Event) -> Iterable[bytes]:
        """The event's frames, each with its blank line; an event that only the log needs has none. A log gives the
        same frames whenever it is read, since a client names the place where it lost its stream by counting them."""


class WholeOnly:
    """The formatter of an endpoint that streams nothing. `collect` makes what collects its answer."""

    def __init__(self, collect: Callable[[Job], AnswerCollector]) -> None:
        self._collect = collect

    def stream(self, job: Job, *, ids: bool) -> StreamFormatter:
        raise never_streamed()

    def whole(self, job: Job) -> AnswerCollector:
        return self._collect(job)


class WithEventIds:
    """Frames that carry their position as `id`, so that a client can go on behind any of them. Those up to `after` are
    left out."""

    def __init__(self, formatter: StreamFormatter, *, after: Position = START) -> None:
        self.tells_failure = formatter.tells_failure
        self._formatter = formatter
        self._after = after

    def opening(self) -> bytes:
        return self._formatter.opening()

    def frames(self, event: Event) -> Iterator[bytes]:
        """The event's number stands in its last frame: a client that has it has the whole event."""
        frames = list(self._formatter.frames(event))
        for count, frame in enumerate(frames, 1):
            position = Position(event.seq) if count == len(frames) else Position(event.seq - 1, count)
            if position > self._after:
                yield frame[:-1] + b"id: %s\n\n" % str(position).encode()


def never_streamed() -> InvalidRequest:
    return InvalidRequest("This job's answer comes whole: send the request again with its Idempotency-Key.")


def head(job: Job, kind: str) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": kind,
        "created": job.created_ms // 1000,
        "model": job.model,
        "system_fingerprint": FINGERPRINT,
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
