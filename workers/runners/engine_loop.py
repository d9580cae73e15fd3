"""The engine loop runs in the engine's thread: it takes runs in, steps, and delivers events. It waits for the network
only while the outbox is full.

A failed step fails only the job that cannot be computed: its sequences are computed again, each alone, and a job fails
only if its sequence fails alone. A step that runs out of memory is tried again with less in it. An answer that cannot
be read (its text, its tool calls, its grammar) fails its own job and no other."""

import logging
import queue
from collections.abc import Callable
from concurrent.futures import Future

from shared.domain.events import Event, Outcome
from shared.observability.metrics import WorkerMetrics
from workers.engines.base import Engine, EngineBroken, OutOfMemory
from workers.process.single_thread import SingleThread
from workers.process.time_limit import time_limit
from workers.runners.embedding_steps import EmbeddingSteps
from workers.runners.failures import engine_failed, unreadable
from workers.runners.outbox import Outbox, Update
from workers.runners.step_metrics import StepMetrics
from workers.runners.step_watch import StepWatch
from workers.runs.embedding import Embedding
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
        """The engine must have been loaded in `thread`. `room` is called in it when no job waits any more for a place
        in the batch, or when there are more places.

        `waiting` is the number of jobs without a place in the batch, and `places` the number of places, when that was
        last decided. Other threads read both. They change only in `_count`, which calls `room` when there is some
        again: an intake that waits for room would not notice any other change."""
        self.waiting = 0
        self.places = engine.limits.sequences_max
        self._room = room
        self._engine = engine
        self._outbox = outbox
        self._scheduler = Scheduler(engine.limits)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._owners: dict[Sequence, Generation] = {}
        self._metrics = StepMetrics(metrics, model, blocks=engine.limits.blocks)
        self._watch = StepWatch(self._metrics.durations)
        self._embedding = EmbeddingSteps(
            engine.embedder, tokens_max=engine.limits.batch_tokens_max, watch=self._watch, metrics=self._metrics
        )
        self._stopping = False
        self._thread = thread
        self._ended: Future[None] = Future()

    def start(self) -> None:
        self._ended = self._thread.repeat(self._iterate)

    def add(self, run: JobRun) -> None:
        self._inbox.put(lambda: self._add(run))

    def drop(self, run: JobRun) -> None:
        """Drop it before the next step; a run that has ended is no error."""
        self._inbox.put(lambda: self._drop(run))

    def end(self, run: JobRun, outcome: Outcome) -> None:
        """End it with this outcome, unless it has ended by itself."""
        self._inbox.put(lambda: self._end(run, outcome))

    def stop(self) -> Future[None]:
        """Stop stepping. The future is done when the current step has ended, which a hung one never does."""
        self._inbox.put(self._stop)
        return self._ended

    def alive(self, *, step_timeout_s: float) -> bool:
        """True while it steps, no step or reading takes longer than that, and steps have got somewhere within it."""
        return not self._ended.done() and self._watch.alive(step_timeout_s=step_timeout_s)

    def _iterate(self) -> bool:
        """Run commands, step, deliver; False once it must stop."""
        try:
            self._run_commands()
            if not self._stopping and self._scheduler.busy:
                self._deliver(self._step())
            if not self._stopping and self._embedding and not self._scheduler.suspecting:
                self._deliver(self._embedding.step())
        except Exception:
            log.critical("the engine is lost", exc_info=True)
            raise
        return not self._stopping

    def _run_commands(self) -> None:
        """Run the commands in the inbox; wait for one when there is nothing to compute."""
        block = self._thread.may_wait and not self._scheduler.busy and not self._embedding
        self._count()
        while not self._stopping:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                break
            command()
            block = False

    def _count(self) -> None:
        """Set the gauges and call `room` if there is some; before each step, and before a pause."""
        self._metrics.running.set(len(self._owners))
        self._metrics.blocks.set(self._scheduler.blocks_used)
        self._metrics.waiting.set(self._scheduler.waiting)
        waited, self.waiting = self.waiting, self._scheduler.jobs_waiting
        places, self.places = self.places, self._scheduler.places
        if (waited or self.places > places) and not self.waiting:
            self._room()

    def _step(self) -> list[Update]:
        batch = self._scheduler.next_batch()
        self._count()
        for sequence in batch.preempted:
            self._engine.free(sequence)
        computed = False
        try:
            with self._watch.step():
                sampled = self._engine.step(batch)
        except EngineBroken:
            raise
        except Exception as error:
            log.exception("engine step failed", extra={"sequences": len(batch.rows)})
            self._metrics.faults.inc()
            updates = self._recover(batch, error)
        else:
            self._metrics.computed(batch, len(sampled))
            updates = self._take(batch, sampled)
            computed = bool(batch.rows)
        self._watch.record(progress=computed or bool(updates))
        return updates

    def _deliver(self, updates: list[Update]) -> None:
        if updates:
            self._outbox.put(updates)

    def _recover(self, batch: Batch, error: Exception) -> list[Update]:
        """Plan the batch again, with less in it or each sequence alone; return the events of a job that fails. A job
        fails for want of memory only if no other sequence had any and the step was no more than a block of tokens."""
        rows, scheduler = batch.rows, self._scheduler
        short = isinstance(error, OutOfMemory)
        if short and (scheduler.running > 1 or sum(row.count for row in rows) > BLOCK_SIZE):
            stopped = scheduler.shrink(batch)
        elif len(rows) > 1:
            stopped = scheduler.retry(batch)
        else:
            updates = [self._finish(self._owners[row.sequence], engine_failed(error)) for row in rows]
            if short:
                scheduler.acquit()
            return updates
        for sequence in stopped:
            self._engine.free(sequence)
        return []

    def _take(self, batch: Batch, sampled: list[Sampled]) -> list[Update]:
        updates = []
        for sequence, new in self._scheduler.apply(batch, sampled):
            run = self._owners.get(sequence)
            if run is None:
                continue  # another choice of its job could not be read in this step
            if sequence.output_length == 1:
                self._metrics.shared.inc(sequence.cached_tokens or 0)
            written = run.next_seq
            try:
                events = self._read(run, sequence, new)
            except Exception as error:
                log.exception("an answer cannot be read", extra={"job_id": run.delivery.job.id})
                run.take_back(written)
                updates.append(self._finish(run, unreadable(error)))
                continue
            if sequence not in run.unfinished:
                self._forget(sequence)
            updates.append(Update(run, events))
        return updates

    def _read(self, run: Generation, sequence: Sequence, new: Sampled) -> list[Event]:
        """The events that the token adds to the answer. Reading may take as long as the run has time left, so that it
        fails long before the worker seems to hang; its neighbours wait meanwhile, so the whole answer shares that time.
        """
        self._watch.begin()
        try:
            with time_limit(run.reading_left_s):
                return run.advance(sequence, new)
        finally:
            run.reading_left_s = min(run.reading_left_s + READ_S_EACH - self._watch.end(), READ_S_MAX)

    def _finish(self, run: JobRun, outcome: Outcome) -> Update:
        events: list[Event] = [run.finish(outcome)]
        self._drop(run)
        return Update(run, events)

    def _end(self, run: JobRun, outcome: Outcome) -> None:
        if not run.ended:
            self._outbox.put([self._finish(run, outcome)])

    def _add(self, run: JobRun) -> None:
        """A run that is done already adds nothing to compute."""
        match run:
            case Embedding():
                self._embedding.add(run)
            case Generation():
                self._add_sequences(run)
            case _:
                assert run.done, f"nobody computes a {type(run).__name__}"

    def _add_sequences(self, run: Generation) -> None:
        for sequence in run.unfinished:
            self._owners[sequence] = run
            self._scheduler.add(sequence, alone=run.delivery.isolated)

    def _drop(self, run: JobRun) -> None:
        match run:
            case Embedding():
                self._embedding.drop(run)
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
