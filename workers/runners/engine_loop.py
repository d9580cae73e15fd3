"""The engine loop is the runner of an `Engine`. In the engine's thread it makes step after step: the scheduler picks a
batch, the engine computes it, and the runs read the tokens.

A failed step fails only the job that cannot be computed: its sequences are computed again, each alone, and a job fails
only if its sequence fails alone. A step that runs out of memory is tried again with less in it. An answer that cannot
be read (its text, its tool calls, its grammar) fails its own job and no other."""

import logging
from collections.abc import Callable

from shared.observability.metrics import WorkerMetrics
from workers.process.single_thread import SingleThread
from workers.protocols import Engine, EngineBroken, OutOfMemory
from workers.runners.embedding_steps import EmbeddingSteps
from workers.runners.engine_thread import EngineThread, StepClock, engine_failed, unreadable
from workers.runners.outbox import Outbox, Update
from workers.runners.step_metrics import StepMetrics
from workers.runs.embedding import Embedding
from workers.runs.generation import Generation
from workers.runs.run import JobRun
from workers.scheduling.engine_limits import BLOCK_SIZE
from workers.scheduling.scheduler import Batch, Scheduler
from workers.scheduling.sequence import Sampled, Sequence

log = logging.getLogger(__name__)


class EngineLoop(EngineThread):
    """The verbs of its base class carry runs into the thread: `add` puts `_add` into the inbox, which is emptied before
    each `_compute`.

    Other threads read `waiting` and `places`, which change only in `_count`. It calls `more_places` when there is a
    place again: nothing else tells an intake that waits for one."""

    def __init__(
        self,
        model: str,
        engine: Engine,
        thread: SingleThread,
        *,
        outbox: Outbox,
        metrics: WorkerMetrics,
        more_places: Callable[[], None],
    ) -> None:
        """The engine must have been loaded in `thread`. `more_places` is called in it when no job waits any more for a
        place in the batch, or when there are more places."""
        self._metrics = StepMetrics(metrics, model, blocks=engine.limits.blocks)
        clock = StepClock(self._metrics.durations)
        super().__init__(thread, outbox=outbox, clock=clock, places=engine.limits.sequences_max)
        self._more_places = more_places
        self._engine = engine
        self._scheduler = Scheduler(engine.limits)
        self._owners: dict[Sequence, Generation] = {}
        self._embedding = EmbeddingSteps(
            engine.embedder, tokens_max=engine.limits.batch_tokens_max, clock=clock, metrics=self._metrics
        )

    def _add(self, run: JobRun) -> None:
        """A run that is done already adds nothing to compute."""
        match run:
            case Generation():
                for sequence in run.unfinished:
                    self._owners[sequence] = run
                    self._scheduler.add(sequence, alone=run.delivery.isolated)
            case Embedding():
                self._embedding.add(run)
            case _:
                assert run.done, f"nobody computes a {type(run).__name__}"

    @property
    def _busy(self) -> bool:
        return self._scheduler.busy or bool(self._embedding)

    def _compute(self) -> None:
        """Compute a step; `_deliver` of engine_thread.py puts its events into the outbox."""
        if self._scheduler.busy:
            self._deliver(self._step())
        if self._embedding and not self._scheduler.suspecting:
            self._deliver(self._embedding.step())

    def _step(self) -> list[Update]:
        """Compute one batch; return the events of each run in it."""
        batch = self._scheduler.next_batch()
        self._count()
        for sequence in batch.preempted:
            self._engine.free(sequence)
        computed = False
        try:
            with self._clock.step():
                sampled = self._engine.step(batch)
        except EngineBroken:
            raise
        except Exception as error:
            log.exception("engine step failed", extra={"sequences": len(batch.rows)})
            self._metrics.faults.inc()
            updates = self._recover(batch, error)
        else:
            self._metrics.computed(batch, len(sampled))
            updates = self._read_all(batch, sampled)
            computed = bool(batch.rows)
        self._clock.record(progress=computed or bool(updates))
        return updates

    def _read_all(self, batch: Batch, sampled: list[Sampled]) -> list[Update]:
        """Append each new token to its sequence and have its run read it."""
        updates = []
        for sequence, new in self._scheduler.apply(batch, sampled):
            run = self._owners.get(sequence)
            if run is None:
                continue  # another choice of its job could not be read in this step
            if sequence.output_length == 1:
                self._metrics.shared.inc(sequence.cached_tokens or 0)
            written = run.next_seq
            try:
                events = self._advance(run, sequence, new)  # `run.advance`, within a time limit (engine_thread.py)
            except Exception as error:
                log.exception("an answer cannot be read", extra={"job_id": run.delivery.job.id})
                run.take_back(written)
                updates.append(self._finish(run, unreadable(error)))
                continue
            if sequence not in run.unfinished:
                self._drop_sequence(sequence)
            updates.append(Update(run, events))
        return updates

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

    def _count(self) -> None:
        self._metrics.running.set(len(self._owners))
        self._metrics.blocks.set(self._scheduler.blocks_used)
        self._metrics.waiting.set(self._scheduler.waiting)
        waited, self.waiting = self.waiting, self._scheduler.jobs_waiting
        places, self.places = self.places, self._scheduler.places
        if (waited or self.places > places) and not self.waiting:
            self._more_places()

    def _drop(self, run: JobRun) -> None:
        match run:
            case Generation():
                for sequence in run.sequences:
                    if sequence in self._owners:
                        self._drop_sequence(sequence)
            case Embedding():
                self._embedding.drop(run)

    def _drop_sequence(self, sequence: Sequence) -> None:
        del self._owners[sequence]
        self._scheduler.drop(sequence)
        self._engine.free(sequence)
