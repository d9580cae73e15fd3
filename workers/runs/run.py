"""One delivery in work, and the number of its next event. Pure decisions; made anew for every attempt."""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq

from shared.domain.errors import InvalidRequest
from shared.domain.events import Completed, Event, Finished, Outcome, Started
from shared.queue.protocols import Delivery

READ_S_MAX = 10.0


class JobRun(ABC):
    """What earlier attempts logged is done, as if nothing had happened since."""

    def __init__(self, delivery: Delivery, *, prompt_tokens: int) -> None:
        self.delivery = delivery
        self.prompt_tokens = prompt_tokens
        self.ended = False  # the last event has a number; nothing may follow it
        self.patience_s = READ_S_MAX  # time left for reading the answer; each token brings a little
        self._next_seq = len(delivery.log)

    @property
    @abstractmethod
    def done(self) -> bool:
        """Everything that was asked for is there."""

    @abstractmethod
    def completed(self) -> Completed:
        """The outcome, once it is."""

    def opening(self) -> list[Event]:
        """What the log still lacks before anything is computed: Started, unless an earlier attempt wrote it; and the
        end, if that attempt died between its last result and settling."""
        events: list[Event] = []
        if self._next_seq == 0:
            events.append(Started(seq=self.number(), prompt_tokens=self.prompt_tokens))
        return [*events, *self.closing()]

    def closing(self) -> list[Event]:
        """The end, once all is done."""
        return [self.finish(self.completed())] if self.done else []

    def finish(self, outcome: Outcome) -> Finished:
        """The last event. A run is finished once: whoever may come second asks `ended` first."""
        assert not self.ended, "a finished run is finished"
        self.ended = True
        return Finished(seq=self.number(), outcome=outcome)

    @property
    def next_seq(self) -> int:
        return self._next_seq

    def take_back(self, next_seq: int) -> None:
        """Events from this number on were numbered but will not be written."""
        self._next_seq = next_seq

    def number(self) -> int:
        """Of the next event."""
        self._next_seq += 1
        return self._next_seq - 1


def known(ids: Seq[int], vocabulary: int, *, param: str) -> list[int]:
    """The same; raises InvalidRequest for a token id that the model does not have."""
    if unknown := [id_ for id_ in ids if id_ >= vocabulary]:
        raise InvalidRequest(f"'{param}' names token {unknown[0]}; this model has {vocabulary}.", param=param)
    return list(ids)
