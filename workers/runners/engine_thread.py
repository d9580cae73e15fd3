"""A thread that computes the runs of one engine: it takes commands in, computes, and delivers events. It waits for the
network only while the outbox is full."""

import logging
import queue
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future

from shared.domain.errors import EngineError
from shared.domain.events import Event, Outcome
from workers.process.single_thread import SingleThread
from workers.process.time_limit import time_limit
from workers.runners.outbox import Outbox, Update
from workers.runners.step_watch import StepWatch
from workers.runs.generation import Generation
from workers.runs.run import READ_S_MAX, JobRun
from workers.scheduling.sequence import Sampled, Sequence

log = logging.getLogger(__name__)
READ_S_EACH = 0.005  # what a token adds to the time that reading its answer may take


class EngineThread(ABC):
    """A runner whose verbs put commands into an inbox, which its thread carries out before it computes again. A
    subclass says what a run is to its engine. All methods that begin with _ are called in the thread."""

    sleeps = False

    def __init__(self, thread: SingleThread, *, outbox: Outbox, watch: StepWatch, places: int) -> None:
        """The engine must have been loaded in `thread`. `waiting` and `places` are what a runner tells the worker; a
        subclass changes them in `_count`."""
        self.waiting = 0
        self.places = places
        self._thread = thread
        self._outbox = outbox
        self._watch = watch
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
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
        """Stop computing. The future is done when the current step has ended, which a hung one never does."""
        self._inbox.put(self._stop)
        return self._ended

    def alive(self, *, step_timeout_s: float) -> bool:
        """True while it steps, no step or reading takes longer than that, and steps have got somewhere within it."""
        return not self._ended.done() and self._watch.alive(step_timeout_s=step_timeout_s)

    def metrics_page(self) -> bytes:
        """The engine's own metrics, beside those that every worker has."""
        return b""

    def sleep(self, level: int) -> Future[None]:
        raise EngineError("this engine keeps its memory while it serves nobody")

    def wake(self) -> Future[None]:
        """Done at once, since this engine does not sleep."""
        awake: Future[None] = Future()
        awake.set_result(None)
        return awake

    @property
    @abstractmethod
    def _busy(self) -> bool:
        """True if there is something to compute."""

    @abstractmethod
    def _count(self) -> None:
        """Set the gauges, `waiting` and `places`; called before each step, and before a pause."""

    @abstractmethod
    def _compute(self) -> None:
        """Compute once, if there is something to compute, and deliver the events."""

    @abstractmethod
    def _add(self, run: JobRun) -> None: ...

    @abstractmethod
    def _drop(self, run: JobRun) -> None:
        """Forget a run; an unknown one is no error."""

    def _iterate(self) -> bool:
        """Run commands, compute, deliver; False once it must stop."""
        try:
            self._run_commands()
            if not self._stopping:
                self._compute()
        except Exception:
            log.critical("the engine is lost", exc_info=True)
            raise
        return not self._stopping

    def _run_commands(self) -> None:
        """Run the commands in the inbox; wait for one when there is nothing to compute."""
        block = self._thread.may_wait and not self._busy
        self._count()
        while not self._stopping:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                break
            command()
            block = False

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

    def _deliver(self, updates: list[Update]) -> None:
        if updates:
            self._outbox.put(updates)

    def _finish(self, run: JobRun, outcome: Outcome) -> Update:
        events: list[Event] = [run.finish(outcome)]
        self._drop(run)
        return Update(run, events)

    def _end(self, run: JobRun, outcome: Outcome) -> None:
        if not run.ended:
            self._outbox.put([self._finish(run, outcome)])

    def _stop(self) -> None:
        self._stopping = True
