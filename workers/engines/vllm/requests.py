"""The requests that vLLM has now, by name, and the sequences that they compute."""

from collections.abc import KeysView
from itertools import count

from workers.scheduling.sequence import Sequence


class Requests:
    """A sequence that vLLM gets again is a new request: outputs of the one before, still under way, are nobody's."""

    def __init__(self) -> None:
        self._sequences: dict[str, Sequence] = {}
        self._names: dict[Sequence, str] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def sequences(self) -> KeysView[Sequence]:
        return self._names.keys()

    def sequence(self, name: str) -> Sequence | None:
        """The sequence of a request; None if vLLM should not have it any more."""
        return self._sequences.get(name)

    def add(self, sequence: Sequence) -> str:
        """A new name for a sequence that vLLM does not have."""
        name = f"{sequence.job_id}-{sequence.choice}-{next(self._numbers)}"
        self._sequences[name] = sequence
        self._names[sequence] = name
        return name

    def remove(self, sequence: Sequence) -> str:
        """Its name until now."""
        name = self._names.pop(sequence)
        del self._sequences[name]
        return name
