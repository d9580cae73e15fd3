"""A run is one delivery in work, made anew for every attempt; it numbers the events. Pure decisions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq

from shared.domain.errors import InvalidRequest
from shared.domain.events import Completed, Event, Finished, Outcome, Started
from shared.queue.protocols import Delivery

READ_S_MAX = 10.0


class JobRun(ABC):
    """Output already in the log counts as done; this attempt continues after it."""

    def __init__(self, delivery: Delivery, *, prompt_tokens: int, dtype: str = "") -> None:
        """`dtype` is the number format that this attempt computes in; empty if it makes no difference."""
        self.delivery = delivery
        self.dtype = dtype
        self.prompt_tokens = prompt_tokens
        self.ended = False  # the last event has its number; no event may follow
        self.reading_left_s = READ_S_MAX  # time left for reading the answer; each token brings a little
        self._next_seq = len(delivery.log)

    @property
    @abstractmethod
    def done(self) -> bool:
        """True if everything that the job asks for is there."""

    @abstractmethod
    def completed(self) -> Completed:
        """The outcome of a run that is done."""

    def opening(self) -> list[Event]:
        """Events that the log still lacks before anything is computed: Started, unless an earlier attempt wrote it; and
        the end, if that attempt died between its last result and settling."""
        events: list[Event] = []
        if self._next_seq == 0:
            events.append(Started(seq=self.number(), prompt_tokens=self.prompt_tokens, dtype=self.dtype))
        return [*events, *self.closing()]

    def closing(self) -> list[Event]:
        """The last event, once the run is done; else nothing."""
        return [self.finish(self.completed())] if self.done else []

    def finish(self, outcome: Outcome) -> Finished:
        """Make the last event. A run is finished once: check `ended` before if another may have finished it."""
        assert not self.ended, "a finished run is finished"
        self.ended = True
        return Finished(seq=self.number(), outcome=outcome)

    @property
    def dtype_before(self) -> str:
        """The number format in which another attempt began the answer; empty if unknown, or if there was none."""
        first = self.delivery.log[0] if self.delivery.log else None
        return first.dtype if isinstance(first, Started) else ""

    @property
    def next_seq(self) -> int:
        return self._next_seq

    def take_back(self, next_seq: int) -> None:
        """Reuse the numbers from this one on: their events will not be written."""
        self._next_seq = next_seq

    def number(self) -> int:
        """Take the number of the next event."""
        self._next_seq += 1
        return self._next_seq - 1


def require_known(ids: Seq[int], vocabulary: int, *, param: str) -> list[int]:
    """The same ids. Raises InvalidRequest for a token id that the model does not have."""
    if unknown := [id_ for id_ in ids if id_ >= vocabulary]:
        raise InvalidRequest(f"'{param}' names token {unknown[0]}; this model has {vocabulary}.", param=param)
    return list(ids)
