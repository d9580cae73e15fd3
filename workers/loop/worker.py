"""A worker is one process that serves models: it claims jobs, engines compute them, and it writes their events.

Stopping has three stages under one deadline: quiet (claim nothing more), drain (let running jobs end), release (hand
the rest back with their logs, for another worker to continue).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial

from shared.domain.errors import InvalidRequest, QueueUnavailable
from shared.domain.events import Deadline, Delta, Expired, Failed, Finished, Outcome
from shared.domain.job import ModelInfo
from shared.observability.metrics import WorkerMetrics, watch_loop
from shared.process.tasks import end
from shared.queue.protocols import LOST, SETTLED, CancelChannel, Delivery, QueueConsumer, Room, Write
from shared.settings import Settings
from workers.loading.loaded import Loaded
from workers.loop.held_job import HeldJob
from workers.loop.room import room_beside
from workers.protocols import EngineBroken
from workers.runners.base import Runner
from workers.runners.outbox import Outbox, Update
from workers.runs.run import JobRun

log = logging.getLogger(__name__)
RETRY_S = 0.2
ROOM_S = 1.0  # longest wait for room without looking again
CLAIMED_AT_ONCE = 8  # so that each idle worker gets some of many jobs that arrive together
LARGE_TOKENS = 8192  # a prompt that is estimated to have more is large
STOP_S = 1.0  # for the last step to end when stopping; a hung one is abandoned
FLUSH_S = 2.0  # for the last events to reach Redis when stopping


@dataclass(slots=True)
class Served:
    """One model of this worker. An adapter shares the runner of its base."""

    info: ModelInfo
    begin: Callable[[Delivery], JobRun]
    runner: Runner


class Worker:
    def __init__(
        self,
        name: str,
        models: Sequence[Loaded],
        *,
        queue: QueueConsumer,
        channel: CancelChannel,
        announce: Callable[[], Awaitable[None]],
        settings: Settings,
        metrics: WorkerMetrics,
    ) -> None:
        """`announce` tells others, at the start and with each heartbeat, that this worker and its models are here."""
        self.name = name
        self._queue = queue
        self._channel = channel
        self._announce = announce
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._loop, steps_max=settings.outbox_steps_max)
        self._served = {served.info.name: served for model in models for served in self._serve(model)}
        self._held: dict[str, HeldJob] = {}  # every job of this worker, from its claim on
        self._accepting: set[asyncio.Task[None]] = set()  # bounded by the jobs held
        self._large = asyncio.Semaphore(1)  # large prompts are encoded one at a time, beside small ones
        self._room = asyncio.Event()
        self._quiet = asyncio.Event()
        self._hurry = asyncio.Event()
        self._renewed_at = asyncio.get_running_loop().time()
        self._redis_lost = False

    async def run(self) -> None:
        """Serve until `stop` is called, then drain and release."""
        with suppress(QueueUnavailable):  # each heartbeat announces again
            await self._announce()
        for runner in self._runners:
            runner.start()
        async with asyncio.TaskGroup() as tasks:
            intakes = [tasks.create_task(self._intake(served, tasks)) for served in self._served.values()]
            outlet = tasks.create_task(self._outlet())
            work = (self._heartbeat(), self._follow_drops(), watch_loop(self._metrics.loop_lag))
            forever = [outlet, *[tasks.create_task(each) for each in work]]
            await asyncio.wait(intakes)
            await self._drain()
            await self._release(outlet)
            await end([*forever, *self._accepting])

    def stop(self) -> None:
        """Begin to stop. A second call ends the draining."""
        if self._quiet.is_set():
            self._hurry.set()
        self._quiet.set()
        self._room.set()

    @property
    def _runners(self) -> set[Runner]:
        return {served.runner for served in self._served.values()}

    @property
    def alive(self) -> bool:
        """True while every runner advances."""
        timeout = self._settings.step_timeout_s
        return all(runner.alive(step_timeout_s=timeout) for runner in self._runners)

    @property
    def accepting(self) -> bool:
        return not self._quiet.is_set() and self.alive and self._lease_is_fresh()

    def metrics_pages(self) -> list[bytes]:
        """The engines' own metrics, in Prometheus' text format."""
        return [runner.metrics_page() for runner in self._runners]

    async def _intake(self, served: Served, tasks: asyncio.TaskGroup) -> None:
        while not self._quiet.is_set():
            room = self._room_of(served)
            if room.sequences <= 0:
                await self._until_room(ROOM_S)
                continue
            claimed = await self._claim(served, room)
            # A job that is claimed again was lost before the worker heard of it: its run here no longer counts.
            self._drop([known.delivery for d in claimed if (known := self._held.get(d.job.id))], found="claim")
            # All are held before any is encoded: encoding one may take longer than the leases of the others.
            for delivery in claimed:
                self._hold(delivery)
                accepting = tasks.create_task(self._accept(served, delivery))
                self._accepting.add(accepting)
                accepting.add_done_callback(self._accepting.discard)

    async def _until_room(self, longest_s: float) -> None:
        """Wait until there may be room, but at most `longest_s`."""
        self._room.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):  # wait_for would lose a cancellation that comes together with room
                await self._room.wait()

    def _serve(self, model: Loaded) -> list[Served]:
        """Claim jobs for one model; all its names share the runner."""
        runner = model.make_runner(self._outbox, self._metrics, self._wake_intakes)
        for info in model.infos:
            self._metrics.begin(info.name)
        return [Served(info, model.begin, runner) for info in model.infos]

    def _wake_intakes(self) -> None:
        """Wake the intakes; called from a runner's thread."""
        self._loop.call_soon_threadsafe(self._room.set)

    def _room_of(self, served: Served) -> Room:
        """The room for further claims; none while jobs that are here already wait for a place, and no more than there
        are places just now: another worker may have room for the rest."""
        if served.runner.waiting:
            return Room(0)
        jobs = [held.delivery.job for held in self._held.values()]
        mine = [job for job in jobs if self._served[job.model].runner is served.runner]
        return room_beside(mine, served.runner.places)

    async def _claim(self, served: Served, room: Room) -> list[Delivery]:
        if not self._lease_is_fresh():
            # A claim could return this worker's own jobs, whose leases it is late to renew.
            await asyncio.sleep(RETRY_S)
            return []
        try:
            return await self._queue.claim(
                served.info.name,
                worker=self.name,
                limit=CLAIMED_AT_ONCE,
                room=room,
                wait_ms=self._settings.idle_wait_ms,
            )
        except QueueUnavailable as error:
            await self._redis_is_away("claim", error)
            return []

    def _hold(self, delivery: Delivery) -> None:
        job = delivery.job
        held = self._held[job.id] = HeldJob(delivery, worker=self.name)
        if held.taken_over:
            self._metrics.redelivered.labels(job.model).inc()
            about = {"job_id": job.id, "model": job.model, "attempt": delivery.attempt, "events": len(delivery.log)}
            log.info("job taken over", extra=about)
        else:
            self._metrics.queued.labels(job.model, job.priority).observe(delivery.waited_ms / 1000)

    async def _accept(self, served: Served, delivery: Delivery) -> None:
        if delivery.late:
            await self._refuse(delivery, Expired(deadline=delivery.late))
            return
        if delivery.attempt > self._settings.attempts_max:
            message = f"The job's worker died {delivery.attempt - 1} times; it will not be tried again."
            await self._refuse(delivery, Failed(code="poison", message=message))
            return
        try:
            async with self._large if delivery.job.prompt_tokens_estimate > LARGE_TOKENS else nullcontext():
                run = await asyncio.to_thread(served.begin, delivery)
            events = run.opening()
        except InvalidRequest as error:
            refusal = Failed(code=error.code or "invalid_request", message=str(error), param=error.param)
            await self._refuse(delivery, refusal)
            return
        except Exception as error:  # a job that breaks the tokenizer fails; the worker goes on
            log.exception("job not accepted", extra={"job_id": delivery.job.id})
            await self._refuse(delivery, Failed(code="engine_error", message=f"The request cannot be encoded: {error}"))
            return
        if (held := self._holding(delivery)) is None:
            return
        held.start(run, partial(served.runner.end, run, Expired(deadline=Deadline.RUN)))
        if events:
            self._outbox.put_now(Update(run, events))
        served.runner.add(run)

    async def _refuse(self, delivery: Delivery, outcome: Outcome) -> None:
        await self._settle(Write(delivery=delivery, events=(Finished(seq=len(delivery.log), outcome=outcome),)))

    async def _outlet(self) -> None:
        while updates := await self._outbox.take():
            for update in updates:
                if held := self._holding(update.run.delivery):
                    held.wrote(update.events)
            running = [u for u in updates if not isinstance(u.events[-1], Finished)]
            if running:
                await self._append([_write(update) for update in running])
            ended = [update for update in updates if isinstance(update.events[-1], Finished)]
            await asyncio.gather(*[self._settle(_write(update)) for update in ended])

    async def _append(self, writes: Sequence[Write]) -> None:
        while writes:
            try:
                refused = await self._queue.append(writes)
            except QueueUnavailable as error:
                await self._redis_is_away("append", error)
                continue
            again = []
            for write in writes:
                length = refused.get(write.delivery.job.id)
                if length == LOST:
                    self._lose(write)
                elif length is not None and (whole := self._from(length, write)):
                    again.append(whole)
                elif length is not None:
                    await self._give_up(write.delivery, length)
            writes = again

    def _lose(self, write: Write) -> None:
        wasted = sum(len(event.token_ids) for event in write.events if isinstance(event, Delta))
        self._metrics.wasted.labels(write.delivery.job.model).inc(wasted)
        self._metrics.fenced.labels(write.delivery.job.model).inc()
        self._drop([write.delivery], found="write")

    def _from(self, length: int, write: Write) -> Write | None:
        """The write after the events before it that Redis lost; None if they are not known here."""
        log.warning("redis has lost the end of a log", extra={"job_id": write.delivery.job.id, "length": length})
        held = self._holding(write.delivery)
        before = held.log[length : write.events[0].seq] if held else []
        events = (*before, *write.events)
        return replace(write, events=events) if events[0].seq == length else None

    async def _give_up(self, delivery: Delivery, length: int) -> None:
        """End a job whose log has a gap that no worker can fill."""
        if (held := self._holding(delivery)) and held.run:
            self._served[delivery.job.model].runner.drop(held.run)
        await self._settle(_gap(delivery, length))

    async def _settle(self, write: Write) -> None:
        while True:
            try:
                answer = await self._queue.settle(write, worker=self.name)
            except QueueUnavailable as error:
                await self._redis_is_away("settle", error)
                continue
            if answer in (SETTLED, LOST):
                break
            write = self._from(answer, write) or _gap(write.delivery, answer)
        if answer == LOST:
            self._lose(write)
        else:
            self._ended(write)

    def _ended(self, write: Write) -> None:
        job, last = write.delivery.job, write.events[-1]
        assert isinstance(last, Finished)
        outcome = type(last.outcome).__name__.lower()
        self._metrics.jobs.labels(job.model, outcome).inc()
        if isinstance(last.outcome, Failed):
            self._metrics.failed.labels(job.model, last.outcome.code).inc()
        if held := self._holding(write.delivery):
            log.info("job ended", extra=held.account(outcome, last))
            held.let_go(outcome, last)
        self._forget(write.delivery)

    async def _heartbeat(self) -> None:
        """Renew every lease while the engines step. Raises EngineBroken if one does not: the process must end, and its
        jobs move on when their leases run out."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_ms / 1000)
            if not self.alive and self._quiet.is_set():
                continue  # stopping: the jobs held are about to be handed over
            if not self.alive:
                self.stop()  # a task that swallowed its cancellation ends by this
                raise EngineBroken("an engine hangs or has ended; only a new process helps")
            try:
                held = [each.delivery for each in self._held.values()]
                lost = set(await self._queue.renew(held, worker=self.name))
                self._renewed_at = asyncio.get_running_loop().time()
                self._redis_lost = False
                self._drop([delivery for delivery in held if delivery.job.id in lost], found="renewal")
                await self._announce()
            except QueueUnavailable as error:
                await self._redis_is_away("renew", error)

    def _lease_is_fresh(self) -> bool:
        return asyncio.get_running_loop().time() - self._renewed_at < self._settings.lease_ms / 1000

    async def _follow_drops(self) -> None:
        async for job_id in self._channel.dropped(self.name):
            if held := self._held.get(job_id):
                self._drop([held.delivery], found="cancelled")

    def _holding(self, delivery: Delivery) -> HeldJob | None:
        """The held job; None if this worker has it no longer, or by another claim."""
        held = self._held.get(delivery.job.id)
        return held if held and held.delivery is delivery else None

    def _drop(self, deliveries: Sequence[Delivery], *, found: str) -> None:
        """Give up jobs that this worker lost, before the next step. `found` says how the loss was noticed."""
        for held in filter(None, map(self._holding, deliveries)):
            delivery = held.delivery
            if held.run:
                self._served[delivery.job.model].runner.drop(held.run)
            self._metrics.lost.labels(delivery.job.model, found).inc()
            held.let_go("cancelled" if found == "cancelled" else "lost")
            self._forget(delivery)

    def _forget(self, delivery: Delivery) -> None:
        if self._holding(delivery):
            del self._held[delivery.job.id]
        self._room.set()

    async def _drain(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._settings.drain_s
        while self._held and not self._hurry.is_set() and asyncio.get_running_loop().time() < deadline:
            await self._until_room(min(0.2, self._settings.drain_s))

    async def _release(self, outlet: asyncio.Task[None]) -> None:
        await asyncio.wait([asyncio.wrap_future(runner.stop()) for runner in self._runners], timeout=STOP_S)
        self._outbox.close()
        await asyncio.wait([outlet], timeout=FLUSH_S)
        try:
            await self._queue.release([held.delivery for held in self._held.values()], worker=self.name)
        except QueueUnavailable as error:
            log.warning("not released; the leases run out by themselves", extra={"error": str(error)})
        for held in self._held.values():
            held.let_go("released")
        log.info("stopped", extra={"worker": self.name, "released": len(self._held)})

    async def _redis_is_away(self, verb: str, error: QueueUnavailable) -> None:
        self._metrics.redis_errors.inc()
        if not self._redis_lost:  # logged once, until a lease is renewed
            log.warning("redis does not serve", extra={"verb": verb, "error": str(error)})
        self._redis_lost = True
        await asyncio.sleep(RETRY_S)


def _write(update: Update) -> Write:
    return Write(delivery=update.run.delivery, events=tuple(update.events))


def _gap(delivery: Delivery, length: int) -> Write:
    failed = Failed(code="internal_error", message="A part of the job's log is lost, and no worker has it.")
    return Write(delivery=delivery, events=(Finished(seq=length, outcome=failed),))
