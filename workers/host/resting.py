"""Workers that go to sleep or wake are told so until they have done it: a message may be lost."""

from shared.domain.hosting import When
from shared.queue.protocols import SLEEP, SLEEP_NOW, WAKE
from workers.host.fleet import Fleet, Rest
from workers.host.redis_side import RedisSide
from workers.host.worker_process import WorkerProcess

PATIENCE_S = 60.0  # with a worker that was told to sleep at once, or to wake; it ends after that
MESSAGES = {Rest.FALLING_ASLEEP: SLEEP, Rest.FALLING_ASLEEP_NOW: SLEEP_NOW, Rest.WAKING: WAKE}


async def look_at_resting(fleet: Fleet, redis_side: RedisSide, now: float) -> None:
    """Tell the workers, and note those that sleep or are awake by now. Raises QueueUnavailable."""
    for worker in fleet:
        rest = Rest(worker.record.rest)
        if rest in MESSAGES and not worker.record.stopping:
            await _look_at(worker, rest, fleet, redis_side, now)


async def _look_at(worker: WorkerProcess, rest: Rest, fleet: Fleet, redis_side: RedisSide, now: float) -> None:
    asleep = await redis_side.is_asleep(worker)
    if rest is Rest.WAKING and not asleep and await redis_side.serves(worker):
        fleet.rest(worker, Rest.AWAKE, now)
    elif rest is not Rest.WAKING and asleep:
        fleet.rest(worker, Rest.ASLEEP, now)
    elif rest is not Rest.FALLING_ASLEEP and now - worker.record.rest_s > PATIENCE_S:
        fleet.stop(worker, When.NOW, "it does not do what it was told", now)
    else:
        await redis_side.tell(worker, MESSAGES[rest])
