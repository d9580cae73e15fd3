"""The thread in which an engine steps. It takes turns in and puts events out; it never waits for the network unless
the outbox is full."""

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable

from shared.events import Event, Failed
from shared.telemetry import WorkerMetrics
from workers.engine.base import Engine
from workers.outbox import Outbox, Update
from workers.scheduler import Batch, Scheduler
from workers.sequence import Sequence
from workers.turn import Turn

log = logging.getLogger(__name__)
STOP_S = 1.0


class Stepper:
    def __init__(self, model: str, engine: Engine, outbox: Outbox, metrics: WorkerMetrics) -> None:
        self._engine = engine
        self._outbox = outbox
        self._scheduler = Scheduler(engine.limits)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._owners: dict[Sequence, Turn] = {}
        self._stopping = False
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine {model}", daemon=True)
        self._running = metrics.running.labels(model)
        self._steps = metrics.steps.labels(model)
        self._batch = metrics.batch.labels(model)
        self._tokens = metrics.tokens.labels(model)
        self._prefill = metrics.prefill.labels(model)

    def start(self) -> None:
        self._thread.start()

    def add(self, turn: Turn) -> None:
        self._inbox.put(lambda: self._add(turn))

    def drop(self, turn: Turn) -> None:
        """Before the next step; a turn that has ended is no error."""
        self._inbox.put(lambda: self._drop(turn))

    def stop(self) -> None:
        """Return when the step that runs now has ended. A hung one is left behind after a second."""
        self._inbox.put(self._stop)
        self._thread.join(timeout=STOP_S)

    def alive(self, *, step_timeout_s: float) -> bool:
        """The thread runs and no step has taken longer than that."""
        began = self._step_began
        return self._thread.is_alive() and (began is None or time.monotonic() - began < step_timeout_s)

    def _run(self) -> None:
        while not self._stopping:
            self._obey()
            if not self._stopping and self._scheduler.busy:
                self._step()

    def _obey(self) -> None:
        """Do what has been asked; wait for something to be asked when there is nothing to compute."""
        block = not self._scheduler.busy
        while not self._stopping:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                break
            command()
            block = False
        self._running.set(len(self._owners))

    def _step(self) -> None:
        batch = self._scheduler.next_batch()
        for sequence in batch.preempted:
            self._engine.free(sequence)
        self._step_began = time.monotonic()
        try:
            tokens = self._engine.step(batch)
        except Exception as error:  # a step's failure ends its jobs, never the worker
            log.exception("engine step failed")
            updates = self._fail(batch, error)
        else:
            self._measure(batch, len(tokens))
            updates = self._take(batch, tokens)
        finally:
            self._step_began = None
        if updates:
            self._outbox.put(updates)

    def _take(self, batch: Batch, tokens: list[int]) -> list[Update]:
        updates = []
        for sequence, token in self._scheduler.apply(batch, tokens):
            turn = self._owners[sequence]
            events = turn.advance(sequence, token)
            if sequence not in turn.unfinished:
                self._forget(sequence)
            updates.append(Update(turn, events))
        return updates

    def _fail(self, batch: Batch, error: Exception) -> list[Update]:
        detail = "".join(traceback.format_exception(error))
        failed = Failed(code="engine_error", message=f"The engine failed: {error}", detail=detail)
        turns = {self._owners[row.sequence]: None for row in batch.rows}
        updates: list[Update] = []
        for turn in turns:
            events: list[Event] = [turn.finish(failed)]
            updates.append(Update(turn, events))
            self._drop(turn)
        return updates

    def _measure(self, batch: Batch, tokens: int) -> None:
        assert self._step_began is not None
        self._steps.observe(time.monotonic() - self._step_began)
        self._batch.observe(len(batch.rows))
        self._tokens.inc(tokens)
        self._prefill.inc(sum(row.count for row in batch.rows if not row.decoding))

    def _add(self, turn: Turn) -> None:
        for sequence in turn.unfinished:
            self._owners[sequence] = turn
            self._scheduler.add(sequence)

    def _drop(self, turn: Turn) -> None:
        for sequence in turn.sequences:
            if sequence in self._owners:
                self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        del self._owners[sequence]
        self._scheduler.drop(sequence)
        self._engine.free(sequence)

    def _stop(self) -> None:
        self._stopping = True
