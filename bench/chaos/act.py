"""One fault being played: what it strikes, and what is noted of it."""

import asyncio
import math
import random
import time
from dataclasses import dataclass, field

from bench.chaos.judge import Verdict, pause_across
from bench.chaos.load import Load
from bench.chaos.site import Process, Site
from bench.chaos.story import Way


@dataclass(slots=True)
class Act:
    """`rounds`: how often a fault strikes. `marks`: (kind, from, to, job ids or None for all). `strikes`: when, and the
    jobs that were hit."""

    site: Site
    load: Load
    rng: random.Random
    rounds: int
    long: bool
    marks: list[tuple[str, float, float, set[str] | None]] = field(default_factory=list)
    strikes: list[tuple[float, set[str]]] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    wrongs: list[str] = field(default_factory=list)

    def strike(self, only: set[str] | None = None) -> float:
        """Now: every job that runs is hit, or those only."""
        jobs = only if only is not None else {s.job_id for s in self.load.open() if s.job_id}
        self.strikes.append((time.monotonic(), jobs))
        return self.strikes[-1][0]

    def mark(self, kind: str, begin: float, seconds: float, only: set[str] | None = None) -> None:
        self.marks.append((kind, begin, begin + seconds, only))

    async def pause(self, least: float, most: float) -> None:
        await asyncio.sleep(self.rng.uniform(least, most))

    def victim(self) -> Process:
        return self.rng.choice(self.site.live_workers())

    async def jobs_of(self, worker: Process) -> set[str]:
        return await asyncio.to_thread(self._jobs_of, worker)

    def _jobs_of(self, worker: Process) -> set[str]:
        client = self.site.client
        names = [key for key in client.scan_iter("rq:worker:*") if client.hget(key, "pid") == str(worker.pid)]
        owners = {name.removeprefix("rq:worker:") for name in names}
        open_ids = [story.job_id for story in self.load.open() if story.job_id]
        return {job_id for job_id in open_ids if client.hget(f"rq:job:{job_id}", "worker_name") in owners}

    async def staffed(self) -> None:
        """Wait until every worker serves, those that take the place of dead ones too."""
        client, site = self.site.client, self.site

        def complete() -> bool:
            live, known = site.live_workers(), [client.hget(key, "pid") for key in client.scan_iter("rq:worker:*")]
            return len(live) == site.workers_max and {str(worker.pid) for worker in live} <= set(known)

        await site.until(complete, "every worker serves", seconds=60)

    async def muster(self) -> None:
        """Whether every worker takes work: as many jobs as they have room for, all at once."""
        crowd = [self.load.add(self.load.story(Way.PLAIN, tokens=100)) for _ in range(16 * self.site.workers_max)]
        wanted, busy = {str(worker.pid) for worker in self.site.live_workers()}, set[str]()
        for _ in range(40):
            busy |= await asyncio.to_thread(self._busy)
            if wanted <= busy:
                break
            await asyncio.sleep(0.1)
        else:
            self.wrongs.append(f"{len(wanted - busy)} of {len(wanted)} workers take no work any more")
        await asyncio.wait(crowd)

    def _busy(self) -> set[str]:
        client = self.site.client
        found = [client.hmget(key, ["state", "pid"]) for key in client.scan_iter("rq:worker:*")]
        return {str(pid) for state, pid in found if state == "busy"}

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
        verdict.blame("I4", self.wrongs)
