"""What chat and text completions share."""

from collections.abc import Iterable
from typing import Any, Protocol

from shared.events import Event, Usage
from shared.job import Job

FINGERPRINT = "penstock-1"


class Answer(Protocol):
    """What a whole answer is collected in."""

    def add(self, event: Event) -> None: ...

    def body(self, usage: Usage) -> dict[str, Any]: ...


class Chunks(Protocol):
    """What turns events into the frames of a stream. `tells_failure`: one of them says that the job failed; else the
    stream is broken off with an error."""

    tells_failure: bool

    def opening(self) -> bytes:
        """Frames before any event."""

    def block(self, events: Iterable[Event]) -> bytes:
        """All frames of these events; what only the log needs has none."""


class Numbered:
    """Frames that carry the number of their event, so that a client knows where to go on. Events up to `after` are
    passed over."""

    def __init__(self, chunks: Chunks, *, after: int = -1) -> None:
        self.tells_failure = chunks.tells_failure
        self._chunks = chunks
        self._after = after

    def opening(self) -> bytes:
        return self._chunks.opening()

    def block(self, events: Iterable[Event]) -> bytes:
        return b"".join(self._numbered(event) for event in events)

    def _numbered(self, event: Event) -> bytes:
        """The number stands in the event's last frame: whoever has it has them all."""
        frames = self._chunks.block([event])
        if event.seq <= self._after or not frames:
            return b""
        return frames[:-1] + b"id: %d\n\n" % event.seq


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
