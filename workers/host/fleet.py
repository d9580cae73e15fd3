"""The worker processes of a host: started, looked at, told to end, adopted."""

import logging
import signal
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from shared.domain.hosting import When
from workers.host.actions import Load
from workers.host.hosted_models import HostedSpec
from workers.host.machine import HOST, PlannedWorker, WorkerState
from workers.host.memories import device_bytes
from workers.host.remembered import Memory, Remembered
from workers.host.worker_process import DRAIN_S, Exit, WorkerProcess, WorkerRecord, adopted, free_id
from workers.process.succession import after

log = logging.getLogger(__name__)
ASLEEP_BYTES = 2**30  # of a device, for a worker that sleeps there: what it has beside weights and cache
PATIENCE_S = 15.0  # with a worker that was told to end at once
HURRY = signal.SIGUSR1  # ends a worker at once, its running jobs handed back; one that loads simply dies of it


class Rest(StrEnum):
    """A worker is awake, asleep, or on its way to one of these."""

    AWAKE = ""
    FALLING_ASLEEP = "falling_asleep"
    FALLING_ASLEEP_NOW = "falling_asleep_now"
    ASLEEP = "asleep"
    WAKING = "waking"


RESTING = {
    Rest.FALLING_ASLEEP: WorkerState.GOING_TO_SLEEP,
    Rest.FALLING_ASLEEP_NOW: WorkerState.GOING_TO_SLEEP,
    Rest.ASLEEP: WorkerState.ASLEEP,
    Rest.WAKING: WorkerState.LOADING,
}
SAID = {
    Rest.AWAKE: "awake",
    Rest.FALLING_ASLEEP: "goes to sleep",
    Rest.FALLING_ASLEEP_NOW: "goes to sleep",
    Rest.ASLEEP: "asleep",
    Rest.WAKING: "wakes",
}


class Fleet:
    """`environment` is what all workers are given beside their model's own."""

    def __init__(self, folder: Path, memory: Memory, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._memory = memory
        self._environment = environment
        self._workers: dict[str, WorkerProcess] = {each.record.id: each for each in adopted(folder)}

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(self._workers.values())

    def of(self, model: str, *states: WorkerState) -> list[WorkerProcess]:
        """Return the model's workers that are in one of these states; in any, if none is given."""
        found = [each for each in self if each.record.model == model]
        return [each for each in found if not states or state_of(each) in states]

    @property
    def moving(self) -> bool:
        """True while a worker loads, ends or goes to sleep, so that time matters."""
        return any(state_of(each) not in (WorkerState.READY, WorkerState.ASLEEP) for each in self)

    def start(self, load: Load, spec: HostedSpec, now: float) -> None:
        """Start a worker. Raises OSError if the system starts no process."""
        record = WorkerRecord(
            id=free_id(spec.name, self._workers.keys()),
            model=spec.name,
            names=spec.names,
            spec=spec.digest,
            devices=load.devices,
            takes=load.takes,
            turn_s=load.turn_s,
            launched_s=now,
        )
        worker = WorkerProcess(record, self._folder)
        devices = {"CUDA_VISIBLE_DEVICES": ",".join(load.devices)} if load.devices else {}
        drain = {"PENSTOCK_DRAIN_S": str(DRAIN_S)}
        ending = after((each.record.pid, each.record.created_s) for each in self if each.left)
        worker.launch(spec.arguments, {**self._environment, **drain, **spec.environment, **devices, **ending})
        self._workers[record.id] = worker
        log.info("worker started", extra={"model": spec.name, "pid": worker.record.pid, "why": load.why})

    def stop(self, worker: WorkerProcess, when: When, why: str, now: float) -> None:
        """Tell a worker to end. A later call may hurry one that drains."""
        if not worker.record.stopping:
            worker.note(stopping=True)
            log.info("worker ends", extra={"model": worker.record.model, "when": when.value, "why": why})
        hurries = when is When.NOW or not worker.record.ready_s
        worker.signal(HURRY if hurries else signal.SIGTERM)
        worker.hurried_s = worker.hurried_s or (now if hurries else 0)

    def ready(self, worker: WorkerProcess, now: float, *, sleeps: bool = False) -> None:
        """Note that a worker serves, how long it took, and what it takes. With `sleeps` it can leave its devices."""
        worker.note(ready_s=now, sleeps=sleeps)
        record = worker.record
        self._memory.note(record.model, record.spec, load_s=now - record.launched_s)
        self.measure(worker)
        log.info("model loaded", extra={"model": record.model, "load_s": round(now - record.launched_s, 2)})

    def rest(self, worker: WorkerProcess, rest: Rest, now: float, *, why: str = "", turn_s: float = 0) -> None:
        """Note that a worker goes to sleep or wakes, or has done so, and learn what it keeps and how long it takes."""
        record = worker.record
        about = {"model": record.model, **({"why": why} if why else {})}
        match rest:
            case Rest.ASLEEP:
                kept = {
                    "asleep_host_bytes": worker.resident_bytes(),
                    "asleep_device_bytes": device_bytes(worker.pids()),
                }
                self._memory.note(record.model, record.spec, **kept)
            case Rest.AWAKE:
                self._memory.note(record.model, record.spec, wake_s=now - record.rest_s)
                worker.note(ready_s=now)
            case Rest.WAKING:
                worker.note(turn_s=turn_s)
        worker.note(rest=str(rest), rest_s=now)
        log.info(f"worker {SAID[rest]}", extra=about)

    def measure(self, worker: WorkerProcess) -> None:
        """Learn what a worker takes."""
        record = worker.record
        known = self._memory.of(record.model, record.spec)
        on_device = device_bytes(worker.pids()) if record.devices else 0
        most = {
            # The peak of one that has slept holds what was in its device, too.
            "host_bytes": known.host_bytes if record.rest_s else max(worker.host_bytes(), known.host_bytes),
            "device_bytes": max(on_device, known.device_bytes),
        }
        self._memory.note(record.model, record.spec, **most)
        worker.bound_log()

    def ended(self, now: float) -> list[tuple[WorkerProcess, Exit]]:
        """Return the workers whose process has ended since the last call, and forget them. One that does not end is
        killed."""
        for each in self:
            if each.left:
                each.hurried_s = each.hurried_s or now
            if each.hurried_s and now - each.hurried_s > PATIENCE_S:
                log.warning("worker killed, since it does not end", extra={"model": each.record.model})
                each.kill()
        gone = [(each, how) for each in self if (how := each.exit())]
        for worker, _ in gone:
            worker.forget()
            del self._workers[worker.record.id]
        return gone

    def planned(self) -> list[PlannedWorker]:
        """Return the workers that hold memory. Whoever is started waits itself for that of one that has left."""
        return [self._planned(each) for each in self if not each.left]

    def held_bytes(self) -> int:
        """Return what all workers have of the main memory."""
        return sum(each.host_bytes() for each in self)

    def _planned(self, worker: WorkerProcess) -> PlannedWorker:
        record = worker.record
        known = self._memory.of(record.model, record.spec)
        takes = _takes(record, known)
        return PlannedWorker(
            id=record.id,
            model=record.model,
            state=state_of(worker),
            since_s=max(record.ready_s, record.rest_s) or record.launched_s,
            takes=takes,
            takes_asleep=_takes_asleep(record, takes, known),
            turn_s=record.turn_s,
        )


def state_of(worker: WorkerProcess) -> WorkerState:
    record = worker.record
    if record.stopping:
        return WorkerState.STOPPING
    if record.rest:
        return RESTING[Rest(record.rest)]
    return WorkerState.READY if record.ready_s else WorkerState.LOADING


def is_own(worker_keys: Collection[bytes], worker: WorkerProcess, hostname: str) -> list[bytes]:
    """Return those keys of workers in Redis that are this process's."""
    prefix = f"rq:worker:{hostname}-{worker.record.pid}-".encode()
    return [each for each in worker_keys if each.startswith(prefix)]


def _takes_asleep(record: WorkerRecord, takes: Mapping[str, int], known: Remembered) -> dict[str, int] | None:
    """Return what a worker keeps asleep; None if it cannot sleep. Before that was measured, its weights may be as much
    as all that it has of its devices."""
    if not (record.sleeps and record.devices) or known.sleeps_badly:
        return None
    on_devices = sum(takes.get(each, 0) for each in record.devices)
    host = known.asleep_host_bytes or takes.get(HOST, 0) + on_devices
    left = known.asleep_device_bytes or min(ASLEEP_BYTES, *(takes.get(each, 0) for each in record.devices))
    return {HOST: host, **dict.fromkeys(record.devices, left)}


def _takes(record: WorkerRecord, known: Remembered) -> dict[str, int]:
    """Return what was measured, or else what was planned."""
    takes = dict(record.takes)
    if known.host_bytes:
        takes[HOST] = known.host_bytes
    if known.device_bytes:
        takes |= dict.fromkeys(record.devices, known.device_bytes)
    return takes
