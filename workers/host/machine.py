"""The plan of a host knows this of its machine, its models and their workers. Plain frozen data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from shared.domain.job import Priority

HOST = "host"  # the main memory, among the memories that a worker takes
LIVE = (Priority.INTERACTIVE, Priority.STANDARD)  # somebody waits for these; nobody looks at a batch
NOTHING: Mapping[str, int] = MappingProxyType({})

Bytes = Mapping[str, int]  # of each memory: the main memory, or a device's


class Loading(StrEnum):
    """A host loads a model at one of these times. One that is loaded at start comes back whenever there is room for
    it."""

    AT_START = "at_start"
    ON_DEMAND = "on_demand"
    MANUAL = "manual"


class WorkerState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    ASLEEP = "asleep"
    GOING_TO_SLEEP = "going_to_sleep"
    STOPPING = "stopping"  # it gives its memory back soon


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """`memories` has the bytes that models may take, of the main memory (`HOST`) and of each device."""

    memories: Bytes

    @property
    def devices(self) -> list[str]:
        return [name for name in self.memories if name != HOST]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWorker:
    """It has been in its state since `since_s`. `takes` is what it holds while it is ready, and is counted while it
    loads or wakes (both are LOADING). `takes_asleep` is what it holds asleep; None if it cannot sleep. For `turn_s`
    after it became ready it is displaced for nobody but an operator."""

    id: str
    model: str
    state: WorkerState
    since_s: float
    takes: Bytes
    takes_asleep: Bytes | None = None
    turn_s: float = 0

    @property
    def holds(self) -> Bytes:
        return (self.takes_asleep or NOTHING) if self.state is WorkerState.ASLEEP else self.takes

    @property
    def will_hold(self) -> Bytes:
        """Return what it holds once it has stopped or gone to sleep, if it was told to."""
        if self.state is WorkerState.STOPPING:
            return NOTHING
        return (self.takes_asleep or NOTHING) if self.state is WorkerState.GOING_TO_SLEEP else self.holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The waiting jobs of one class; `oldest_s` is how long the oldest of them has waited."""

    jobs: int
    tokens: int
    oldest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """A model of the file, and what is asked of it.

    A worker takes `host_bytes` of the main memory and `device_bytes` of each of `devices` devices. None means that it
    was never loaded and nobody can tell: it gets all that no pinned model holds. `load_s` and `wake_s` are measured, or
    an estimate. `pinned` is the file's; an operator keeps a model until `kept_until_s`. `ordered` means that an
    operator wants it loaded now, until it is. It is not loaded before `not_before_s`: its last load failed, or an
    operator unloaded it.

    `idle_since_s` is when it last had work, or became ready; `gap_s` how long a pause of it is expected to be.
    `absent_since_s` is when its last ready worker went. `expires_s` is how soon the first of its waiting jobs will have
    waited too long. All other times are of one clock, in seconds.
    """

    name: str
    loading: Loading = Loading.ON_DEMAND
    pinned: bool = False
    keep_alive_s: float = 600
    least: int = 1
    most: int = 1
    devices: int = 0
    host_bytes: int | None = 0
    device_bytes: int | None = 0
    load_s: float = 10
    wake_s: float = 1
    waiting: Mapping[Priority, Waiting] = field(default_factory=dict)
    running: Mapping[Priority, int] = field(default_factory=dict)
    workers_wanted: int = 1
    ordered: bool = False
    kept_until_s: float = 0
    not_before_s: float = 0
    idle_since_s: float = 0
    gap_s: float = math.inf
    absent_since_s: float = 0
    expires_s: float = math.inf

    @property
    def has_work(self) -> bool:
        return self.has_live_work or any(self._jobs(each) for each in Priority)

    def stays(self, now: float) -> bool:
        """True if it is unloaded for nobody, nor because it is idle."""
        return self.pinned or now < self.kept_until_s

    @property
    def has_live_work(self) -> bool:
        return any(self._jobs(each) for each in LIVE)

    @property
    def runs_live(self) -> bool:
        return any(self.running.get(each, 0) for each in LIVE)

    @property
    def weight(self) -> int:
        """Return the weight of the most urgent class that waits."""
        return max((priority.weight for priority, each in self.waiting.items() if each.jobs), default=1)

    def waited_s(self, now: float, *, live: bool) -> float:
        """Return how long its oldest job has waited while it was not loaded; `live` leaves batches out."""
        oldest = [
            each.oldest_s for priority, each in self.waiting.items() if each.jobs and (not live or priority in LIVE)
        ]
        return min(max(oldest, default=0.0), now - self.absent_since_s)

    def _jobs(self, priority: Priority) -> int:
        waiting = self.waiting.get(priority)
        return self.running.get(priority, 0) + (waiting.jobs if waiting else 0)
