"""Run an engine without a queue, as fast as it goes: for measurements, tools and tests."""

from collections.abc import Callable, Iterable

from workers.protocols import Engine
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import Sampled, Sequence


def compute_all(engine: Engine, sequences: Iterable[Sequence], ended: Callable[[Sequence, Sampled], bool]) -> Scheduler:
    """Step until all sequences have ended, as `ended` says of each new token; return the scheduler, empty."""
    scheduler = Scheduler(engine.limits)
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.busy:
        batch = scheduler.next_batch()
        for sequence in batch.preempted:
            engine.free(sequence)
        for sequence, new in scheduler.apply(batch, engine.step(batch)):
            if ended(sequence, new):
                scheduler.drop(sequence)
                engine.free(sequence)
    return scheduler
