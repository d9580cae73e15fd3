"""A machine with models in simulated time: jobs come, a policy loads and unloads, and answers that are interrupted go
on where they were. Nothing is random here; what happens is in the scenario."""

import heapq
import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Protocol

from bench.host_plan.jobs import End, Job, Scenario, Served
from shared.domain.hosting import When
from shared.domain.job import Priority
from workers.host.actions import Action, Load, Plan, Refuse, Sleep, Unload, Wake
from workers.host.machine import (
    LIVE,
    Bytes,
    Loading,
    PlannedModel,
    PlannedWorker,
    Waiting,
    WorkerState,
)
from workers.host.pauses import Pauses

STOP_S = 0.5  # between the order to stop and the end of the process
FAILED_S, FAILED_S_MAX = 5.0, 300.0  # the pause after a load that failed; it doubles each time
TOKENS_A_SECOND = 50
IDLE_LOOK_S = 30.0  # while nothing waits; a host looks more often, and sees the same
EVENTS_MAX = 30_000


@dataclass(slots=True, eq=False)
class Worker:
    id: str
    model: str
    state: WorkerState
    since_s: float
    takes: Bytes
    turn_s: float = 0.0
    claims: bool = False
    running: dict[Job, float] = field(default_factory=dict)  # with the time of its end

    @property
    def is_ready(self) -> bool:
        return self.state is WorkerState.READY


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """A time in which a model had work of this kind and no worker that was ready."""

    model: str
    live: bool
    since_s: float
    until_s: float

    @property
    def length_s(self) -> float:
        return self.until_s - self.since_s


@dataclass(slots=True)
class Report:
    loads: int = 0
    wakes: int = 0
    failures: int = 0
    absences: list[Absence] = field(default_factory=list)
    loaded: list[tuple[float, str]] = field(default_factory=list)
    ended_s: float = 0.0
    jumped: list[str] = field(default_factory=list)  # batches that went before somebody who waits

    def longest_s(self, *, live: bool) -> float:
        return max((each.length_s for each in self.absences if each.live is live), default=0.0)


class Policy(Protocol):
    def decide(self, world: "World") -> Plan:
        """Return what to do now."""

    def may_claim(self, world: "World", job: Job) -> bool:
        """True if a ready worker of the job's model may take it now."""


class World:
    def __init__(self, scenario: Scenario, policy: Policy) -> None:
        self.now = 0.0
        self.machine = scenario.machine
        self.served = {each.name: each for each in scenario.models}
        self.waiting: dict[str, list[Job]] = {name: [] for name in self.served}
        self.workers: list[Worker] = []
        self.report = Report()
        self.pauses = Pauses()
        self.not_before: dict[str, float] = defaultdict(float)
        self.absent_since: dict[str, float] = defaultdict(float)
        self._policy = policy
        self._horizon_s = scenario.horizon_s
        self._fails = {each.name: each.fails for each in scenario.models}
        self._failed_in_a_row: dict[str, int] = defaultdict(int)
        self._served_of: dict[tuple[str, Priority], float] = defaultdict(float)
        self._away: dict[tuple[str, bool], float] = {}
        self._ids = itertools.count()
        self._events: list[tuple[float, int, str, object]] = []
        self._look_at: float = math.inf
        for job in scenario.jobs:
            self._at(job.arrives_s, "arrives", job)

    def run(self) -> Report:
        """Run until nothing happens any more. Raises AssertionError if that does not end."""
        for _ in range(EVENTS_MAX):
            if not self._step():
                return self.report
        raise AssertionError(f"the simulation does not end; it is {self.now:g} s")

    # What policies ask

    def planned(self) -> list[PlannedModel]:
        return [self._planned(each) for each in self.served.values()]

    def planned_workers(self) -> list[PlannedWorker]:
        return [
            PlannedWorker(
                id=each.id,
                model=each.model,
                state=each.state,
                since_s=each.since_s,
                takes=each.takes,
                takes_asleep=self.served[each.model].takes_asleep,
                turn_s=each.turn_s,
            )
            for each in self.workers
        ]

    def running_of(self, model: str) -> list[Job]:
        return [job for each in self.workers if each.model == model for job in each.running]

    def has_live_work(self, model: str) -> bool:
        return any(job.priority in LIVE for job in (*self.waiting[model], *self.running_of(model)))

    def ready(self, model: str) -> list[Worker]:
        return [each for each in self.workers if each.model == model and each.is_ready and each.claims]

    # What happens

    def _step(self) -> bool:
        """Let what is due happen, and the policy decide. Returns False when nothing is left."""
        due = min(self._events[0][0] if self._events else math.inf, self._look_at)
        if due is math.inf or due > self._horizon_s:
            return False
        self.now = due
        while self._events and self._events[0][0] <= self.now:
            _, _, verb, what = heapq.heappop(self._events)
            getattr(self, f"_{verb}")(what)
        self._expire()
        self._claim()
        self._observe()
        plan = self._policy.decide(self)
        for action in plan.actions:
            self._act(action)
        self._claim()
        self._observe()
        self._look_at = self.now + (max(plan.again_s, 0.01) if any(self.waiting.values()) else IDLE_LOOK_S)
        if not self._events and not any(self.waiting.values()) and not any(each.running for each in self.workers):
            moving = any(each.state not in (WorkerState.READY, WorkerState.ASLEEP) for each in self.workers)
            return self._look_at < math.inf and moving
        return True

    def _at(self, when: float, verb: str, what: object) -> None:
        heapq.heappush(self._events, (when, next(self._ids), verb, what))

    def _arrives(self, job: Job) -> None:
        self.waiting[job.model].append(job)

    def _ends(self, what: tuple[Worker, Job, float]) -> None:
        worker, job, when = what
        if worker.running.get(job) == when:
            del worker.running[job]
            self._end(job, End.DONE)
            if worker.state is WorkerState.STOPPING and not worker.running:
                self._at(self.now + STOP_S, "gone", worker)

    def _end(self, job: Job, end: End) -> None:
        job.ends.append(end)
        job.ended_s = self.report.ended_s = self.now
        if job.then:
            job.then.arrives_s = self.now + job.pause_s
            self._at(job.then.arrives_s, "arrives", job.then)

    def _loaded(self, worker: Worker) -> None:
        if self._fails[worker.model]:
            self._fail(worker)
        else:
            self._failed_in_a_row[worker.model] = 0
            self._wakes(worker)

    def _wakes(self, worker: Worker) -> None:
        worker.state, worker.since_s, worker.claims = WorkerState.READY, self.now, True

    def _fail(self, worker: Worker) -> None:
        """A load fails: so do the jobs that waited for it, and the next one is not tried at once."""
        name = worker.model
        self._fails[name] -= 1
        self.report.failures += 1
        self.workers.remove(worker)
        self.not_before[name] = self.now + min(FAILED_S * 2 ** self._failed_in_a_row[name], FAILED_S_MAX)
        self._failed_in_a_row[name] += 1
        self._fail_waiting(name)

    def _fail_waiting(self, name: str) -> None:
        failed, self.waiting[name] = self.waiting[name], []
        for job in failed:
            self._end(job, End.FAILED)

    def _gone(self, worker: Worker) -> None:
        self.workers.remove(worker)

    def _sleeps(self, worker: Worker) -> None:
        worker.state, worker.since_s = WorkerState.ASLEEP, self.now

    def _expire(self) -> None:
        for name, jobs in self.waiting.items():
            late = [job for job in jobs if job.began_s is None and job.expires_s <= self.now]
            for job in late:
                jobs.remove(job)
                self._end(job, End.EXPIRED)
            for job in jobs:
                if self.now < job.expires_s < math.inf and job.began_s is None:
                    self._look_at = min(self._look_at, job.expires_s)
            self.waiting[name] = jobs

    def _claim(self) -> None:
        """Let the ready workers take jobs: the class that was served least by its weight first, in it the oldest."""
        for worker in self.workers:
            places = self.served[worker.model].places
            while worker.is_ready and worker.claims and len(worker.running) < places:
                job = self._next(worker.model)
                if job is None or not self._policy.may_claim(self, job):
                    break
                self.waiting[worker.model].remove(job)
                self._served_of[job.model, job.priority] += job.left_s / job.priority.weight
                job.began_s = self.now if job.began_s is None else job.began_s
                worker.running[job] = self.now + job.left_s
                self._at(worker.running[job], "ends", (worker, job, worker.running[job]))

    def _next(self, model: str) -> Job | None:
        waiting = self.waiting[model]
        return min(
            waiting,
            key=lambda job: (
                job.began_s is None,
                self._served_of[model, job.priority],
                job.priority.rank,
                job.arrives_s,
            ),
            default=None,
        )

    def _observe(self) -> None:
        """Note for how long models with work are not there."""
        for name in self.served:
            jobs = [*self.waiting[name], *self.running_of(name)]
            there = bool(self.ready(name)) or (bool(jobs) and not self.waiting[name])
            self.pauses.observe(name, has_work=bool(jobs), loaded=bool(self.ready(name)), now=self.now)
            live = any(job.priority in LIVE for job in jobs)
            for kind, asked in ((True, live), (False, bool(jobs) and not live)):
                since = self._away.get((name, kind))
                if asked and not there and since is None:
                    self._away[name, kind] = self.now
                elif since is not None and (there or not asked):
                    del self._away[name, kind]
                    self.report.absences.append(Absence(model=name, live=kind, since_s=since, until_s=self.now))

    # What is done

    def _act(self, action: Action) -> None:
        match action:
            case Load():
                self._check_order(action.model)
                self._load(action)
            case Wake():
                worker = self._worker(action.worker)
                worker.state, worker.turn_s = WorkerState.LOADING, action.turn_s
                self.report.wakes += 1
                self._at(self.now + self.served[worker.model].wakes_s, "wakes", worker)
            case Unload():
                self._stop(self._worker(action.worker), action.when)
            case Sleep():
                worker = self._worker(action.worker)
                self._release(worker)
                worker.state, worker.claims = WorkerState.GOING_TO_SLEEP, False
                self._at(self.now + STOP_S, "sleeps", worker)
            case Refuse():
                self.not_before[action.model] = self.now + FAILED_S_MAX
                self._fail_waiting(action.model)

    def _worker(self, id_: str) -> Worker:
        return next(each for each in self.workers if each.id == id_)

    def _load(self, load: Load) -> None:
        held: dict[str, int] = defaultdict(int)
        for takes in (load.takes, *(self._holds(each) for each in self.workers)):
            for name, amount in takes.items():
                held[name] += amount
        over = {name for name, amount in held.items() if amount > self.machine.memories.get(name, 0)}
        assert not over, f"{load.model} is loaded into memory that is not free: {over}"
        id_ = f"{load.model}-{next(self._ids):06d}"
        worker = Worker(id_, load.model, WorkerState.LOADING, self.now, load.takes, turn_s=load.turn_s)
        self.workers.append(worker)
        self.report.loads += 1
        self.report.loaded.append((self.now, load.model))
        self._at(self.now + self.served[load.model].loads_s, "loaded", worker)

    def _holds(self, worker: Worker) -> Bytes:
        asleep = worker.state is WorkerState.ASLEEP
        return (self.served[worker.model].takes_asleep or {}) if asleep else worker.takes

    def _check_order(self, model: str) -> None:
        """Note a batch that is loaded for while somebody waits for a model that does not come."""
        moving = any(each.state in (WorkerState.STOPPING, WorkerState.GOING_TO_SLEEP) for each in self.workers)
        if moving or self.has_live_work(model) or not self.waiting[model]:
            return
        coming = {each.model for each in self.workers}
        left = [
            name
            for name in self.served
            if name not in coming
            and self.has_live_work(name)
            and self.not_before[name] <= self.now
            and self.served[name].planned.loading is not Loading.MANUAL
        ]
        oldest = self.now - min(job.arrives_s for job in self.waiting[model])
        if left:
            self.report.jumped.append(f"{model}, whose batch has waited {oldest:g} s, before {left}")

    def _stop(self, worker: Worker, when: When) -> None:
        if when is When.IDLE and worker.running:
            return
        if when is When.NOW:
            self._release(worker)
        self._leave(worker)
        worker.takes = self._holds(worker)
        worker.state, worker.claims, worker.since_s = WorkerState.STOPPING, False, self.now
        if not worker.running:
            self._at(self.now + STOP_S, "gone", worker)

    def _release(self, worker: Worker) -> None:
        """Hand the running jobs back, with what they have."""
        self._leave(worker)
        for job, end in worker.running.items():
            job.left_s = max(end - self.now, 0.0)
            self.waiting[job.model].append(job)
        worker.running.clear()

    def _leave(self, worker: Worker) -> None:
        if worker.is_ready and len(self.ready(worker.model)) == 1:
            self.absent_since[worker.model] = self.now

    def _planned(self, served: Served) -> PlannedModel:
        name = served.name
        jobs, running = self.waiting[name], self.running_of(name)
        waiting = {}
        for priority in Priority if jobs else ():
            mine = [job for job in jobs if job.priority is priority]
            if mine:
                tokens = int(sum(job.left_s for job in mine) * TOKENS_A_SECOND)
                oldest_s = self.now - min(job.arrives_s for job in mine)
                waiting[priority] = Waiting(jobs=len(mine), tokens=tokens, oldest_s=oldest_s)
        return replace(
            served.planned,
            waiting=waiting,
            running={priority: n for priority in Priority if (n := sum(j.priority is priority for j in running))},
            workers_wanted=max(math.ceil((len(jobs) + len(running)) / served.places), 1),
            not_before_s=self.not_before[name],
            idle_since_s=self.pauses.idle_since_s(name),
            gap_s=self.pauses.gap_s(name),
            absent_since_s=self.absent_since[name],
            expires_s=min((job.expires_s - self.now for job in jobs if job.began_s is None), default=math.inf),
        )
