"""The thread in which an engine steps. It takes turns in and puts events out; it never waits for the network unless
the outbox is full.

A step that fails costs nobody an answer but the one that cannot be computed: its sequences are computed again, each
alone, and only one that fails alone fails its job. A step that finds no memory is tried again with less in it. An
answer that cannot be read (its text, its tool calls, its grammar) fails its own job and nothing else."""

import logging
import queue
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from shared.errors import InvalidRequest
from shared.events import Event, Failed, Outcome
from shared.telemetry import WorkerMetrics
from workers.call_thread import CallThread
from workers.embedding import Embedding, Passage, Passages
from workers.engine.base import Engine, EngineBroken, OutOfMemory
from workers.generation import Generation
from workers.limits import BLOCK_SIZE
from workers.outbox import Outbox, Update
from workers.scheduler import Batch, Scheduler
from workers.sequence import Sampled, Sequence
from workers.time_box import time_box
from workers.turn import READ_S_MAX, Turn

log = logging.getLogger(__name__)
READ_S_EACH = 0.005  # what a token adds to the time that reading its answer may take


class Stepper:
    def __init__(
        self,
        model: str,
        engine: Engine,
        thread: CallThread,
        *,
        outbox: Outbox,
        metrics: WorkerMetrics,
        room: Callable[[], None],
    ) -> None:
        """`thread`: the one in which the engine was loaded. `room` is called, in it, when nothing waits any more for a
        place in the batch, or when there are more places.

        `waiting`: jobs that had no place in the batch when this thread last said so, and `places`: how many there were.
        Other threads read them, so they change only together with that call: between the two nobody could be told."""
        self.waiting = 0
        self.places = engine.limits.sequences_max
        self._room = room
        self._engine = engine
        self._outbox = outbox
        self._scheduler = Scheduler(engine.limits)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._owners: dict[Sequence, Generation] = {}
        self._passages = Passages(tokens_max=engine.limits.batch_tokens_max)
        self._stopping = False
        self._busy_since: float | None = None
        self._stuck_since: float | None = None
        self._thread = thread
        self._ended: Future[None] = Future()
        self._running = metrics.running.labels(model)
        self._steps = metrics.steps.labels(model)
        self._batch = metrics.batch.labels(model)
        self._tokens = metrics.tokens.labels(model)
        self._prefill = metrics.prefill.labels(model)
        self._waiting = metrics.waiting.labels(model)
        self._blocks = metrics.blocks.labels(model)
        metrics.blocks_max.labels(model).set(engine.limits.blocks)
        self._preempted = metrics.preempted.labels(model)
        self._shared = metrics.shared.labels(model)
        self._faults = metrics.faults.labels(model)

    def start(self) -> None:
        self._ended = self._thread.repeat(self._go_on)

    def add(self, turn: Turn) -> None:
        self._inbox.put(lambda: self._add(turn))

    def drop(self, turn: Turn) -> None:
        """Before the next step; a turn that has ended is no error."""
        self._inbox.put(lambda: self._drop(turn))

    def end(self, turn: Turn, outcome: Outcome) -> None:
        """With this outcome, unless it has ended by itself."""
        self._inbox.put(lambda: self._end(turn, outcome))

    def stop(self) -> Future[None]:
        """Done when the step that runs now has ended, which a hung one never does."""
        self._inbox.put(self._stop)
        return self._ended

    def alive(self, *, step_timeout_s: float) -> bool:
        """It steps; no step or reading has taken longer than that; steps have got somewhere within that time."""
        since = [at for at in (self._busy_since, self._stuck_since) if at is not None]
        return not self._ended.done() and all(time.monotonic() - at < step_timeout_s for at in since)

    def _go_on(self) -> bool:
        """Do what is asked for, then a step; False when asked to stop."""
        try:
            self._obey()
            if not self._stopping and self._scheduler.busy:
                self._step()
            if not self._stopping and self._passages and not self._scheduler.suspecting:
                self._embed()
        except Exception:
            log.critical("the engine is lost", exc_info=True)
            raise
        return not self._stopping

    def _obey(self) -> None:
        """Do what has been asked; wait for something to be asked when there is nothing to compute."""
        block = self._thread.may_wait and not self._scheduler.busy and not self._passages
        self._count()
        while not self._stopping:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                break
            command()
            block = False

    def _count(self) -> None:
        """Say how things stand, to the metrics and to whoever waits for room; before each step, and before a pause."""
        self._running.set(len(self._owners))
        self._blocks.set(self._scheduler.blocks_used)
        self._waiting.set(self._scheduler.waiting)
        waited, self.waiting = self.waiting, self._scheduler.jobs_waiting
        places, self.places = self.places, self._scheduler.places
        if (waited or self.places > places) and not self.waiting:
            self._room()

    def _step(self) -> None:
        batch = self._scheduler.next_batch()
        self._count()
        for sequence in batch.preempted:
            self._engine.free(sequence)
        moved = False
        try:
            with self._watched():
                sampled = self._engine.step(batch)
        except EngineBroken:
            raise
        except Exception as error:
            log.exception("engine step failed", extra={"sequences": len(batch.rows)})
            self._faults.inc()
            updates = self._recover(batch, error)
        else:
            self._measure(batch, len(sampled))
            updates = self._take(batch, sampled)
            moved = bool(batch.rows)
        self._stuck_since = None if moved or updates else self._stuck_since or time.monotonic()
        if updates:
            self._outbox.put(updates)

    def _embed(self) -> None:
        """One batch of passages; they are computed one by one when they fail together."""
        batch = self._passages.next_batch()
        try:
            updates = self._vectors(batch)
        except EngineBroken:
            raise
        except Exception as error:
            log.exception("embedding failed", extra={"passages": len(batch)})
            self._faults.inc()
            updates = self._each_alone(batch) if len(batch) > 1 else self._fail([batch[0][0]], error)
        self._outbox.put(updates)

    def _each_alone(self, batch: list[Passage]) -> list[Update]:
        updates: list[Update] = []
        failed: set[Turn] = set()
        for passage in batch:
            turn = passage[0]
            try:
                updates += self._vectors([passage]) if turn not in failed else []
            except EngineBroken:
                raise
            except Exception as error:
                failed.add(turn)
                updates += self._fail([turn], error)
        return updates

    def _vectors(self, batch: list[Passage]) -> list[Update]:
        assert self._engine.embedder
        passages = [turn.passages[index] for turn, index in batch]
        with self._watched():
            vectors = self._engine.embedder.embed(passages)
        self._prefill.inc(sum(map(len, passages)))
        return [Update(turn, turn.advance(index, vector)) for (turn, index), vector in zip(batch, vectors, strict=True)]

    @contextmanager
    def _watched(self) -> Iterator[None]:
        self._busy_since = time.monotonic()
        try:
            yield
            self._steps.observe(time.monotonic() - self._busy_since)
        finally:
            self._busy_since = None

    def _recover(self, batch: Batch, error: Exception) -> list[Update]:
        """Try again with less, or alone; the events of a job that fails. For want of memory it fails only where nobody
        else had any, and a block's tokens are too many."""
        rows, scheduler = batch.rows, self._scheduler
        short = isinstance(error, OutOfMemory)
        if short and (scheduler.running > 1 or sum(row.count for row in rows) > BLOCK_SIZE):
            stopped = scheduler.shrink(batch)
        elif len(rows) > 1:
            stopped = scheduler.retry(batch)
        else:
            updates = self._fail([self._owners[row.sequence] for row in rows], error)
            if short:
                scheduler.acquit()
            return updates
        for sequence in stopped:
            self._engine.free(sequence)
        return []

    def _take(self, batch: Batch, sampled: list[Sampled]) -> list[Update]:
        updates = []
        for sequence, new in self._scheduler.apply(batch, sampled):
            turn = self._owners.get(sequence)
            if turn is None:
                continue  # another choice of its job could not be read, just now
            if sequence.made == 1:
                self._shared.inc(sequence.cached or 0)
            written = turn.next_seq
            try:
                events = self._read(turn, sequence, new)
            except Exception as error:
                log.exception("an answer cannot be read", extra={"job_id": turn.delivery.job.id})
                turn.take_back(written)
                updates.append(self._finish(turn, _unreadable(error)))
                continue
            if sequence not in turn.unfinished:
                self._forget(sequence)
            updates.append(Update(turn, events))
        return updates

    def _read(self, turn: Generation, sequence: Sequence, new: Sampled) -> list[Event]:
        """What the token adds to the answer. One that takes longer than its turn has time left fails, long before the
        worker seems to hang; neighbours wait meanwhile, so the time is of the whole answer."""
        self._busy_since = began = time.monotonic()
        try:
            with time_box(turn.patience_s):
                return turn.advance(sequence, new)
        finally:
            self._busy_since = None
            turn.patience_s = min(turn.patience_s + READ_S_EACH - (time.monotonic() - began), READ_S_MAX)

    def _fail(self, turns: Iterable[Turn], error: Exception) -> list[Update]:
        detail = "".join(traceback.format_exception(error))
        failed = Failed(code="engine_error", message=f"The engine failed: {error}", detail=detail)
        return [self._finish(turn, failed) for turn in dict.fromkeys(turns)]

    def _finish(self, turn: Turn, outcome: Outcome) -> Update:
        events: list[Event] = [turn.finish(outcome)]
        self._drop(turn)
        return Update(turn, events)

    def _end(self, turn: Turn, outcome: Outcome) -> None:
        if not turn.ended:
            self._outbox.put([self._finish(turn, outcome)])

    def _measure(self, batch: Batch, tokens: int) -> None:
        self._batch.observe(len(batch.rows))
        self._preempted.inc(len(batch.preempted))
        self._tokens.inc(tokens)
        self._prefill.inc(sum(row.count for row in batch.rows if not row.decoding))

    def _add(self, turn: Turn) -> None:
        """One that is done already leaves nothing to compute."""
        match turn:
            case Embedding():
                self._passages.add(turn)
            case Generation():
                self._add_sequences(turn)

    def _add_sequences(self, turn: Generation) -> None:
        for sequence in turn.unfinished:
            self._owners[sequence] = turn
            self._scheduler.add(sequence, alone=turn.delivery.alone)

    def _drop(self, turn: Turn) -> None:
        match turn:
            case Embedding():
                self._passages.drop(turn)
            case Generation():
                for sequence in turn.sequences:
                    if sequence in self._owners:
                        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        del self._owners[sequence]
        self._scheduler.drop(sequence)
        self._engine.free(sequence)

    def _stop(self) -> None:
        self._stopping = True


def _unreadable(error: Exception) -> Failed:
    """The outcome of a job whose answer cannot be read: the client's fault if its grammar is."""
    if isinstance(error, InvalidRequest):
        return Failed(code=error.code or "invalid_request", message=str(error), param=error.param)
    detail = "".join(traceback.format_exception(error))
    return Failed(code="engine_error", message=f"The answer cannot be read: {error}", detail=detail)
