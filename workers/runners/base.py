"""The protocol of runners. A runner computes the runs of one model, by steps of ours or by an engine that makes its
own, and puts their events into an outbox; it knows nothing of claims, leases or Redis."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from shared.domain.errors import EngineError
from shared.domain.events import Outcome
from shared.observability.metrics import WorkerMetrics
from workers.runners.outbox import Outbox
from workers.runs.run import JobRun


class Runner(Protocol):
    """A runner derives from this class. No verb waits, and all may be called from the event loop. `sleeps` is true if
    the runner can free the memory of its device while it serves nobody; most cannot."""

    sleeps: bool = False
    waiting: int
    """The number of jobs that are here and wait for a place; while there are any, the worker claims no more."""
    places: int
    """The number of sequences that can be computed at a time; 0 while none can."""

    def start(self) -> None:
        """Begin to compute. Called once, before any other verb."""

    def add(self, run: JobRun) -> None:
        """Compute a run. One that is done already adds nothing to compute."""

    def drop(self, run: JobRun) -> None:
        """Stop computing a run before the next step, without an event; a run that has ended is no error."""

    def end(self, run: JobRun, outcome: Outcome) -> None:
        """End a run with this outcome, unless it has ended by itself."""

    def stop(self) -> Future[None]:
        """Stop computing. The future is done when nothing more comes into the outbox, which a hung engine never is."""

    def alive(self, *, step_timeout_s: float) -> bool:
        """False if nothing has advanced for that long although there was something to compute, or if nothing will. The
        worker's process then ends, and its jobs move on."""

    def metrics_page(self) -> bytes:
        """The engine's own metrics in Prometheus' text format; b"" if it has none."""
        return b""

    def sleep(self, level: int) -> Future[None]:
        """Free the device's memory until `wake`: level 1 keeps the weights in main memory, level 2 drops them, too.
        Only where `sleeps` is true, and only while there is no run."""
        raise EngineError("this runner keeps its memory while it serves nobody")

    def wake(self) -> Future[None]:
        """Be ready to compute again. A runner that does not sleep is ready at once."""
        awake: Future[None] = Future()
        awake.set_result(None)
        return awake


# Makes the runner of a loaded model. The function is called, from any thread, when no job waits for a place any more or
# there are more places than before.
MakeRunner = Callable[[Outbox, WorkerMetrics, Callable[[], None]], Runner]
