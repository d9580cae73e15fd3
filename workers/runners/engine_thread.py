"""A thread that computes the runs of one engine: it takes commands in, computes, and delivers events. It waits for the
network only while the outbox is full."""

import logging
import queue
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from prometheus_client import Histogram

from shared.domain.errors import InvalidRequest
from shared.domain.events import Event, Failed, Outcome
from workers.process.single_thread import SingleThread
from workers.process.time_limit import time_limit
from workers.runners.base import Runner
from workers.runners.outbox import Outbox, Update
from workers.runs.generation import Generation
from workers.runs.run import READ_S_MAX, JobRun
from workers.scheduling.sequence import Sampled, Sequence

log = logging.getLogger(__name__)
READ_S_EACH = 0.005  # what a token adds to the time that reading its answer may take


class EngineThread(Runner, ABC):
    """A runner whose verbs put commands into an inbox, which its thread carries out before it computes again. A
    subclass says what a run is to its engine. All methods that begin with _ are called in the thread."""

    def __init__(self, thread: SingleThread, *, outbox: Outbox, clock: "StepClock", places: int) -> None:
        """The engine must have been loaded in `thread`. `waiting` and `places` are what a runner tells the worker; a
        subclass changes them in `_count`."""
        self.waiting = 0
        self.places = places
        self._thread = thread
        self._outbox = outbox
        self._clock = clock
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
        return not self._ended.done() and self._clock.alive(step_timeout_s=step_timeout_s)

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

    def _advance(self, run: Generation, sequence: Sequence, new: Sampled) -> list[Event]:
        """Call `run.advance`, which reads the token, and return its events. It may take as long as the run has time
        left, so that it fails long before the worker seems to hang; its neighbours wait meanwhile, so the whole answer
        shares that time."""
        self._clock.begin()
        try:
            with time_limit(run.reading_left_s):
                return run.advance(sequence, new)
        finally:
            run.reading_left_s = min(run.reading_left_s + READ_S_EACH - self._clock.end(), READ_S_MAX)

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


class StepClock:
    """Tells other threads whether the engine's thread still advances. That thread changes it; the others only call
    `alive`."""

    def __init__(self, durations: Histogram) -> None:
        self._durations = durations
        self._began = 0.0
        self._busy_since: float | None = None
        self._stuck_since: float | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step, and record its duration unless it fails."""
        self.begin()
        try:
            yield
            self._durations.observe(time.monotonic() - self._began)
        finally:
            self.end()

    def begin(self) -> None:
        self._busy_since = self._began = time.monotonic()

    def end(self) -> float:
        """Seconds since `begin`."""
        self._busy_since = None
        return time.monotonic() - self._began

    def record(self, *, progress: bool) -> None:
        """Note whether the step that has just ended got anywhere."""
        self._stuck_since = None if progress else self._stuck_since or time.monotonic()

    def alive(self, *, step_timeout_s: float) -> bool:
        """False if a step or a reading has taken longer than that, or no step has got anywhere for that long."""
        since = [at for at in (self._busy_since, self._stuck_since) if at is not None]
        return all(time.monotonic() - at < step_timeout_s for at in since)


def engine_failed(error: Exception) -> Failed:
    """The outcome of a job that its engine could not compute."""
    return _engine_error(f"The engine failed: {error}", error)


def unreadable(error: Exception) -> Failed:
    """The answer cannot be read; that is the client's fault if its grammar is the cause."""
    if isinstance(error, InvalidRequest):
        return refused(error)
    return _engine_error(f"The answer cannot be read: {error}", error)


def refused(error: InvalidRequest) -> Failed:
    """The outcome of a job whose own request is at fault."""
    return Failed(code=error.code or "invalid_request", message=str(error), param=error.param)


def _engine_error(message: str, error: Exception) -> Failed:
    return Failed(code="engine_error", message=message, detail="".join(traceback.format_exception(error)))
