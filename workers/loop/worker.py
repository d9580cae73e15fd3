"""A worker is one process that serves models: its intake claims jobs, runners compute them, and its outlet writes their
events.

Stopping has three stages under one deadline: quiet (claim nothing more), drain (let running jobs end), release (hand
the rest back with their logs, for another worker to continue).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from shared.domain.errors import QueueUnavailable
from shared.observability.metrics import WorkerMetrics, watch_loop
from shared.process.tasks import end
from shared.queue.protocols import SLEEP, SLEEP_NOW, WAKE, CancelChannel, QueueConsumer
from shared.settings import Settings
from workers.loading.loaded import Loaded
from workers.loop.held_jobs import HeldJobs
from workers.loop.intake import Intake, Served
from workers.loop.outlet import Outlet
from workers.loop.redis_outage import RedisOutage
from workers.loop.rest import Rest
from workers.protocols import EngineBroken
from workers.runners.base import Runner
from workers.runners.outbox import Outbox

log = logging.getLogger(__name__)
RESTS = {  # what its host tells a worker in the place of a job's id
    SLEEP: {"sleep": True},
    SLEEP_NOW: {"sleep": True, "now": True},
    WAKE: {"sleep": False},
}
DRAIN_LOOK_S = 0.2  # longest wait for a job to end without looking at the deadline again
STOP_S = 1.0  # for the last step to end when stopping; a hung one is abandoned
FLUSH_S = 2.0  # for the last events to reach Redis when stopping


async def _keep_quiet(_: bool) -> None:
    pass


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
        tell_rest: Callable[[bool], Awaitable[None]] = _keep_quiet,
    ) -> None:
        """`announce` tells others, at the start and with each heartbeat, that this worker and its models are here, and
        `tell_rest` that it sleeps from now on, or serves again."""
        self.name = name
        self._queue = queue
        self._channel = channel
        self._announce = announce
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._loop, steps_max=settings.outbox_steps_max)
        self._outage = outage = RedisOutage(metrics)
        self._held = held = HeldJobs(name, queue, metrics, lease_ms=settings.lease_ms)
        self._outlet = Outlet(name, queue=queue, held=held, outbox=self._outbox, outage=outage, metrics=metrics)
        self._intake = Intake(
            name,
            queue=queue,
            held=held,
            outbox=self._outbox,
            outlet=self._outlet,
            outage=outage,
            settings=settings,
        )
        self._runners: list[Runner] = []
        self._served: list[Served] = []
        for model in models:
            self._serve(model)
        self._rest = Rest(self._runners, held=held, intake=self._intake, tell=tell_rest)
        self._hurry = asyncio.Event()

    def _serve(self, model: Loaded) -> None:
        """Make the model's runner, which all its names share."""
        runner = model.make_runner(self._outbox, self._metrics, self._wake_intake)
        self._runners.append(runner)
        for info in model.infos:
            self._metrics.begin(info.name)
            self._served.append(Served(info.name, model.begin, runner, model.quotas))

    def _wake_intake(self) -> None:
        """Called from a runner's thread when there are more places."""
        self._loop.call_soon_threadsafe(self._held.wake)

    async def run(self) -> None:
        """Serve until `stop` is called, then drain and release."""
        with suppress(QueueUnavailable):  # each heartbeat announces again
            await self._announce()
        for runner in self._runners:
            runner.start()
        async with asyncio.TaskGroup() as tasks:
            intakes = [tasks.create_task(self._intake.run(served, tasks)) for served in self._served]
            outlet = tasks.create_task(self._outlet.run())
            work = (self._heartbeat(), self._follow_control(), self._rest.run(), watch_loop(self._metrics.loop_lag))
            forever = [outlet, *[tasks.create_task(each) for each in work]]
            await asyncio.wait(intakes)
            await self._drain()
            await self._release(outlet)
            await end([*forever, *self._intake.starting])

    def stop(self) -> None:
        """Begin to stop. A second call ends the draining."""
        if self._intake.closed:
            self._hurry.set()
        self._intake.close()

    def stop_now(self) -> None:
        """Stop, and hand running jobs back at once."""
        self._hurry.set()
        self._intake.close()
        self._held.wake()

    @property
    def alive(self) -> bool:
        """True while every runner advances."""
        timeout = self._settings.step_timeout_s
        return all(runner.alive(step_timeout_s=timeout) for runner in self._runners)

    @property
    def sleeps(self) -> bool:
        """True if all its models can leave their devices while they serve nobody."""
        return all(runner.sleeps for runner in self._runners)

    @property
    def accepting(self) -> bool:
        """True while it claims jobs. A runner has no place while all its upstreams are away, say."""
        places = any(runner.places for runner in self._runners)
        return (
            places and not self._intake.closed and not self._rest.asleep and self.alive and self._held.leases_are_fresh
        )

    def metrics_pages(self) -> list[bytes]:
        """The engines' own metrics, in Prometheus' text format."""
        return [runner.metrics_page() for runner in self._runners]

    async def _heartbeat(self) -> None:
        """Renew every lease while the runners advance. Raises EngineBroken if one does not: the process must end, and
        its jobs move on when their leases run out."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_ms / 1000)
            if not self.alive and self._intake.closed:
                continue  # stopping: the jobs held are about to be handed over
            if not self.alive:
                self.stop()  # a task that swallowed its cancellation ends by this
                raise EngineBroken("an engine hangs or has ended; only a new process helps")
            try:
                await self._held.renew_leases()
                self._outage.over()
                await self._announce()
            except QueueUnavailable as error:
                await self._outage.pause("renew", error)

    async def _follow_control(self) -> None:
        async for job_id in self._channel.dropped(self.name):
            if job_id in RESTS:
                if self.sleeps:
                    self._rest.told(**RESTS[job_id])
            elif held := self._held.by_id(job_id):
                self._held.lose(held.delivery, found="cancelled")

    async def _drain(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._settings.drain_s
        while self._held and not self._hurry.is_set() and asyncio.get_running_loop().time() < deadline:
            await self._held.changed(longest_s=min(DRAIN_LOOK_S, self._settings.drain_s))

    async def _release(self, outlet: asyncio.Task[None]) -> None:
        await asyncio.wait([asyncio.wrap_future(runner.stop()) for runner in self._runners], timeout=STOP_S)
        self._outbox.close()
        await asyncio.wait([outlet], timeout=FLUSH_S)
        try:
            await self._queue.release([held.delivery for held in self._held], worker=self.name)
        except QueueUnavailable as error:
            log.warning("not released; the leases run out by themselves", extra={"error": str(error)})
        for held in self._held:
            held.let_go("released")
        log.info("stopped", extra={"worker": self.name, "released": len(self._held)})
