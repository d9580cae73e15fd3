"""Who computes what in the next step. Pure: no engine, no clock, no I/O."""

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from workers.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Compute `count` tokens of the sequence from `start` on; sample when that reaches its end."""

    sequence: Sequence
    start: int
    count: int
    decoding: bool

    @property
    def samples(self) -> bool:
        return self.start + self.count == self.sequence.length


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoding rows first, then prefill chunks in order of arrival."""

    rows: tuple[Row, ...]

    @property
    def sampling(self) -> list[Row]:
        return [row for row in self.rows if row.samples]


class Scheduler:
    """At most `sequences_max` sequences run; each step decodes all that can, and spends at most
    `batch_tokens_max` tokens on prompts, so that a long one does not stall the others."""

    def __init__(self, *, sequences_max: int, batch_tokens_max: int) -> None:
        self._sequences_max = sequences_max
        self._batch_tokens_max = batch_tokens_max
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget a finished, cancelled or failed sequence; one that is not here is no error."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def next_batch(self) -> Batch:
        while self._waiting and len(self._running) < self._sequences_max:
            self._running.append(self._waiting.popleft())
        decoding = [self._row(s, 1) for s in self._running if s.decoding]
        prefill, budget = [], self._batch_tokens_max
        for sequence in self._running:
            if budget and not sequence.decoding:
                count = min(budget, sequence.length - sequence.computed)
                budget -= count
                prefill.append(self._row(sequence, count))
        return Batch((*decoding, *prefill))

    def apply(self, batch: Batch, tokens: Seq[int]) -> list[tuple[Sequence, int]]:
        """Take one new token for each sampling row, in order; return who got which."""
        sampled = [row.sequence for row in batch.sampling]
        for row in batch.rows:
            row.sequence.computed += row.count
        for sequence, token in zip(sampled, tokens, strict=True):
            sequence.output.append(token)
        return list(zip(sampled, tokens, strict=True))

    @staticmethod
    def _row(sequence: Sequence, count: int) -> Row:
        return Row(sequence=sequence, start=sequence.computed, count=count, decoding=sequence.decoding)
