"""The intake claims jobs while there is room for them, makes their runs, and gives these to the runners."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

from shared.domain.errors import InvalidRequest, QueueUnavailable
from shared.domain.events import Event, Expired, Failed, Finished, Outcome
from shared.queue.protocols import Delivery, QueueConsumer, Quota, Room, Write
from shared.settings import Settings
from workers.loop.held_jobs import HeldJobs
from workers.loop.outlet import Outlet
from workers.loop.redis_outage import RETRY_S, RedisOutage
from workers.loop.room import room_beside
from workers.runners.base import Runner
from workers.runners.outbox import Outbox, Update
from workers.runs.run import JobRun

log = logging.getLogger(__name__)
ROOM_S = 1.0  # longest wait for room without looking again
SETTLE_LOOK_S = 0.05
CLAIMED_AT_ONCE = 8  # so that each idle worker gets some of many jobs that arrive together
LARGE_TOKENS = 8192  # a prompt that is estimated to have more is large


@dataclass(frozen=True, slots=True)
class Served:
    """A name of a model, whose jobs are claimed. `begin` makes the run of a delivery. An adapter shares the runner of
    its base."""

    name: str
    begin: Callable[[Delivery], JobRun]
    runner: Runner
    quotas: tuple[Quota, ...] = ()


class Intake:
    """Its `queue` is a `RedisQueue`. `begin` makes a `Generation` of a chat, except for models that are sources
    of text. An engine whose steps are ours runs in an `EngineLoop`."""

    def __init__(
        self,
        worker: str,
        *,
        queue: QueueConsumer,
        held: HeldJobs,
        outbox: Outbox,
        outlet: Outlet,
        outage: RedisOutage,
        settings: Settings,
    ) -> None:
        self._worker = worker
        self._queue = queue
        self._held = held
        self._outbox = outbox
        self._outlet = outlet
        self._outage = outage
        self._settings = settings
        self._large = asyncio.Semaphore(1)  # large prompts are encoded one at a time, beside small ones
        self.closed = False
        self._paused = False
        self._claims = 0
        self.starting: set[asyncio.Task[None]] = set()  # bounded by the jobs held

    def close(self) -> None:
        """Claim nothing more; `run` returns after its current claim."""
        self.closed = True
        self._held.wake()

    def pause(self) -> None:
        """Claim nothing more until `resume`."""
        self._paused = True
        self._held.wake()

    def resume(self) -> None:
        self._paused = False
        self._held.wake()

    async def settled(self) -> None:
        """Wait until no claim is under way, and every job that was claimed has begun."""
        while self._claims or self.starting:
            await self._held.changed(longest_s=SETTLE_LOOK_S)

    async def run(self, served: Served, tasks: asyncio.TaskGroup) -> None:
        """Claim jobs of one model until closed; the run of each begins in a task of its own."""
        while not self.closed:
            room = self._room_of(served)
            if room.sequences <= 0 or self._paused:
                await self._held.changed(longest_s=ROOM_S)
                continue
            self._claims += 1
            try:
                deliveries = await self._claim(served, room)
            finally:
                self._claims -= 1
                if self._paused:
                    self._held.wake()
            # All are held before any is encoded: encoding one may take longer than the leases of the others.
            for delivery in deliveries:
                self._hold(served, delivery)
            for delivery in deliveries:
                starting = tasks.create_task(self._begin_run(served, delivery))
                self.starting.add(starting)
                starting.add_done_callback(self.starting.discard)

    def _room_of(self, served: Served) -> Room:
        """The room for further claims; none while jobs that are here already wait for a place, and no more than there
        are places just now: another worker may have room for the rest."""
        if served.runner.waiting:
            return Room(0)
        room = room_beside(self._held.run_by(served.runner), served.runner.places)
        return replace(room, quotas=served.quotas)

    async def _claim(self, served: Served, room: Room) -> list[Delivery]:
        if not self._held.leases_are_fresh:
            # A claim could return this worker's own jobs, whose leases it is late to renew.
            await asyncio.sleep(RETRY_S)
            return []
        try:
            return await self._queue.claim(
                served.name,
                worker=self._worker,
                limit=CLAIMED_AT_ONCE,
                room=room,
                wait_ms=self._settings.idle_wait_ms,
            )
        except QueueUnavailable as error:
            await self._outage.pause("claim", error)
            return []

    def _hold(self, served: Served, delivery: Delivery) -> None:
        """Note the job. One that is held already was lost before the worker heard of it: that run no longer counts."""
        if earlier := self._held.by_id(delivery.job.id):
            self._held.lose(earlier.delivery, found="claim")
        self._held.hold(delivery, served.runner)

    async def _begin_run(self, served: Served, delivery: Delivery) -> None:
        """Make the job's run and give it to the runner, or refuse the job."""
        if refusal := self._too_late(delivery):
            await self._refuse(delivery, refusal)
            return
        try:
            run, events = await self._begin(served, delivery)
        except InvalidRequest as error:
            refusal = Failed(code=error.code or "invalid_request", message=str(error), param=error.param)
            await self._refuse(delivery, refusal)
            return
        except Exception as error:  # a job that breaks the tokenizer fails; the worker goes on
            log.exception("job not accepted", extra={"job_id": delivery.job.id})
            await self._refuse(delivery, Failed(code="engine_error", message=f"The request cannot be encoded: {error}"))
            return
        if (held := self._held.of(delivery)) is None:
            return
        held.start(run)
        if events:
            self._outbox.put_now(Update(run, events))
        served.runner.add(run)

    def _too_late(self, delivery: Delivery) -> Outcome | None:
        """Return the outcome of a job that may not be computed any more, else None."""
        if delivery.late:
            return Expired(deadline=delivery.late)
        if delivery.attempt > self._settings.attempts_max:
            message = f"The job's worker died {delivery.attempt - 1} times; it will not be tried again."
            return Failed(code="poison", message=message)
        return None

    async def _begin(self, served: Served, delivery: Delivery) -> tuple[JobRun, list[Event]]:
        """The run and its first events."""
        async with self._large if delivery.job.prompt_tokens_estimate > LARGE_TOKENS else nullcontext():
            run = await asyncio.to_thread(served.begin, delivery)
        return run, run.opening()

    async def _refuse(self, delivery: Delivery, outcome: Outcome) -> None:
        last = Finished(seq=len(delivery.log), outcome=outcome)
        await self._outlet.settle(Write(delivery=delivery, events=(last,)))
