"""The standing of a model on its host: the demand for it, the outcome of its loads, and the orders of operators."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from shared.catalog.workloads import Workload
from shared.domain.hosting import When
from workers.host.hosted_models import HostedSpec
from workers.host.machine import PlannedModel, Waiting
from workers.host.pauses import Pauses
from workers.host.remembered import Remembered

BACK_OFF_S, BACK_OFF_MAX_S = 5.0, 300.0
HELD_OFF_S = 30.0  # before jobs that waited already load a model again that an operator has unloaded
PEAK_S = 60.0
UNMEASURED_LOAD_S = 10.0
UNMEASURED_WAKE_S = 1.0


@dataclass(slots=True)
class Standing:
    """Times are seconds since 1970. `reason` says why its last load failed. An operator unloaded the model at
    `unloaded_s`, and since then neither a load nor jobs that came later have ended that; minus infinity otherwise. Ids
    of orders that wait are in `loading` until the model is ready, and in `unloading` until its workers are gone;
    `unload_when` is how."""

    spec: HostedSpec
    workload: Workload = field(default_factory=Workload)
    reason: str = ""
    failures: int = 0
    not_before_s: float = 0
    unloaded_s: float = -math.inf
    absent_since_s: float = 0
    since_s: float = 0
    loading: list[str] = field(default_factory=list)
    unloading: list[str] = field(default_factory=list)
    unload_when: When | None = None
    _wanted: deque[tuple[float, int]] = field(default_factory=partial(deque, maxlen=1000))

    def respecify(self, spec: HostedSpec) -> None:
        """Take what the file says of the model now. If its workers are started otherwise, failed loads do not count."""
        if spec.digest != self.spec.digest:
            self.loaded()
        self.spec = spec

    def failed(self, reason: str, now: float) -> None:
        """Note a load that did not succeed: the next one begins after a pause, which grows."""
        self.failures += 1
        self.reason = reason
        self.not_before_s = now + min(BACK_OFF_S * 2 ** (self.failures - 1), BACK_OFF_MAX_S)

    def loaded(self) -> None:
        self.reason, self.failures, self.not_before_s, self.unloaded_s = "", 0, 0.0, -math.inf

    def gone(self, now: float) -> None:
        """Note that its last worker has ended. Jobs that it handed back count as older than that."""
        if math.isfinite(self.unloaded_s):
            self.unloaded_s = now

    def asked(self, workload: Workload, now: float, *, gone: bool) -> None:
        """Note what is asked of it, and whether all of its workers have ended. Jobs that have all come since load it
        again, even if an operator has unloaded it."""
        self.workload = workload
        oldest_s = max((each.oldest_s for each in workload.waiting.values()), default=math.inf)
        if gone and oldest_s < now - self.unloaded_s:
            self.unloaded_s = -math.inf

    def wants(self, workers: int, now: float) -> None:
        """Note how many workers the demand is for. The peak of the last minute counts: a pause between two requests
        ends no worker."""
        self._wanted.append((now, workers))
        while self._wanted[0][0] < now - PEAK_S:
            self._wanted.popleft()

    @property
    def workers_wanted(self) -> int:
        return max((workers for _, workers in self._wanted), default=1)

    @property
    def keep_alive_s(self) -> float:
        asked = self.workload.keep_alive_s
        if asked is None:
            return self.spec.keep_alive_s
        return math.inf if asked < 0 else asked

    def planned(self, remembered: Remembered, pauses: Pauses, ready: int) -> PlannedModel:
        """Return the model for the plan. What other hosts' workers are enough for is not for this one."""
        spec, load = self.spec, self.workload
        elsewhere = max(load.workers - ready, 0)
        wanted = max(self.workers_wanted - elsewhere, 0)
        has_waiting = not load.paused and (ready > 0 or wanted > 0)
        return PlannedModel(
            name=spec.name,
            loading=spec.loading,
            pinned=spec.pinned,
            keep_alive_s=self.keep_alive_s,
            least=spec.least,
            most=spec.most,
            devices=spec.devices,
            host_bytes=remembered.host_bytes or spec.bytes_estimate,
            device_bytes=remembered.device_bytes or None,
            load_s=remembered.load_s or UNMEASURED_LOAD_S,
            wake_s=remembered.wake_s or UNMEASURED_WAKE_S,
            waiting={
                priority: Waiting(jobs=each.jobs, tokens=each.tokens, oldest_s=each.oldest_s)
                for priority, each in load.waiting.items()
                if has_waiting
            },
            running=load.running if ready else {},
            workers_wanted=max(wanted, 1),
            ordered=bool(self.loading),
            kept_until_s=remembered.kept_until_s,
            not_before_s=max(self.not_before_s, self.unloaded_s + HELD_OFF_S),
            idle_since_s=pauses.idle_since_s(spec.name),
            gap_s=pauses.gap_s(spec.name),
            absent_since_s=self.absent_since_s,
            expires_s=load.expires_s,
        )


def sole_names(standings: Sequence[Standing]) -> list[str]:
    """Return every name under which the models have a queue."""
    return [name for each in standings for name in each.spec.names]
