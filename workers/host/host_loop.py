"""The host's loop: it reads what is asked of its models, plans, starts and ends workers, and tells others what it has.

It ends by a cancellation, and leaves its workers as they are: `stop_all` ends them.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from shared.catalog.workloads import Workload, combined
from shared.domain.errors import QueueUnavailable
from shared.domain.hosting import Host, HostedModel, When
from workers.host.actions import Action, Load, Refuse, Sleep, Unload, Wake
from workers.host.file_watch import FileWatch
from workers.host.fleet import Fleet, Rest
from workers.host.hosted_models import hosted_specs
from workers.host.machine import HOST, Machine, WorkerState
from workers.host.memories import machine_of
from workers.host.orders import Orders
from workers.host.pauses import Pauses
from workers.host.plan import plan
from workers.host.redis_side import RedisSide
from workers.host.remembered import Memory, Remembered
from workers.host.reports import hosted_model
from workers.host.resting import look_at_resting
from workers.host.standing import Standing, sole_names
from workers.host.turns import Rules
from workers.host.worker_process import Exit, WorkerProcess

log = logging.getLogger(__name__)
HEARTBEAT_S = 2.0
MOVING_S = 0.1  # between two looks while a worker loads or ends
APART_S = 0.05  # between two looks at least, however many jobs come
MEASURE_S = 10.0
ANNOUNCE_S = 60.0
TRIES = 2  # of a load that dies without a reason, before its jobs fail
EARLY_S = 10.0  # a worker that dies sooner after it was ready is not started again at once
REFUSED = 2  # exit status of a worker that logged why it cannot run
STOP_LOOK_S = 0.05
STOPS = "the host stops"
LAST_S = 4.0  # for a worker to hand its jobs back when the host stops


class MachineLost(Exception):
    """Another host, which it names, holds the machine."""


class HostLoop:
    def __init__(
        self,
        host: Host,
        *,
        watch: FileWatch,
        fleet: Fleet,
        memory: Memory,
        redis_side: RedisSide,
        rules: Rules,
        engine: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._watch = watch
        self._fleet = fleet
        self._memory = memory
        self._redis = redis_side
        self._rules = rules
        self._engine = engine
        self._clock = clock
        self._wake = asyncio.Event()
        self._reread = False
        self._standings: dict[str, Standing] = {}
        self._pauses = Pauses()
        self._orders = Orders(fleet, memory, clock)
        self._written: dict[str, HostedModel] = {}
        self._to_fail: deque[tuple[Standing, str]] = deque(maxlen=1000)
        self._machine = Machine(memories={})
        self._last: dict[str, float] = {}
        self._away = False
        self._take_file()

    def wake(self) -> None:
        self._wake.set()

    def reread(self) -> None:
        """Read the file at once, even if it looks unchanged."""
        self._reread = True
        self.wake()

    async def run(self) -> None:
        """Look, plan and act for ever, at each wake and from time to time."""
        while True:
            self._wake.clear()
            again_s = await self._look()
            await asyncio.sleep(APART_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(again_s - APART_S, 0)):
                    await self._wake.wait()

    async def stop_all(self, patience_s: float) -> None:
        """End all workers after their running jobs, or at once when `patience_s` is over, and kill what is left soon
        after. They are gone then."""
        began = self._clock()
        for worker in self._fleet:
            self._fleet.stop(worker, When.RUNNING, STOPS, began)
        while list(self._fleet):
            now = self._clock()
            if self._is_due("hold", HEARTBEAT_S, now):
                with suppress(QueueUnavailable):
                    await self._redis.hold(self._host.machine)
            for worker in self._fleet:
                if now - began >= patience_s + LAST_S:
                    worker.kill()
                elif now - began >= patience_s and not worker.hurried_s:
                    self._fleet.stop(worker, When.NOW, STOPS, now)
            self._fleet.ended(now)
            await asyncio.sleep(STOP_LOOK_S)

    async def _look(self) -> float:
        """Look at everything once, and act. Return how soon time alone makes another look worth while."""
        now = self._clock()
        if self._watch.changed(look=self._reread):
            self._take_file()
        self._reread = False
        for worker, how in self._fleet.ended(now):
            await self._ended(worker, how, now)
        try:
            again_s = await self._with_redis(now)
            self._away = False
        except QueueUnavailable as error:
            if not self._away:
                log.warning("redis is away; workers run on", extra={"error": str(error)})
            self._away, again_s = True, HEARTBEAT_S / 2
            self._last.pop("announce", None)
        return MOVING_S if self._fleet.moving else min(again_s, HEARTBEAT_S)

    async def _with_redis(self, now: float) -> float:
        if self._is_due("announce", ANNOUNCE_S, now):
            await self._redis.announce(self._watch.file)
        for order in await self._redis.orders():
            self._orders.take(order, self._standings)
        await self._look_at_loading(now)
        await look_at_resting(self._fleet, self._redis, now)
        await self._read_work(now)
        self._orders.look(self._standings)
        again_s = await self._plan(now)
        await self._fail_jobs()
        await self._tell(now)
        if self._is_due("measure", MEASURE_S, now):
            for worker in self._fleet.planned():
                if worker.state is WorkerState.READY:
                    self._fleet.measure(self._worker(worker.id))
        return again_s

    def _take_file(self) -> None:
        """Serve what the file says now."""
        file = self._watch.file
        memory, devices = file.host.memory, file.host.devices
        pids = [pid for worker in self._fleet for pid in worker.pids()]
        self._machine = machine_of(memory, devices, held_bytes=self._fleet.held_bytes(), pids=pids)
        specs = hosted_specs(file, len(self._machine.devices), self._engine)
        for name in self._standings.keys() - specs.keys():
            self._orders.drop(self._standings.pop(name))
            self._pauses.forget(name)
        for name, spec in specs.items():
            if name in self._standings:
                self._standings[name].respecify(spec)
            else:
                self._standings[name] = Standing(spec, since_s=self._clock())
        for worker in self._fleet:
            known = specs.get(worker.record.model)
            if known and known.digest != worker.record.spec and not worker.record.stopping:
                self._fleet.stop(worker, When.RUNNING, "its table of the file has changed", self._clock())
        self._last.pop("announce", None)

    async def _ended(self, worker: WorkerProcess, how: Exit, now: float) -> None:
        """A process is gone: as it was told, or because its model cannot be loaded, or by an accident."""
        record = worker.record
        with suppress(QueueUnavailable):  # what it left in Redis ends by itself
            await self._redis.forget_worker(worker)
        standing = self._standings.get(record.model)
        if record.rest in (Rest.FALLING_ASLEEP, Rest.FALLING_ASLEEP_NOW) and not record.stopping:
            self._memory.note(record.model, record.spec, sleeps_badly=True)
        if not self._fleet.of(record.model):
            await self._reset_keep_alive(record.model)
            if standing:
                standing.gone(now)
        if standing is None or record.stopping:
            log.info("worker ended", extra={"model": record.model})
            return
        loading = not record.ready_s
        log.warning("worker died", extra={"model": record.model, "loading": loading, "how": str(how)})
        if loading or now - record.ready_s < EARLY_S:
            standing.failed(str(how), now)
        if loading and (how.code == REFUSED or standing.failures >= TRIES):
            self._to_fail.append((standing, str(how)))
        elif not loading:
            standing.reason = ""

    async def _reset_keep_alive(self, model: str) -> None:
        """Forget the keep-alive that a request asked for: it ends with the loaded model."""
        with suppress(QueueUnavailable):
            await self._redis.forget_keep_alive(model)

    async def _look_at_loading(self, now: float) -> None:
        for name, standing in self._standings.items():
            for worker in self._fleet.of(name, WorkerState.LOADING):
                if not worker.record.rest and await self._redis.serves(worker):
                    self._fleet.ready(worker, now, sleeps=await self._redis.can_sleep(worker))
                    standing.loaded()

    async def _read_work(self, now: float) -> None:
        loads = await self._redis.workloads(sole_names(list(self._standings.values())))
        for name, standing in self._standings.items():
            workload = combined([loads.get(each, Workload()) for each in standing.spec.names])
            standing.asked(workload, now, gone=not self._fleet.of(name))
            ready = bool(self._fleet.of(name, WorkerState.READY))
            self._pauses.observe(name, has_work=standing.workload.has_work, loaded=ready, now=now)
            if standing.spec.most > 1 and standing.workload.has_work:
                standing.wants(await self._redis.workers_wanted(standing.spec.names), now)
            elif standing.workload.has_work:
                standing.wants(1, now)

    async def _plan(self, now: float) -> float:
        models = [
            each.planned(self._remembered(each), self._pauses, len(self._fleet.of(name, WorkerState.READY)))
            for name, each in self._standings.items()
        ]
        planned = plan(self._machine, models, self._fleet.planned(), now, self._rules)
        for action in planned.actions:
            await self._act(action, now)
        return planned.again_s

    async def _act(self, action: Action, now: float) -> None:
        match action:
            case Load():
                self._load(action, now)
            case Unload():
                await self._unload(action, now)
            case Refuse(model=name, why=why):
                standing = self._standings[name]
                standing.failed(why, now)
                self._to_fail.append((standing, why))
            case Sleep(worker=worker_id, when=when, why=why):
                rest = Rest.FALLING_ASLEEP_NOW if when is When.NOW else Rest.FALLING_ASLEEP
                self._fleet.rest(self._worker(worker_id), rest, now, why=why)
            case Wake(worker=worker_id, turn_s=turn_s, why=why):
                self._fleet.rest(self._worker(worker_id), Rest.WAKING, now, why=why, turn_s=turn_s)

    def _load(self, load: Load, now: float) -> None:
        standing = self._standings[load.model]
        try:
            self._fleet.start(load, standing.spec, now)
        except OSError as error:
            standing.failed(f"its worker cannot be started: {error}", now)

    async def _unload(self, unload: Unload, now: float) -> None:
        """End the worker. One that is to end once it is idle, and is not, is left for a later plan: it would take no
        jobs any more, and hold its memory for as long as its last one runs."""
        worker = self._worker(unload.worker)
        if unload.when is When.IDLE and await self._redis.is_busy(worker):
            return
        if standing := self._standings.get(worker.record.model):
            standing.absent_since_s = now
        self._fleet.stop(worker, unload.when, unload.why, now)

    def _worker(self, worker_id: str) -> WorkerProcess:
        return next(each for each in self._fleet if each.record.id == worker_id)

    async def _fail_jobs(self) -> None:
        """Fail the jobs of models that could not be loaded, unless a worker of another host serves them."""
        while self._to_fail:
            standing, reason = self._to_fail[0]
            if not standing.workload.workers:
                await self._redis.fail_jobs(standing.spec.names, reason)
            self._to_fail.popleft()

    async def _tell(self, now: float) -> None:
        """Write what has changed; everything, if Redis has forgotten it."""
        for order_id in list(self._orders.outcomes):
            await self._redis.report(order_id, self._orders.outcomes[order_id])
            del self._orders.outcomes[order_id]
        records = {name: self._record(name, each, now) for name, each in self._standings.items()}
        changed = [each for name, each in records.items() if each != self._written.get(name)]
        gone = self._written.keys() - records.keys()
        if not (changed or gone or self._is_due("heartbeat", HEARTBEAT_S * 0.9, now)):
            return
        if not await self._redis.hold(self._host.machine):
            raise MachineLost(await self._redis.holder(self._host.machine))
        if not await self._redis.write(self._described(), changed, gone):
            await self._redis.write(self._described(), list(records.values()), ())
            self._last.pop("announce", None)
        self._written = records

    def _described(self) -> Host:
        file, total = self._watch.file, self._machine.memories.get(HOST, 0)
        taken = sum(each.holds.get(HOST, 0) for each in self._fleet.planned())
        return replace(
            self._host,
            memory_bytes=total,
            free_bytes=max(total - taken, 0),
            devices=tuple(self._machine.devices),
            file=str(file.path),
            file_digest=file.digest,
            file_error=self._watch.error,
            file_change=self._watch.change,
        )

    def _record(self, name: str, standing: Standing, now: float) -> HostedModel:
        idle_since_s = self._pauses.idle_since_s(name)
        known = self._remembered(standing)
        return hosted_model(self._host.id, standing, self._fleet, known, idle_since_s=idle_since_s, now=now)

    def _remembered(self, standing: Standing) -> Remembered:
        return self._memory.of(standing.spec.name, standing.spec.digest)

    def _is_due(self, what: str, each_s: float, now: float) -> bool:
        """True at the first call, and then once in `each_s`."""
        if now - self._last.get(what, -each_s) < each_s:
            return False
        self._last[what] = now
        return True
