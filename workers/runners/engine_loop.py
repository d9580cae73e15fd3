"""The thread in which an engine steps. It takes runs in and puts events out; it never waits for the network unless
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

from shared.domain.errors import InvalidRequest
from shared.domain.events import Event, Failed, Outcome
from shared.observability.metrics import WorkerMetrics
from workers.engines.base import Engine, EngineBroken, OutOfMemory
from workers.process.single_thread import SingleThread
from workers.process.time_limit import time_limit
from workers.runners.outbox import Outbox, Update
from workers.runs.embedding import Embedding, Passage, Passages
from workers.runs.generation import Generation
from workers.runs.run import READ_S_MAX, JobRun
from workers.scheduling.engine_limits import BLOCK_SIZE
from workers.scheduling.scheduler import Batch, Scheduler
from workers.scheduling.sequence import Sampled, Sequence

log = logging.getLogger(__name__)
READ_S_EACH = 0.005  # what a token adds to the time that reading its answer may take


class EngineLoop:
    def __init__(
        self,
        model: str,
        engine: Engine,
        thread: SingleThread,
        *,
        outbox: Outbox,
        metrics: WorkerMetrics,
        room: Callable[[], None],
    ) -> None:
        """`thread`: the one in which the engine was loaded. `room` is called, in it, when nothing waits any more for a
        place in the batch.

        `waiting`: jobs that had no place in the batch when this thread last said so. Other threads read it, so it
        changes only together with that call: between the two nobody could be told."""
        self.waiting = 0
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
        self._ended = self._thread.repeat(self._iterate)

    def add(self, run: JobRun) -> None:
        self._inbox.put(lambda: self._add(run))

    def drop(self, run: JobRun) -> None:
        """Before the next step; a run that has ended is no error."""
        self._inbox.put(lambda: self._drop(run))

    def end(self, run: JobRun, outcome: Outcome) -> None:
        """With this outcome, unless it has ended by itself."""
        self._inbox.put(lambda: self._end(run, outcome))

    def stop(self) -> Future[None]:
        """Done when the step that runs now has ended, which a hung one never does."""
        self._inbox.put(self._stop)
        return self._ended

    def alive(self, *, step_timeout_s: float) -> bool:
        """It steps; no step or reading has taken longer than that; steps have got somewhere within that time."""
        since = [at for at in (self._busy_since, self._stuck_since) if at is not None]
        return not self._ended.done() and all(time.monotonic() - at < step_timeout_s for at in since)

    def _iterate(self) -> bool:
        """Do what is asked for, then a step; False when asked to stop."""
        try:
            self._run_commands()
            if not self._stopping and self._scheduler.busy:
                self._step()
            if not self._stopping and self._passages and not self._scheduler.suspecting:
                self._embed()
        except Exception:
            log.critical("the engine is lost", exc_info=True)
            raise
        return not self._stopping

    def _run_commands(self) -> None:
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
        if waited and not self.waiting:
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
        failed: set[JobRun] = set()
        for passage in batch:
            run = passage[0]
            try:
                updates += self._vectors([passage]) if run not in failed else []
            except EngineBroken:
                raise
            except Exception as error:
                failed.add(run)
                updates += self._fail([run], error)
        return updates

    def _vectors(self, batch: list[Passage]) -> list[Update]:
        assert self._engine.embedder
        passages = [run.passages[index] for run, index in batch]
        with self._watched():
            vectors = self._engine.embedder.embed(passages)
        self._prefill.inc(sum(map(len, passages)))
        return [Update(run, run.advance(index, vector)) for (run, index), vector in zip(batch, vectors, strict=True)]

    @contextmanager
    def _watched(self) -> Iterator[None]:
        self._busy_since = time.monotonic()
        try:
            yield
            self._steps.observe(time.monotonic() - self._busy_since)
        finally:
            self._busy_since = None

    def _recover(self, batch: Batch, error: Exception) -> list[Update]:
        """Try again with less, or alone; the events of a job that fails."""
        sequences = [row.sequence for row in batch.rows]
        tokens = sum(row.count for row in batch.rows)
        if short := isinstance(error, OutOfMemory):
            self._scheduler.shrink()
        if len(sequences) == 1 and not (short and tokens > BLOCK_SIZE):
            return self._fail([self._owners[sequence] for sequence in sequences], error)
        for sequence in sequences:
            self._engine.free(sequence)
        self._scheduler.retry(sequences, alone=not short or len(sequences) <= 2)
        return []

    def _take(self, batch: Batch, sampled: list[Sampled]) -> list[Update]:
        updates = []
        for sequence, new in self._scheduler.apply(batch, sampled):
            run = self._owners.get(sequence)
            if run is None:
                continue  # another choice of its job could not be read, just now
            if sequence.output_length == 1:
                self._shared.inc(sequence.cached_tokens or 0)
            written = run.next_seq
            try:
                events = self._read(run, sequence, new)
            except Exception as error:
                log.exception("an answer cannot be read", extra={"job_id": run.delivery.job.id})
                run.take_back(written)
                updates.append(self._finish(run, _unreadable(error)))
                continue
            if sequence not in run.unfinished:
                self._forget(sequence)
            updates.append(Update(run, events))
        return updates

    def _read(self, run: Generation, sequence: Sequence, new: Sampled) -> list[Event]:
        """What the token adds to the answer. One that takes longer than its run has time left fails, long before the
        worker seems to hang; neighbours wait meanwhile, so the time is of the whole answer."""
        self._busy_since = began = time.monotonic()
        try:
            with time_limit(run.patience_s):
                return run.advance(sequence, new)
        finally:
            self._busy_since = None
            run.patience_s = min(run.patience_s + READ_S_EACH - (time.monotonic() - began), READ_S_MAX)

    def _fail(self, runs: Iterable[JobRun], error: Exception) -> list[Update]:
        detail = "".join(traceback.format_exception(error))
        failed = Failed(code="engine_error", message=f"The engine failed: {error}", detail=detail)
        return [self._finish(run, failed) for run in dict.fromkeys(runs)]

    def _finish(self, run: JobRun, outcome: Outcome) -> Update:
        events: list[Event] = [run.finish(outcome)]
        self._drop(run)
        return Update(run, events)

    def _end(self, run: JobRun, outcome: Outcome) -> None:
        if not run.ended:
            self._outbox.put([self._finish(run, outcome)])

    def _measure(self, batch: Batch, tokens: int) -> None:
        self._batch.observe(len(batch.rows))
        self._preempted.inc(len(batch.preempted))
        self._tokens.inc(tokens)
        self._prefill.inc(sum(row.count for row in batch.rows if not row.decoding))

    def _add(self, run: JobRun) -> None:
        """One that is done already leaves nothing to compute."""
        match run:
            case Embedding():
                self._passages.add(run)
            case Generation():
                self._add_sequences(run)

    def _add_sequences(self, run: Generation) -> None:
        for sequence in run.unfinished:
            self._owners[sequence] = run
            self._scheduler.add(sequence, alone=run.delivery.isolated)

    def _drop(self, run: JobRun) -> None:
        match run:
            case Embedding():
                self._passages.drop(run)
            case Generation():
                for sequence in run.sequences:
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
