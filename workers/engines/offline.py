"""An engine driven without a queue, as fast as it goes: for measurements, tools and tests."""

from collections.abc import Callable, Iterable

from workers.engines.base import Engine
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import Sampled, Sequence


def run(engine: Engine, sequences: Iterable[Sequence], ended: Callable[[Sequence, Sampled], bool]) -> Scheduler:
    """Until all have ended, by what `ended` says to each new token; returns the scheduler, empty."""
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
