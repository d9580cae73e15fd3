"""The queue as the API and the workers see it. It has two implementations: `redis_queue` and `memory_queue`."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.domain.events import Deadline, Event, Finished
from shared.domain.job import Job
from shared.domain.lifecycle import State
from shared.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The most that may wait for one model: jobs, estimated tokens, and bytes of requests."""

    jobs_max: int
    tokens_max: int = 10**12
    bytes_max: int = 10**12


def bounds_of(settings: Settings) -> Bounds:
    return Bounds(
        jobs_max=settings.queue_jobs_max, tokens_max=settings.queue_tokens_max, bytes_max=settings.queue_bytes_max
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    """A record stored beside the job of the same `id`, for its client to read again. `key` is its name in the store,
    and `index` names the list that holds it by `created_ms`, '' for none. All records of a tenant together have at
    most `tenant_bytes_max` bytes."""

    key: str
    id: str
    tenant: str
    created_ms: int
    data: str
    ttl_s: int
    tenant_bytes_max: int
    index: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """The client's idempotency key, made unique among tenants, and a digest of its request."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """The limits of the job's tenant, 0 for none: requests and tokens a minute, jobs at a time, and `month_tokens` in
    `month`."""

    requests: int = 0
    tokens: int = 0
    jobs: int = 0
    month_tokens: int = 0
    month: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitsLeft:
    """The requests and tokens left within rate limits, and the seconds until each is back at its limit."""

    requests: int
    tokens: int
    requests_reset_s: float
    tokens_reset_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The job whose request a new job runs again, and whether the cost of its answer counts to its API key."""

    job_id: str
    counts_cost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """An accepted job. If the request came before (`attached`), `job_id` and `created_ms` are the earlier job's.
    `ahead` counts the waiting jobs of its class and above, and `tokens_ahead` their tokens; `wait_s` estimates its
    wait, 0 without an estimate. `limits_left` is what remains of the tenant's rate limits."""

    job_id: str
    created_ms: int
    ahead: int = 0
    tokens_ahead: int = 0
    wait_s: float = 0
    attached: bool = False
    limits_left: RateLimitsLeft | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A job that a worker has claimed. Nothing is written for the job without its `claim_token`.

    `attempt` counts claims from 1, and from 2 again once the job has progressed; `log` holds the events of earlier
    attempts; `late` names a deadline that has passed already; `left_ms` is what remains of the run deadline.
    `isolated` is set when workers died running this job or beside it: it must run alone until it progresses.
    `waited_ms` counts from the time at which it was queued or handed over. `trace` is its W3C trace context.
    `quota` names the one of the room's quotas that it was taken from.
    """

    job: Job
    claim_token: str
    attempt: int
    log: tuple[Event, ...] = ()
    late: Deadline | None = None
    left_ms: float | None = None
    isolated: bool = False
    waited_ms: float = 0
    trace: str = ""
    quota: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """An upstream's limits for all workers together: requests and tokens a minute, and requests at once; 0 for
    no limit. `name` is the same for all who share it."""

    name: str
    requests: int = 0
    tokens: int = 0
    at_once: int = 0


ANY_WIDTH = 10**9


@dataclass(frozen=True, slots=True)
class Room:
    """The room that a worker has left: `sequences` in all. Each of `tenants` already runs a wide job there, so a job of
    theirs may have at most `widest` sequences. With `quotas`, a job is claimed only if one of them has room for it,
    from the first that has."""

    sequences: int = ANY_WIDTH
    widest: int = ANY_WIDTH
    tenants: frozenset[str] = frozenset()
    quotas: tuple[Quota, ...] = ()

    def fits(self, job: Job) -> bool:
        return job.tenant not in self.tenants or job.sequences <= self.widest


ANY_ROOM = Room()


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """New events of one delivery, in order; the first one's `seq` is the length of the log before it."""

    delivery: Delivery
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InUse:
    """The reasons not to forget a model: jobs that wait or run, and workers that are alive."""

    jobs: int
    workers: int

    def __bool__(self) -> bool:
        return self.jobs > 0 or self.workers > 0

    def __str__(self) -> str:
        """Name each reason, with what to do about it."""
        workers = _counted(self.workers, "1 worker serves it (stop it first)", "{} workers serve it (stop them first)")
        jobs = _counted(self.jobs, "1 job waits or runs (cancel it first)", "{} jobs wait or run (cancel them first)")
        return " and ".join([*workers, *jobs])


def _counted(count: int, one: str, many: str) -> list[str]:
    return [one if count == 1 else many.format(count)] if count else []


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSlice:
    """A job's events from a number on, and its state. `state` is None when the job is gone."""

    state: State | None
    events: tuple[Event, ...]


SETTLED = -2
LOST = -1


class QueueProducer(Protocol):
    """The API's side of the queue. Every verb is atomic and may be repeated. All raise QueueUnavailable when the queue
    cannot be reached. The API uses a `ShardedQueue`, which passes each verb on to the `RedisQueue` of one Redis."""

    async def enqueue(
        self,
        job: Job,
        *,
        bounds: Bounds,
        subscriber: str = "",
        idempotency: Idempotency | None = None,
        rate_limits: RateLimits | None = None,
        render_options: str = "",
        trace: str = "",
        record: StoredRecord | None = None,
        origin: Origin | None = None,
    ) -> Accepted:
        """Accept the job, or find the one that the idempotency key created before; its events go to `subscriber`, too.
        `render_options` are kept with the job, and so is the id of its `origin`, if it runs that again. `record` is
        stored when the job is accepted, and only then. Raises QueueFull, LimitReached, StorageFull or
        IdempotencyKeyReused."""

    async def charge(self, tenant: str, rate_limits: RateLimits) -> float:
        """Count a request that was refused for its own fault against the tenant's requests a minute; return the seconds
        until it has another, 0 when it has one."""

    async def store(self, record: StoredRecord) -> None:
        """Write the record, or replace the one of the same key. Raises StorageFull."""

    async def discard(self, record: StoredRecord) -> None:
        """Forget the record and give its bytes back to its tenant; nothing happens when there is none."""

    async def attach(self, job_id: str, *, subscriber: str) -> State | None:
        """Send the job's further events to `subscriber`, too; return its state, None when there is no such job."""

    async def cancel(self, job_id: str, *, by: str = "its client") -> State | None:
        """End the job as cancelled unless it has ended; return the state it was in, None when there is none."""

    async def leave(self, job_id: str, *, subscriber: str) -> None:
        """Cancel the job unless somebody else still reads it."""

    async def replay(self, job_id: str, *, as_id: str, model: str = "") -> tuple[State | None, str]:
        """Run a failed job once more, and only once, as another job with the same request and seed, linked to it. It is
        a job of `model`, if one is given, else of the same model. Raises InvalidRequest for a model of another Redis.
        Return the state it was in, None when there is none, and the job that replays it, '' when none does."""

    async def pause(self, model: str, *, paused: bool) -> None:
        """Stop claims of the model's waiting jobs, or allow them again; running jobs go on."""

    async def forget_model(self, model: str) -> InUse:
        """Forget the model, and whether it was paused, unless it is still in use; return what uses it."""


class QueueConsumer(Protocol):
    """A worker's side of the same queue."""

    async def claim(
        self, model: str, *, worker: str, limit: int, room: Room = ANY_ROOM, wait_ms: int = 0
    ) -> list[Delivery]:
        """Claim up to `limit` jobs, until they fill the room: lapsed leases first, then the least-served class and
        tenant. Wait up to `wait_ms` for one; return `[]` when there is none. A lapsed job that has no room here is left
        to other workers for a moment; waiting jobs that are too wide are passed over."""

    async def renew(self, held: Sequence[Delivery], *, worker: str) -> list[str]:
        """Extend the leases; return the ids of jobs that are no longer the worker's."""

    async def append(self, writes: Sequence[Write]) -> dict[str, int]:
        """Log the events, then publish them. Return the refused writes by job: LOST if the job is no longer the
        worker's, else the length of its log, which is shorter than the write assumes: Redis has lost the log's end."""

    async def settle(self, write: Write, *, worker: str) -> int:
        """End the job with its last events, the last one Finished. Return SETTLED, or the refusal as `append` does."""

    async def release(self, held: Sequence[Delivery], *, worker: str) -> None:
        """Hand the jobs back, with their logs, for the next claim. This costs them no attempt."""


class EventChannel(Protocol):
    """The way of a job's events to its readers. Published events may repeat or skip; the log never does. The API uses a
    `ShardedQueue`, which listens to the `RedisChannel` of every Redis."""

    def listen(self, subscriber: str) -> AsyncIterator[list[tuple[str, Sequence[Event]]]]:
        """Yield batches of (job id, events in order) as they are published, until closed."""

    async def read(self, cursors: Sequence[tuple[str, int]]) -> list[LogSlice]:
        """Read the log of each job from the given event number on. An event that cannot be decoded becomes a failure of
        its job, which ends the slice."""


SLEEP, SLEEP_NOW, WAKE = "!sleep", "!sleep now", "!wake"  # no job has such an id


class CancelChannel(Protocol):
    """Announces to a worker the jobs that it must drop, and when its models sleep."""

    def dropped(self, worker: str) -> AsyncIterator[str]:
        """Yield the ids of jobs that were cancelled while this worker ran them; or SLEEP (after the running jobs),
        SLEEP_NOW (with these handed back) or WAKE, each perhaps several times."""


def finished(write: Write) -> Finished:
    last = write.events[-1]
    assert isinstance(last, Finished), "a settling write ends with Finished"
    return last
