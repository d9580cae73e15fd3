"""One fault being played, with the jobs that it hits and the pauses that it causes."""

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.chaos.judge import Verdict, pause_across
from bench.chaos.load import Load
from bench.chaos.site import Process, Site, WorkerGroup
from bench.chaos.story import Way

MUSTER_TOKENS = 40  # of each job: at 20 ms a step, every worker has time to claim one


@dataclass(slots=True)
class Act:
    """One fault under one load. `rounds` is how often the fault strikes. `marks` holds (kind, from, to, job ids or None
    for all); `strikes` holds each strike's time and the jobs that it hit."""

    site: Site
    load: Load
    rng: random.Random
    rounds: int
    long: bool
    marks: list[tuple[str, float, float, set[str] | None]] = field(default_factory=list)
    strikes: list[tuple[float, set[str]]] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    wrongs: list[tuple[str, str]] = field(default_factory=list)  # (invariant, violation)

    def strike(self, only: set[str] | None = None) -> float:
        """Record a strike now: it hits every open job, or `only` these. Return its time."""
        jobs = only if only is not None else {s.job_id for s in self.load.open() if s.job_id}
        self.strikes.append((time.monotonic(), jobs))
        return self.strikes[-1][0]

    def mark(self, kind: str, begin: float, seconds: float, only: set[str] | None = None) -> None:
        self.marks.append((kind, begin, begin + seconds, only))

    async def pause(self, least: float, most: float) -> None:
        await asyncio.sleep(self.rng.uniform(least, most))

    def victim(self, group: WorkerGroup | None = None) -> Process:
        return self.rng.choice(self.site.live_workers(group))

    async def jobs_of(self, worker: Process) -> set[str]:
        return await asyncio.to_thread(self._jobs_of, worker)

    def _jobs_of(self, worker: Process) -> set[str]:
        client = self.site.client
        names = [key for key in client.scan_iter("rq:worker:*") if client.hget(key, "pid") == str(worker.pid)]
        owners = {name.removeprefix("rq:worker:") for name in names}
        open_ids = [story.job_id for story in self.load.open() if story.job_id]
        return {job_id for job_id in open_ids if client.hget(f"rq:job:{job_id}", "worker_name") in owners}

    def blame(self, invariant: str, text: str) -> None:
        self.wrongs.append((invariant, text))

    def ratio(self, name: str, value: float) -> None:
        """Record a ratio; the worst one counts."""
        self.ratios[name] = max(value, self.ratios.get(name, 0.0))

    async def staffed(self) -> None:
        """Wait until every worker serves, replacements of dead ones included."""
        await self.site.staffed()

    async def muster(self) -> None:
        """Check that every worker takes jobs: on a quiet site, jobs for all places of each model arrive at once, and
        each worker must have claimed one before they are done, about a second later."""
        await self.staffed()
        names = await asyncio.to_thread(self.site.worker_names)
        stories = [
            self.load.story(Way.PLAIN, model=model, tokens=MUSTER_TOKENS)
            for model in self.site.models
            for _ in range(self.site.places(model))
        ]
        await asyncio.wait([self.load.add(story) for story in stories])
        claimed = await asyncio.to_thread(self._owners, [story.job_id for story in stories])
        for name in names - claimed:
            self.blame("I14", f"worker {name} claims no jobs any more, although {len(stories)} were queued")

    def _owners(self, job_ids: Sequence[str]) -> set[str]:
        """Read the names of the workers that have claimed one of the jobs."""
        return {str(self.site.client.hget(f"rq:job:{job_id}", "worker_name")) for job_id in job_ids if job_id}

    def _struck_after(self, begin: float, job_id: str) -> float:
        return min((at for at, jobs in self.strikes if at > begin and job_id in jobs), default=math.inf)

    def measure(self, verdict: Verdict) -> None:
        for kind, begin, end, only in self.marks:
            for story in self.load.stories:
                again = self._struck_after(begin, story.job_id)
                pause = pause_across(story, begin, end, again) if only is None or story.job_id in only else None
                if pause:
                    name = f"{kind}, its successor too" if pause.end > again else kind
                    verdict.pauses.setdefault(name, []).append(pause.seconds)
        verdict.hit = len(set[str]().union(*[jobs for _, jobs in self.strikes]))
        verdict.ratios |= self.ratios
        for invariant, text in self.wrongs:
            verdict.blame(invariant, [text])
