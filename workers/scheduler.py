"""Who computes what in the next step, and in which blocks. Pure: no engine, no clock, no I/O."""

import heapq
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from workers.blocks import BlockPool, digest
from workers.limits import BLOCK_SIZE, Limits, blocks_for
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
    """Decoding rows first, then prefill chunks. What the engine holds for `preempted` sequences is void."""

    rows: tuple[Row, ...]
    preempted: tuple[Sequence, ...] = ()

    @property
    def sampling(self) -> list[Row]:
        return [row for row in self.rows if row.samples]


class Scheduler:
    """First come, first served. Each step decodes every running sequence that can, then computes prompts with what is
    left of `batch_tokens_max`, so that a long one does not stall the others.

    A sequence starts when there are blocks for all its known tokens. When a running one finds no block for its next
    token, the latest arrival gives all of its own back and starts again later: the oldest always gets on. A sequence
    whose next block another one is just computing waits for that instead of computing it twice.
    """

    def __init__(self, limits: Limits) -> None:
        self.tokens_max = limits.batch_tokens_max
        self._limits = limits
        self._pool = BlockPool(limits.blocks)
        self._arrivals: dict[Sequence, int] = {}  # all that are here, and their place in the order
        self._arrived = 0
        self._waiting: list[tuple[int, Sequence]] = []  # a heap, in which dropped ones stay until they come up
        self._running: dict[Sequence, None] = {}
        self._computing: dict[bytes, Sequence] = {}  # blocks of prompts now on their way, by digest
        self._awaiting: dict[bytes, list[Sequence]] = {}

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._arrivals) - len(self._running)

    @property
    def busy(self) -> bool:
        return bool(self._arrivals)

    @property
    def blocks_used(self) -> int:
        return self._pool.count - self._pool.free

    def add(self, sequence: Sequence) -> None:
        self._arrived += 1
        self._arrivals[sequence] = self._arrived
        self._queue(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget a finished, cancelled or failed sequence; one that is not here is no error."""
        if self._arrivals.pop(sequence, None) is not None and sequence in self._running:
            self._halt(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Take everything from a running sequence but its tokens, and start it again when there is room."""
        self._halt(sequence)
        self._queue(sequence)

    def youngest(self, count: int) -> list[Sequence]:
        """The running sequences that came last."""
        return heapq.nlargest(count, self._running, key=self._arrivals.__getitem__)

    def next_batch(self) -> Batch:
        preempted = self._extend()
        if not preempted:
            self._admit()
        decoding = [self._row(sequence, 1) for sequence in self._running if sequence.decoding]
        prefill, budget = [], max(self.tokens_max - len(decoding), 1)
        for sequence in self._running:
            if budget and not sequence.decoding:
                count = min(budget, sequence.length - sequence.computed)
                budget -= count
                prefill.append(self._row(sequence, count))
        return Batch((*decoding, *prefill), tuple(preempted))

    def apply(self, batch: Batch, tokens: Seq[int]) -> list[tuple[Sequence, int]]:
        """Take one new token for each sampling row, in order; return who got which."""
        sampled = [row.sequence for row in batch.sampling]
        for row in batch.rows:
            row.sequence.computed += row.count
            if self._limits.prefix_cache:
                self._publish(row)
        for sequence, token in zip(sampled, tokens, strict=True):
            sequence.output.append(token)
        return list(zip(sampled, tokens, strict=True))

    def _queue(self, sequence: Sequence) -> None:
        heapq.heappush(self._waiting, (self._arrivals[sequence], sequence))

    def _extend(self) -> list[Sequence]:
        """A block for every decoding sequence whose last one is full; who had to make room for that."""
        preempted: list[Sequence] = []
        needy = [s for s in self._running if s.decoding and s.length > len(s.blocks) * BLOCK_SIZE]
        for sequence in sorted(needy, key=self._arrivals.__getitem__):
            while sequence in self._running:
                block = self._pool.take()
                if block is not None:
                    sequence.blocks.append(block)
                    break
                [victim] = self.youngest(1)
                self.preempt(victim)
                preempted.append(victim)
        return preempted

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._limits.sequences_max:
            _, sequence = self._waiting[0]
            if sequence in self._arrivals and not self._start(sequence):
                return
            heapq.heappop(self._waiting)

    def _start(self, sequence: Sequence) -> bool:
        """Run it, or let it await blocks that are being computed; False when there is no room."""
        digests = self._digests(sequence, (sequence.length - 1) // BLOCK_SIZE)
        common = self._under_way(digests)
        if common is not None:
            self._awaiting.setdefault(common, []).append(sequence)
            return True
        opened = self._pool.open(digests, blocks_for(sequence.length), spare=len(self._running))
        if opened is None:
            return False
        blocks, shared = opened
        sequence.blocks.extend(blocks)
        sequence.computed = shared * BLOCK_SIZE
        if sequence.cached is None:
            sequence.cached = sequence.computed
        self._running[sequence] = None
        for name in digests[shared:]:
            self._computing.setdefault(name, sequence)
        return True

    def _under_way(self, digests: Seq[bytes]) -> bytes | None:
        """The last of the leading blocks that another sequence is computing now."""
        last = None
        for name in digests:
            if name in self._computing:
                last = name
            elif last is not None or not self._pool.knows(name):
                break
        return last

    def _publish(self, row: Row) -> None:
        """Blocks that this row has filled are for everybody; who awaited them may start."""
        sequence = row.sequence
        first, full = row.start // BLOCK_SIZE, sequence.computed // BLOCK_SIZE
        if first == full:
            return
        for index, name in enumerate(self._digests(sequence, full)[first:], start=first):
            self._pool.publish(sequence.blocks[index], name)
            self._settle(name, sequence)

    def _settle(self, name: bytes, sequence: Sequence) -> None:
        """`sequence` no longer computes the block of that name."""
        if self._computing.get(name) is sequence:
            del self._computing[name]
            for other in self._awaiting.pop(name, ()):
                if other in self._arrivals:
                    self._queue(other)

    def _halt(self, sequence: Sequence) -> None:
        del self._running[sequence]
        for name in sequence.digests:
            self._settle(name, sequence)
        self._pool.close(sequence.blocks)
        del sequence.blocks[:]
        sequence.computed = 0

    def _digests(self, sequence: Sequence, count: int) -> list[bytes]:
        """Names of its first `count` blocks."""
        if not self._limits.prefix_cache:
            return []
        known = sequence.digests
        while len(known) < count:
            before = known[-1] if known else sequence.salt
            known.append(digest(before, sequence.tokens(len(known) * BLOCK_SIZE, BLOCK_SIZE)))
        return known[:count]

    @staticmethod
    def _row(sequence: Sequence, count: int) -> Row:
        return Row(sequence=sequence, start=sequence.computed, count=count, decoding=sequence.decoding)
