"""Compares autoscaling by `workers_wanted` with fixed fleets, in simulated time: `python -m bench.autoscale`.

The signal is the API's own (`shared.catalog.demand`). The simulation adds KEDA and the HorizontalPodAutoscaler with the
chart's values: a look every five seconds, up at once, down by one pod a minute to the most that was wanted in five
minutes, to zero after a cooldown. A new worker serves after its cold start; a worker that stops hands its jobs over,
and they wait again with the tokens that are left. Costs are worker hours, cold starts included."""

import json
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from shared.catalog.demand import Demand
from shared.domain.job import Priority

OUT = Path(__file__).parent / "results" / "autoscale.json"
STEP_S = 0.5
POLL_S, STABLE_S, COOLDOWN_S, DOWN_EVERY_S = 5, 300, 300, 60
WORKER_TOKENS_S, WORKER_JOBS = 1500.0, 32
HOUR = 3600.0


@dataclass(slots=True)
class Job:
    arrived: float
    tokens: float
    began: float = -1.0


@dataclass(slots=True)
class Worker:
    ready_at: float
    jobs: list[Job] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of one run: waits in seconds from arrival to a place in a batch; `series` holds (minutes, workers,
    queued jobs) for the plot."""

    trace: str
    fleet: str
    jobs: int
    wait_p50_s: float
    wait_p99_s: float
    late: float
    worker_hours: float
    most_workers: int
    series: list[tuple[float, int, int]]


Rate = Callable[[float], float]
TRACES: dict[str, Rate] = {
    # Jobs a second, over six hours. A quiet site with three bursts; a day of work; one that is idle for hours.
    "bursts": lambda t: 0.5 + 12.0 * any(begin < t < begin + 600 for begin in (3600, 9000, 15000)),
    "day": lambda t: 6.0 * max(0.0, math.sin(math.pi * t / (6 * HOUR))) ** 2 + 0.2,
    "idle, then work": lambda t: 8.0 * (2.5 * HOUR < t < 3.5 * HOUR),
}
LENGTH_S = 6 * HOUR
DRAWN = "wanted, from zero"


def arrivals(rate: Rate, seed: int) -> Iterator[Job]:
    """Draw the arrivals of a Poisson process, with the sizes of chats: most are short, and the tail is long."""
    rng, now = random.Random(seed), 0.0
    while now < LENGTH_S:
        now += rng.expovariate(15.0)
        if rng.random() < rate(now) / 15.0:
            yield Job(now, min(8000.0, rng.lognormvariate(6.2, 0.8)))


class Fleet:
    """A fleet of `fixed` workers, or without that of as many as are wanted, `most` at most."""

    def __init__(self, *, fixed: int = 0, most: int = 16, least: int = 0, cold_s: float = 60.0, target_s: float = 10.0):
        self.workers = [Worker(0.0) for _ in range(fixed or least)]
        self.waiting: deque[Job] = deque()
        self.waits: list[float] = []
        self.series: list[tuple[float, int, int]] = []
        self.used_s = 0.0
        self._fixed, self._most, self._least = fixed, most, least
        self._cold_s, self._target_s = cold_s, target_s
        self._wanted: deque[tuple[float, int]] = deque()
        self._busy_at = self._shrunk_at = 0.0

    def run(self, jobs: Iterator[Job]) -> None:
        """Simulate until every job has been served."""
        now, polled, coming = 0.0, -float(POLL_S), deque(jobs)
        while coming or self.waiting or any(worker.jobs for worker in self.workers):
            while coming and coming[0].arrived <= now:
                self.waiting.append(coming.popleft())
            self._serve(now)
            if not self._fixed and now - polled >= POLL_S:
                self._scale(now)
                polled = now
            if now % 30 == 0:
                self.series.append((now / 60, len(self.workers), len(self.waiting)))
            self.used_s += len(self.workers) * STEP_S
            now += STEP_S

    def _serve(self, now: float) -> None:
        up = [worker for worker in self.workers if worker.ready_at <= now]
        for worker in sorted(up, key=lambda each: len(each.jobs)):
            while self.waiting and len(worker.jobs) < WORKER_JOBS:
                job = self.waiting.popleft()
                if job.began < 0:
                    job.began = now
                    self.waits.append(now - job.arrived)
                worker.jobs.append(job)
            share = WORKER_TOKENS_S * STEP_S / max(len(worker.jobs), WORKER_JOBS / 4)
            for job in worker.jobs:
                job.tokens -= share
            worker.jobs = [job for job in worker.jobs if job.tokens > 0]

    def _scale(self, now: float) -> None:
        up = sum(worker.ready_at <= now for worker in self.workers)
        running = sum(len(worker.jobs) for worker in self.workers)
        demand = Demand(
            model="m",
            waiting_jobs={Priority.INTERACTIVE: 0, Priority.STANDARD: len(self.waiting), Priority.BATCH: 0},
            waiting_tokens=int(sum(job.tokens for job in self.waiting)),
            running_jobs=running,
            oldest_s=now - self.waiting[0].arrived if self.waiting else 0.0,
            workers=up,
            worker_tokens_s=WORKER_TOKENS_S,
            worker_jobs=WORKER_JOBS,
        )
        wanted = min(demand.workers_wanted(self._target_s), self._most)
        if wanted:
            self._busy_at = now
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - STABLE_S:
            self._wanted.popleft()
        self._grow(wanted, now)
        self._shrink(max(most for _, most in self._wanted), now)

    def _grow(self, wanted: int, now: float) -> None:
        for _ in range(wanted - len(self.workers)):
            self.workers.append(Worker(now + self._cold_s))

    def _shrink(self, wanted: int, now: float) -> None:
        if now - self._busy_at > COOLDOWN_S:
            del self.workers[self._least :]
        elif len(self.workers) > max(wanted, self._least, 1) and now - self._shrunk_at >= DOWN_EVERY_S:
            gone = min(self.workers, key=lambda worker: (worker.ready_at <= now, len(worker.jobs)))
            self.workers.remove(gone)
            self.waiting.extendleft(gone.jobs)
            self._shrunk_at = now


def outcome(trace: str, name: str, fleet: Fleet, seed: int) -> Outcome:
    fleet.run(arrivals(TRACES[trace], seed))
    cuts = statistics.quantiles(fleet.waits, n=100, method="inclusive")
    return Outcome(
        trace=trace,
        fleet=name,
        jobs=len(fleet.waits),
        wait_p50_s=round(cuts[49], 2),
        wait_p99_s=round(cuts[98], 2),
        late=round(sum(wait > 10 for wait in fleet.waits) / len(fleet.waits), 4),
        worker_hours=round(fleet.used_s / HOUR, 1),
        most_workers=max(workers for _, workers, _ in fleet.series),
        series=fleet.series,
    )


def fleets() -> dict[str, Fleet]:
    return {
        DRAWN: Fleet(),
        "wanted, from one": Fleet(least=1),
        "wanted, cold start 5 minutes": Fleet(cold_s=300.0),
        "fixed, 2": Fleet(fixed=2),
        "fixed, 4": Fleet(fixed=4),
        "fixed, 6": Fleet(fixed=6),
    }


@click.command()
@click.option("--seed", default=7, show_default=True)
def main(seed: int) -> None:
    """Print the table and write the figures for `python -m bench.plots`."""
    print("| trace | fleet | wait p50, s | wait p99, s | over 10 s | worker hours | most workers |")
    print("|---|---|---|---|---|---|---|")
    kept = []
    for trace in TRACES:
        for name, fleet in fleets().items():
            made = outcome(trace, name, fleet, seed)
            kept.append(asdict(made) | ({} if name == DRAWN else {"series": []}))
            waits = f"{made.wait_p50_s} | {made.wait_p99_s} | {made.late:.1%}"
            print(f"| {trace} | {name} | {waits} | {made.worker_hours} | {made.most_workers} |")
    OUT.write_text(json.dumps(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
