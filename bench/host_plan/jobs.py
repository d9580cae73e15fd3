"""A simulation is of these: a machine, its models, and the jobs that come."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from shared.domain.job import Priority
from workers.host.machine import Bytes, Machine, PlannedModel


class End(StrEnum):
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"


@dataclass(slots=True, eq=False)
class Job:
    """It needs `work_s` on a worker, in one part or in several. `then` comes `pause_s` after its end."""

    model: str
    arrives_s: float
    work_s: float
    priority: Priority = Priority.STANDARD
    expires_s: float = math.inf
    then: "Job | None" = None
    pause_s: float = 0.0
    left_s: float = field(init=False)
    began_s: float | None = None
    ended_s: float | None = None
    ends: list[End] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left_s = self.work_s

    @property
    def chain(self) -> Iterator["Job"]:
        job: Job | None = self
        while job:
            yield job
            job = job.then


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model as it is: `loads_s` and `wakes_s` are what a load and waking take, whatever the plan believes. Its first
    `fails` loads fail. A worker runs `places` jobs at a time, and can sleep if `takes_asleep` is given."""

    planned: PlannedModel
    loads_s: float
    wakes_s: float = 1.0
    places: int = 16
    fails: int = 0
    takes_asleep: Bytes | None = None

    @property
    def name(self) -> str:
        return self.planned.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    machine: Machine
    models: Sequence[Served]
    jobs: Sequence[Job]
    horizon_s: float = 1e6

    @property
    def all_jobs(self) -> list[Job]:
        return [job for first in self.jobs for job in first.chain]
