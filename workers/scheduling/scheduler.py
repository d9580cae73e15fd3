"""The scheduler decides which tokens the next step computes, and in which blocks. Pure: no engine, clock or I/O."""

import heapq
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import islice

from workers.scheduling.block_pool import BlockPool
from workers.scheduling.engine_limits import BLOCK_SIZE, EngineLimits, blocks_for
from workers.scheduling.prefix_sharing import PrefixSharing
from workers.scheduling.sequence import Sampled, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Compute `count` tokens of the sequence from `start` on; sample if that reaches its end."""

    sequence: Sequence
    start: int
    count: int
    decoding: bool

    @property
    def samples(self) -> bool:
        return self.start + self.count == self.sequence.length

    @property
    def scoring(self) -> bool:
        """True if prompt logprobs are wanted for some of its tokens."""
        return self.sequence.sampling.prompt_logprobs is not None and self.start < self.sequence.prompt_length - 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoding rows come first, then prefill chunks. The engine must free what it holds for `preempted` sequences."""

    rows: tuple[Row, ...]
    preempted: Seq[Sequence] = ()

    @property
    def sampling(self) -> list[Row]:
        return [row for row in self.rows if row.samples]


class Scheduler:
    """Each step decodes every running sequence that can, then computes prompts with what is left of `batch_tokens_max`,
    so that a long one does not stall the others.

    Jobs share the places in the batch. The waiting job with the fewest places is next, and among equals the oldest. A
    job takes a place from the job with the most if it has at least two fewer: the latest sequence of that one starts
    again later, mostly from blocks that are still cached. So a job of many sequences fills a batch only while it is
    alone.

    A sequence starts when there are blocks for all its known tokens. When a running one finds no block for its next
    token, the latest arrival of the job with the most places is preempted: it frees its blocks and starts again later,
    so the oldest always advances. A sequence whose next block is just being computed waits for it (`PrefixSharing`).

    When a step of n sequences runs out of memory, half as many are computed at a time, with no other sequence in
    memory, until each of the n has got a token. A half that fails is halved again. So a sequence that does not fit even
    alone is found after log2(n) + 1 failed steps and at most as many good ones between them, in which others get their
    tokens. Steps do not grow meanwhile: the guilty one would be back among the others before it is found.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._sequences_max = limits.sequences_max
        self._tokens_max = limits.batch_tokens_max
        self._pool = BlockPool(limits.blocks, idle_max=limits.idle_blocks_max)
        self._sharing = PrefixSharing(self._pool, enabled=limits.prefix_cache)
        self._arrivals: dict[Sequence, int] = {}  # every sequence here, and its number in the order of arrival
        self._arrived = 0
        # Each job has a heap by arrival. `_next` skips entries whose sequence left, runs or has lined up again.
        self._waiting: dict[str, list[tuple[int, Sequence]]] = {}
        self._running: dict[Sequence, None] = {}
        self._here: Counter[str] = Counter()  # how many sequences each job has
        self._places: Counter[str] = Counter()  # how many of them run
        self._alone: dict[Sequence, None] = {}  # each must be computed by itself until it has got a token
        self._suspects: dict[Sequence, None] = {}  # must be computed with few others until they have got a token

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._arrivals) - len(self._running)

    @property
    def jobs_waiting(self) -> int:
        """The number of jobs of which no sequence runs."""
        return len(self._here) - len(self._places)

    @property
    def places(self) -> int:
        """The number of sequences that may run now: fewer than the limit after a step that ran out of memory."""
        return self._sequences_max

    @property
    def busy(self) -> bool:
        return bool(self._arrivals)

    @property
    def blocks_used(self) -> int:
        return self._pool.count - self._pool.free_count

    @property
    def suspecting(self) -> bool:
        """True if the next sequence may have to run in a step of its own."""
        return bool(self._alone or self._suspects)

    def add(self, sequence: Sequence, *, alone: bool = False) -> None:
        """`alone`: compute it in steps of its own until it has got a token."""
        self._line_up(sequence)
        self._here[sequence.job_id] += 1
        self._queue(sequence)
        if alone:
            self._alone[sequence] = None

    def drop(self, sequence: Sequence) -> None:
        """Forget a finished, cancelled or failed sequence; one that is not here is no error."""
        if self._arrivals.pop(sequence, None) is not None:
            self._clear(sequence)
            _less(self._here, sequence.job_id)
            if sequence in self._running:
                self._stop(sequence)

    def next_batch(self) -> Batch:
        if self.suspecting:
            return self._trial()
        preempted: list[Sequence] = []
        self._grow(preempted)
        if not preempted:
            preempted += self._admit()
        return Batch(self._rows(self._running), preempted)

    def apply(self, batch: Batch, sampled: Seq[Sampled]) -> list[tuple[Sequence, Sampled]]:
        """Append one new token for each sampling row, in order; return each sequence with its token."""
        taken = [(row.sequence, new) for row, new in zip(batch.sampling, sampled, strict=True)]
        trial = self.suspecting
        for row in batch.rows:
            row.sequence.computed += row.count
            if released := self._sharing.publish(row.sequence, row.start):
                self._queue_all(released)
        for sequence, new in taken:
            sequence.ids.append(new.token)
            self._clear(sequence)
        if not trial:
            self._tokens_max = min(self._tokens_max + 1, self._limits.batch_tokens_max)
            self._sequences_max = min(self._sequences_max + 1, self._limits.sequences_max)
        return taken

    def _grow(self, preempted: list[Sequence]) -> None:
        """Allocate a block for every decoding sequence whose last one is full; add to `preempted` those that made
        room."""
        needy = [s for s in self._running if s.decoding and s.length > len(s.blocks) * BLOCK_SIZE]
        for sequence in sorted(needy, key=self._arrivals.__getitem__):
            while sequence in self._running:
                block = self._pool.allocate_one()
                if block is not None:
                    sequence.blocks.append(block)
                    break
                preempted += self._preempt_latest()

    def _admit(self) -> list[Sequence]:
        """Start waiting sequences as far as there is room; return those that were preempted for them."""
        preempted: list[Sequence] = []
        if len(self._running) >= self._sequences_max and self._widest()[1] < 2:
            return preempted  # no job has a place to give
        while (sequence := self._next()) is not None:
            if not self._sharing.wait(sequence) and not (
                len(self._running) < self._sequences_max and self._start(sequence)
            ):
                victim = self._privileged(sequence)
                if victim is None:
                    return preempted
                self._preempt(victim)
                preempted.append(victim)
                continue
            heapq.heappop(self._waiting[sequence.job_id])
        return preempted

    def _rows(self, sequences: Iterable[Sequence]) -> tuple[Row, ...]:
        """Give each decoding sequence a token, and prompts what the budget leaves."""
        decoding = [self._row(sequence, 1) for sequence in sequences if sequence.decoding]
        prefill, budget = [], max(self._tokens_max - len(decoding), 1)
        for sequence in self._in_turn([each for each in sequences if not each.decoding]):
            if budget:
                count = min(budget, sequence.length - sequence.computed)
                budget -= count
                prefill.append(self._row(sequence, count))
        return (*decoding, *prefill)

    def retry(self, batch: Batch) -> list[Sequence]:
        """Start the sequences of a failed batch again, each in a step of its own. Returns them: they have stopped."""
        stopped = [row.sequence for row in batch.rows]
        for sequence in stopped:
            self._preempt(sequence)
            self._alone[sequence] = None
        return stopped

    def shrink(self, batch: Batch) -> list[Sequence]:
        """Start every running sequence again after a batch that ran out of memory: those of the batch first, half as
        many at a time. They line up behind all that wait, and steps grow again once each has got a token. Returns the
        sequences that have stopped."""
        stopped = list(self._running)
        for row in batch.rows:
            self._line_up(row.sequence)
            self._suspects[row.sequence] = None
        for sequence in stopped:
            self._preempt(sequence)
        self._tokens_max = max(self._tokens_max // 2, min(BLOCK_SIZE, self._limits.batch_tokens_max))
        self._sequences_max = max(-(-len(stopped) // 2), 1)
        return stopped

    def acquit(self) -> None:
        """Restore the size of steps: a sequence that does not fit even alone was found and dropped."""
        self._suspects.clear()
        self._tokens_max = self._limits.batch_tokens_max
        self._sequences_max = self._limits.sequences_max

    def _trial(self) -> Batch:
        """The next sequence that must be alone; if there is none, the next suspects, with no other sequence in
        memory."""
        tried, preempted = [next(iter(self._alone))] if self._alone else [], list[Sequence]()
        if not tried:
            tried = list(islice(self._suspects, self._sequences_max))
            preempted += [sequence for sequence in self._running if sequence not in tried]
        for sequence in preempted:
            self._preempt(sequence)
        while tried[0] not in self._running and not self._start(tried[0]):
            preempted += self._preempt_latest()
        for sequence in tried[1:]:
            if sequence not in self._running and not self._start(sequence):
                break
        return Batch(self._rows([sequence for sequence in tried if sequence in self._running]), preempted)

    def _start(self, sequence: Sequence) -> bool:
        """Run it if there is room; False if there is none."""
        digests = self._sharing.shareable(sequence)
        opened = self._pool.allocate(digests, blocks_for(sequence.length), spare=len(self._running))
        if opened is None:
            return False
        blocks, shared = opened
        sequence.blocks.extend(blocks)
        sequence.computed = shared * BLOCK_SIZE
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        self._running[sequence] = None
        self._places[sequence.job_id] += 1
        self._sharing.start(sequence, digests[shared:])
        return True

    def _stop(self, sequence: Sequence) -> None:
        del self._running[sequence]
        _less(self._places, sequence.job_id)
        self._queue_all(self._sharing.stop(sequence))
        self._pool.free(sequence.blocks)
        del sequence.blocks[:]
        sequence.computed = 0

    def _preempt(self, sequence: Sequence) -> None:
        """Stop a running sequence, which keeps only its tokens, and queue it again."""
        self._stop(sequence)
        self._queue(sequence)

    def _preempt_latest(self) -> list[Sequence]:
        """Preempt the latest arrival of the job with the most places; if no job has two, the latest of all."""
        most, places = self._widest()
        victims = [sequence for sequence in self._running if places < 2 or sequence.job_id == most]
        if not victims:
            return []
        victim = max(victims, key=self._arrivals.__getitem__)
        self._preempt(victim)
        return [victim]

    def _widest(self) -> tuple[str, int]:
        """The job with the most places, and how many."""
        return max(self._places.items(), key=lambda each: each[1], default=("", 0))

    def _privileged(self, newcomer: Sequence) -> Sequence | None:
        """The latest sequence of the job with the most places, if the newcomer's job has at least two fewer and the
        blocks of all sequences that it could displace would be enough."""
        most, places = self._widest()
        spare = places - self._places[newcomer.job_id] - 1
        if spare < 1:
            return None
        theirs = [sequence for sequence in self._running if sequence.job_id == most]
        latest = heapq.nlargest(spare, theirs, key=self._arrivals.__getitem__)
        blocks = self._pool.free_count + sum(len(sequence.blocks) for sequence in latest)
        return latest[0] if blocks >= blocks_for(newcomer.length) + len(self._running) - len(latest) else None

    def _next(self) -> Sequence | None:
        """The oldest waiting sequence of the job with the fewest places."""
        heads = []
        for job_id, waiting in list(self._waiting.items()):
            while waiting and (waiting[0][1] in self._running or self._arrivals.get(waiting[0][1]) != waiting[0][0]):
                heapq.heappop(waiting)
            if waiting:
                heads.append((self._places[job_id], waiting[0]))
            else:
                del self._waiting[job_id]
        return min(heads)[1][1] if heads else None

    def _in_turn(self, sequences: list[Sequence]) -> list[Sequence]:
        """The first sequence of each job, then the second of each, so that a job of many prompts delays no other."""
        rank: Counter[str] = Counter()
        ranked = []
        for sequence in sequences:
            ranked.append((rank[sequence.job_id], self._arrivals[sequence], sequence))
            rank[sequence.job_id] += 1
        return [sequence for _, _, sequence in sorted(ranked)]

    def _line_up(self, sequence: Sequence) -> None:
        """Put it at the end of the order."""
        self._arrived += 1
        self._arrivals[sequence] = self._arrived

    def _queue(self, sequence: Sequence) -> None:
        waiting = self._waiting.setdefault(sequence.job_id, [])
        heapq.heappush(waiting, (self._arrivals[sequence], sequence))

    def _queue_all(self, released: Seq[Sequence]) -> None:
        """Queue sequences that waited for shared blocks, except those that have left meanwhile."""
        for sequence in released:
            if sequence in self._arrivals:
                self._queue(sequence)

    def _clear(self, sequence: Sequence) -> None:
        """Allow it to be computed together with others again."""
        self._alone.pop(sequence, None)
        self._suspects.pop(sequence, None)

    @staticmethod
    def _row(sequence: Sequence, count: int) -> Row:
        return Row(sequence=sequence, start=sequence.computed, count=count, decoding=sequence.decoding)


def _less(counts: Counter[str], name: str) -> None:
    """Count one fewer; a count of 0 has no entry."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
