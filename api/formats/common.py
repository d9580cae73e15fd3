"""The shared parts of all formats: the protocols, the ids of frames, and the fields common to chats and completions."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from api.http.event_position import START, Position
from shared.domain.errors import InvalidRequest
from shared.domain.events import Event, Usage
from shared.domain.job import Job, Priority

FINGERPRINT = "penstock-1"
# OpenAI's names for the classes. An answer names the class in which it was served, not the requested one.
SERVICE_TIERS = {Priority.INTERACTIVE: "priority", Priority.STANDARD: "default", Priority.BATCH: "flex"}


class Formatter(Protocol):
    """Formats the events of a job for its client: `ChatFormatter`, `CompletionFormatter`, `ResponseRecord`, or
    `WholeOnly` for answers that are never streamed.

    `job` is the job that really runs: an earlier one if an Idempotency-Key was sent again."""

    def stream(self, job: Job, *, ids: bool) -> "StreamFormatter":
        """Return a formatter of the stream. With `ids` each frame carries its position, so that the stream can be
        resumed behind it. Raises InvalidRequest for an answer that cannot be streamed."""

    def whole(self, job: Job) -> "AnswerCollector":
        """Return a collector of the complete answer."""


class AnswerCollector(Protocol):
    """Collects the events of a job into one complete answer."""

    def add(self, event: Event) -> None: ...

    def body(self, usage: Usage) -> dict[str, Any]: ...


class StreamFormatter(Protocol):
    """Turns events into the frames of a stream. With `tells_failure`, a frame reports the failure of the job; otherwise
    the stream is broken off with an error. `keep_alive` is sent while no frame comes."""

    tells_failure: bool
    keep_alive: bytes

    def opening(self) -> bytes:
        """Return the frames before any event."""

    def frames(self, event: Event) -> Iterable[bytes]:
        """Return the event's frames, each with its blank line; an event that only the log needs has none. A log always
        gives the same frames, since a client counts them to name the position at which it lost its stream."""


class WholeOnly:
    """The formatter of an endpoint that does not stream. `collect` creates the collector of its answer."""

    def __init__(self, collect: Callable[[Job], AnswerCollector]) -> None:
        self._collect = collect

    def stream(self, job: Job, *, ids: bool) -> StreamFormatter:
        raise never_streamed()

    def whole(self, job: Job) -> AnswerCollector:
        return self._collect(job)


class WithEventIds:
    """Adds to each frame its position as `id`, so that a client can resume behind any of them. Frames up to `after` are
    left out."""

    def __init__(self, formatter: StreamFormatter, *, after: Position = START) -> None:
        self.tells_failure = formatter.tells_failure
        self.keep_alive = formatter.keep_alive
        self._formatter = formatter
        self._after = after

    def opening(self) -> bytes:
        return self._formatter.opening()

    def frames(self, event: Event) -> Iterator[bytes]:
        """Yield the event's frames. Only the last one carries the event's number: a client that has it has them all."""
        frames = list(self._formatter.frames(event))
        for count, frame in enumerate(frames, 1):
            position = Position(event.seq) if count == len(frames) else Position(event.seq - 1, count)
            if position > self._after:
                yield frame[:-1] + b"id: %s\n\n" % str(position).encode()


def never_streamed() -> InvalidRequest:
    return InvalidRequest("This job's answer cannot be streamed: send the request again with its Idempotency-Key.")


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
    } | estimated(usage)


def estimated(usage: Usage) -> dict[str, Any]:
    """Return the field that says so, if nobody counted the tokens."""
    return {"estimated": True} if usage.estimated else {}
