"""The queue as the API and the workers see it. Two implementations: `redis_queue` and `memory`."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.events import Event, Finished
from shared.job import Job
from shared.lifecycle import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A job in a worker's hands. `exec` is the token of this claim: without it nothing is written for the job.

    `attempt` counts claims from 1; `log` holds the events that earlier attempts have written; `late` says that the
    queue deadline passed before this first claim.
    """

    job: Job
    entry_id: str
    exec: str
    attempt: int
    log: tuple[Event, ...] = ()
    late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """New events of one delivery, in order; the first one's `seq` is the length of the log before it."""

    delivery: Delivery
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What is known of a job from one event on. `state` is None when the job is gone."""

    state: State | None
    events: tuple[Event, ...]


class JobQueue(Protocol):
    """Every verb is atomic and may be repeated. All raise QueueUnavailable when the queue cannot be reached."""

    async def enqueue(self, job: Job, *, subscriber: str = "", jobs_max: int) -> int:
        """Accept the job and return how many waited before it; raise QueueFull. Events go to `subscriber`."""

    async def claim(self, model: str, *, worker: str, limit: int, wait_ms: int = 0) -> list[Delivery]:
        """Take up to `limit` jobs, abandoned ones first; wait that long for one; `[]` when there is none."""

    async def renew(self, held: Sequence[Delivery], *, worker: str) -> list[str]:
        """Extend the leases; return the ids of jobs that are no longer the worker's."""

    async def append(self, writes: Sequence[Write]) -> list[str]:
        """Log the events, then publish them; return the ids of jobs that are no longer the worker's."""

    async def settle(self, write: Write, *, worker: str) -> bool:
        """End the job with its last events, the last one Finished; False when it is no longer the worker's."""

    async def release(self, delivery: Delivery, *, worker: str) -> None:
        """Hand the job back, with its log, for the next claim; costs it no attempt."""

    async def cancel(self, job_id: str) -> State | None:
        """End the job as cancelled unless it has ended; return the state it was in, None when there is none."""

    async def replay(self, job_id: str) -> State | None:
        """Run a failed job again from the start; return the state it was in, None when there is none."""

    async def depth(self, model: str) -> int:
        """How many jobs wait."""


class JobChannel(Protocol):
    """How a job's events reach whoever reads them. What is heard may repeat or skip; the log never does."""

    def listen(self, subscriber: str) -> AsyncIterator[list[tuple[str, Sequence[Event]]]]:
        """Batches of (job id, events in order) as they are published, until closed."""

    async def read(self, cursors: Sequence[tuple[str, int]]) -> list[Page]:
        """The log of each job from the given event number on."""

    def dropped(self, worker: str) -> AsyncIterator[str]:
        """The ids of jobs that were cancelled while this worker ran them."""


def finished(write: Write) -> Finished:
    last = write.events[-1]
    assert isinstance(last, Finished), "a settling write ends with Finished"
    return last
