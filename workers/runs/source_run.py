"""A run that a source computes, in parts that are asked for one by one: the choices of a chat, or all vectors."""

from abc import abstractmethod
from typing import Any

from shared.domain.errors import InvalidRequest
from shared.domain.events import Event
from shared.domain.job import Job
from workers.runs.run import JobRun
from workers.source import ChatSource


class SourceRun(JobRun):
    """A part is over when it has its last event. Nothing is advanced after the run has ended."""

    @property
    @abstractmethod
    def unfinished(self) -> list[int]:
        """The parts that are not over, by number."""

    @abstractmethod
    def is_over(self, part: int) -> bool: ...

    @abstractmethod
    def tokens(self, part: int) -> int:
        """The tokens of the part's text so far."""

    @abstractmethod
    def ask(self, part: int) -> Any:
        """Ask the source for a part; return its pieces, an iterator or an asynchronous one. Called in the source's
        event loop."""

    @abstractmethod
    def advance(self, part: int, piece: Any) -> list[Event]:
        """The events of one more piece. The part may be over by it, though more pieces would come."""

    @abstractmethod
    def close(self, part: int) -> list[Event]:
        """The last events of a part that has no more pieces."""


def require_serves(source: ChatSource, verb: str, job: Job, instead: str) -> None:
    """Raise InvalidRequest unless the source has the verb. `instead` says what it does not do."""
    if verb not in source.serves:
        can = " or ".join(ENDPOINTS[verb] for verb in ENDPOINTS if verb in source.serves)
        raise InvalidRequest(f"The model '{job.model}' {instead}: ask {can}.", param="model")


ENDPOINTS = {
    "chat": "/v1/chat/completions",
    "complete": "/v1/completions",
    "embed": "/v1/embeddings",
    "rerank": "/v1/rerank",
}
