"""A host tells others of its models: it makes the record of each of its standing and its workers."""

import math
from collections.abc import Sequence

from shared.domain.hosting import HostedModel, HostedState
from workers.host.fleet import Fleet, state_of
from workers.host.machine import Loading, WorkerState
from workers.host.remembered import Remembered
from workers.host.standing import Standing
from workers.host.worker_process import WorkerProcess

STEP = 0.05  # of the progress, so that it is not written each time


def hosted_model(
    host: str, standing: Standing, fleet: Fleet, remembered: Remembered, *, idle_since_s: float, now: float
) -> HostedModel:
    spec = standing.spec
    workers = fleet.of(spec.name)
    ready = [each for each in workers if state_of(each) is WorkerState.READY]
    state = _state(standing, [state_of(each) for each in workers])
    launched_s = min((each.record.rest_s or each.record.launched_s for each in workers), default=0.0)
    phase, progress, estimated = "", 0.0, False
    if state is HostedState.LOADING:
        phase, progress, estimated = _how_far(workers, now - launched_s, remembered)
    return HostedModel(
        host=host,
        model=spec.name,
        source=spec.source,
        state=state,
        since_s=min((each.record.ready_s for each in ready), default=launched_s or standing.since_s),
        reason=standing.reason,
        phase=phase,
        progress=progress,
        estimated=estimated,
        memory_bytes=_memory_bytes(state, remembered, spec.devices),
        load_s=round(remembered.load_s, 3),
        unloads_at_s=_unloads_at_s(standing, remembered, idle_since_s) if ready else 0,
        kept_until_s=remembered.kept_until_s if remembered.kept_until_s > now else 0,
        pinned=spec.pinned,
        workers=len(ready),
        workers_least=spec.least,
        workers_most=spec.most,
    )


def _memory_bytes(state: HostedState, known: Remembered, devices: int) -> int:
    """Return what a worker takes, or keeps while it sleeps; 0 if that was not measured."""
    if state is HostedState.ASLEEP:
        return known.asleep_host_bytes + known.asleep_device_bytes * devices
    return known.host_bytes + known.device_bytes * devices


def _state(standing: Standing, states: list[WorkerState]) -> HostedState:
    if WorkerState.READY in states:
        return HostedState.READY
    if WorkerState.LOADING in states:
        return HostedState.LOADING
    if WorkerState.ASLEEP in states:
        return HostedState.ASLEEP
    if states:
        return HostedState.DRAINING
    return HostedState.FAILED if standing.reason else HostedState.CONFIGURED


def _how_far(workers: Sequence[WorkerProcess], took_s: float, remembered: Remembered) -> tuple[str, float, bool]:
    """Return the phase of a load and how far it is, as its worker tells; or else as long as the last one took, which is
    an estimate."""
    worker = next(each for each in workers if state_of(each) is WorkerState.LOADING)
    if worker.record.rest:
        return "waking", _share(took_s, remembered.wake_s), True
    phase, fraction = worker.progress
    if fraction is not None:
        return phase, _share(fraction, 1), False
    return phase or "starting", _share(took_s, remembered.load_s), True


def _share(part: float, whole: float) -> float:
    """Return a part in steps; 0 if the whole is unknown."""
    return round(min(part / whole, 0.95) // STEP * STEP, 2) if whole else 0.0


def _unloads_at_s(standing: Standing, remembered: Remembered, idle_since_s: float) -> float:
    stays = standing.spec.pinned or standing.spec.loading is Loading.AT_START or standing.workload.has_work
    if stays or math.isinf(standing.keep_alive_s):
        return 0
    return round(max(idle_since_s + standing.keep_alive_s, remembered.kept_until_s), 1)
