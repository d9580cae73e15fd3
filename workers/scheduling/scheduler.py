"""Who computes what in the next step, and in which blocks. Pure: no engine, no clock, no I/O."""

import heapq
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from workers.scheduling.block_pool import BlockPool, digest
from workers.scheduling.engine_limits import BLOCK_SIZE, EngineLimits, blocks_for
from workers.scheduling.sequence import Sampled, Sequence


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

    @property
    def scoring(self) -> bool:
        """Whether it is asked how likely the prompt's next tokens were."""
        return self.sequence.sampling.prompt_logprobs is not None and self.start < self.sequence.prompt_length - 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoding rows first, then prefill chunks. What the engine holds for `preempted` sequences is void."""

    rows: tuple[Row, ...]
    preempted: Seq[Sequence] = ()

    @property
    def sampling(self) -> list[Row]:
        return [row for row in self.rows if row.samples]


class Scheduler:
    """Each step decodes every running sequence that can, then computes prompts with what is left of `batch_tokens_max`,
    so that a long one does not stall the others.

    Places in the batch are shared among jobs: of those that wait, the job with the fewest places is next, and among
    equals the oldest. A job that has no place takes one from the job with the most, if that has two more: its latest
    sequence starts again later, mostly from blocks that are still known. So a job of many sequences fills a batch only
    while it is alone.

    A sequence starts when there are blocks for all its known tokens. When a running one finds no block for its next
    token, the latest arrival of the job with the most places gives all of its own back and starts again later: the
    oldest always gets on. A sequence whose next block another one is just computing waits for that instead of computing
    it twice.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._sequences_max = limits.sequences_max
        self._tokens_max = limits.batch_tokens_max
        self._pool = BlockPool(limits.blocks)
        self._arrivals: dict[Sequence, int] = {}  # all that are here, and their place in the order
        self._arrived = 0
        # A heap for each job, by arrival; sequences that left or run are passed over.
        self._waiting: dict[str, list[tuple[int, Sequence]]] = {}
        self._running: dict[Sequence, None] = {}
        self._here: Counter[str] = Counter()  # sequences of each job
        self._places: Counter[str] = Counter()  # those of them that run
        self._suspects: dict[Sequence, None] = {}
        self._computing: dict[bytes, Sequence] = {}  # blocks of prompts now on their way, by digest
        self._awaiting: dict[bytes, list[Sequence]] = {}

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._arrivals) - len(self._running)

    @property
    def jobs_waiting(self) -> int:
        """Jobs of which no sequence runs."""
        return len(self._here) - len(self._places)

    @property
    def busy(self) -> bool:
        return bool(self._arrivals)

    @property
    def blocks_used(self) -> int:
        return self._pool.count - self._pool.free_count

    @property
    def suspecting(self) -> bool:
        """Who is computed next may be computed with nobody else."""
        return bool(self._suspects)

    def add(self, sequence: Sequence, *, alone: bool = False) -> None:
        """`alone`: until it has got a token."""
        self._arrived += 1
        self._arrivals[sequence] = self._arrived
        self._here[sequence.job_id] += 1
        self._queue(sequence)
        if alone:
            self._suspects[sequence] = None

    def drop(self, sequence: Sequence) -> None:
        """Forget a finished, cancelled or failed sequence; one that is not here is no error."""
        if self._arrivals.pop(sequence, None) is not None:
            self._suspects.pop(sequence, None)
            _less(self._here, sequence.job_id)
            if sequence in self._running:
                self._stop(sequence)

    def retry(self, sequences: Iterable[Sequence], *, alone: bool) -> None:
        """A step with all of these failed: start them again, `alone` one after the other until each has got a token."""
        for sequence in sequences:
            self._preempt(sequence)
            if alone:
                self._suspects[sequence] = None

    def shrink(self) -> None:
        """A step took more memory than there is: halve what the next ones may compute, and grow again with each that
        succeeds."""
        self._tokens_max = max(self._tokens_max // 2, 1)
        self._sequences_max = max(len(self._running) // 2, 1)

    def next_batch(self) -> Batch:
        preempted: list[Sequence] = []
        if self._suspects:
            suspect = next(iter(self._suspects))
            while suspect not in self._running and not self._start(suspect):
                preempted += self._preempt_latest()
            return Batch((self._row(suspect, min(self._tokens_max, suspect.length - suspect.computed)),), preempted)
        self._grow(preempted)
        if not preempted:
            preempted += self._admit()
        decoding = [self._row(sequence, 1) for sequence in self._running if sequence.decoding]
        prefill, budget = [], max(self._tokens_max - len(decoding), 1)
        for sequence in self._in_turn([each for each in self._running if not each.decoding]):
            if budget:
                count = min(budget, sequence.length - sequence.computed)
                budget -= count
                prefill.append(self._row(sequence, count))
        return Batch((*decoding, *prefill), preempted)

    def apply(self, batch: Batch, sampled: Seq[Sampled]) -> list[tuple[Sequence, Sampled]]:
        """Take one new token for each sampling row, in order; return who got which."""
        taken = [(row.sequence, new) for row, new in zip(batch.sampling, sampled, strict=True)]
        for row in batch.rows:
            row.sequence.computed += row.count
            if self._limits.prefix_cache:
                self._publish(row)
        for sequence, new in taken:
            sequence.ids.append(new.token)
            self._suspects.pop(sequence, None)
        self._tokens_max = min(self._tokens_max + 1, self._limits.batch_tokens_max)
        self._sequences_max = min(self._sequences_max + 1, self._limits.sequences_max)
        return taken

    def _queue(self, sequence: Sequence) -> None:
        waiting = self._waiting.setdefault(sequence.job_id, [])
        heapq.heappush(waiting, (self._arrivals[sequence], sequence))

    def _in_turn(self, sequences: list[Sequence]) -> list[Sequence]:
        """The first sequence of each job, then the second of each: a job of many prompts does not keep others from
        theirs."""
        rank: Counter[str] = Counter()
        ranked = []
        for sequence in sequences:
            ranked.append((rank[sequence.job_id], self._arrivals[sequence], sequence))
            rank[sequence.job_id] += 1
        return [sequence for _, _, sequence in sorted(ranked)]

    def _preempt(self, sequence: Sequence) -> None:
        """Take everything from a running sequence but its tokens, and start it again when there is room."""
        self._stop(sequence)
        self._queue(sequence)

    def _preempt_latest(self) -> list[Sequence]:
        """Of the job with the most places the latest arrival; of all, where no job has two. The oldest stays."""
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

    def _grow(self, preempted: list[Sequence]) -> None:
        """A block for every decoding sequence whose last one is full; `preempted` gets those who made room for it."""
        needy = [s for s in self._running if s.decoding and s.length > len(s.blocks) * BLOCK_SIZE]
        for sequence in sorted(needy, key=self._arrivals.__getitem__):
            while sequence in self._running:
                block = self._pool.allocate_one()
                if block is not None:
                    sequence.blocks.append(block)
                    break
                preempted += self._preempt_latest()

    def _admit(self) -> list[Sequence]:
        """Start those that wait, as far as there is room; return who had to make it."""
        preempted: list[Sequence] = []
        if len(self._running) >= self._sequences_max and self._widest()[1] < 2:
            return preempted  # nobody has a place to give
        while (sequence := self._next()) is not None:
            if not self._wait_for_shared(sequence) and not (
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

    def _next(self) -> Sequence | None:
        """The oldest that waits of the job with the fewest places."""
        heads = []
        for job_id, waiting in list(self._waiting.items()):
            while waiting and (waiting[0][1] not in self._arrivals or waiting[0][1] in self._running):
                heapq.heappop(waiting)
            if waiting:
                heads.append((self._places[job_id], waiting[0]))
            else:
                del self._waiting[job_id]
        return min(heads)[1][1] if heads else None

    def _privileged(self, newcomer: Sequence) -> Sequence | None:
        """The latest sequence of the job with the most places, if the newcomer's job has at least two fewer, and if
        with all that it could take there would be blocks enough."""
        most, places = self._widest()
        spare = places - self._places[newcomer.job_id] - 1
        if spare < 1:
            return None
        theirs = [sequence for sequence in self._running if sequence.job_id == most]
        latest = heapq.nlargest(spare, theirs, key=self._arrivals.__getitem__)
        blocks = self._pool.free_count + sum(len(sequence.blocks) for sequence in latest)
        return latest[0] if blocks >= blocks_for(newcomer.length) + len(self._running) - len(latest) else None

    def _wait_for_shared(self, sequence: Sequence) -> bool:
        """Whether another sequence is computing what this one needs; it will be queued again then."""
        last = None
        for name in self._shareable(sequence):
            if name in self._computing:
                last = name
            elif last is not None or not self._pool.knows(name):
                break
        if last is not None:
            self._awaiting.setdefault(last, []).append(sequence)
        return last is not None

    def _start(self, sequence: Sequence) -> bool:
        """Run it, if there is room."""
        digests = self._shareable(sequence)
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
        for name in digests[shared:]:
            self._computing.setdefault(name, sequence)
        return True

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

    def _stop(self, sequence: Sequence) -> None:
        del self._running[sequence]
        _less(self._places, sequence.job_id)
        for name in sequence.digests:
            self._settle(name, sequence)
        self._pool.free(sequence.blocks)
        del sequence.blocks[:]
        sequence.computed = 0

    def _shareable(self, sequence: Sequence) -> list[bytes]:
        """Names of its full blocks, without the one that its last token fills: that is always computed."""
        return self._digests(sequence, (sequence.length - 1) // BLOCK_SIZE)

    def _digests(self, sequence: Sequence, count: int) -> list[bytes]:
        """Names of its first `count` blocks; none where nothing is shared: whose prompt is scored needs it computed."""
        if not self._limits.prefix_cache or sequence.sampling.prompt_logprobs is not None:
            return []
        known = sequence.digests
        while len(known) < count:
            known.append(digest(known[-1] if known else sequence.salt, sequence.block(len(known))))
        return known[:count]

    @staticmethod
    def _row(sequence: Sequence, count: int) -> Row:
        return Row(sequence=sequence, start=sequence.computed, count=count, decoding=sequence.decoding)


def _less(counts: Counter[str], name: str) -> None:
    """One fewer; none is no entry."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
