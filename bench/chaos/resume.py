"""Records when a client gets each token of a stream whose worker is killed or stopped, or whose Redis is killed; for a
plot in docs/: `python -m bench.chaos.resume`."""

import asyncio
import json
import random
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click

from bench.chaos.site import Process, Site, WorkerGroup
from bench.chaos.story import Story, Teller, Way

ROOT = Path(__file__).parents[2]
OUT = ROOT / "bench" / "results" / "resume.json"
TOKENS = 1500
AFTER_S = 1.5
SETTINGS = {"scripted_step_ms": 10, "scripted_tokens": 10**6, "drain_s": 0.5}


async def record(site: Site, strike: Callable[[Site, Process], Awaitable[None]]) -> dict[str, object]:
    """Record the time of each token of one stream, in seconds after the fault."""
    story = Story(name=str(time.time()), way=Way.PLAIN, content="tell me", tokens=TOKENS)
    telling = asyncio.create_task(Teller(site.model, site.bases, random.Random(1)).tell(story))
    await asyncio.sleep(AFTER_S)
    owner: Any = site.client.hget(f"rq:job:{story.job_id}", "worker_name")
    pid = site.client.hget(f"rq:worker:{owner}", "pid")
    worker = next(each for each in site.live_workers() if str(each.pid) == pid)
    began = time.monotonic()
    await strike(site, worker)
    await telling
    return {"complete": story.complete, "seconds": [round(at - began, 4) for at in story.times()]}


async def kill(site: Site, worker: Process) -> None:
    worker.send(signal.SIGKILL)


async def stop(site: Site, worker: Process) -> None:
    worker.send(signal.SIGTERM)


async def restart_redis(site: Site, worker: Process) -> None:
    site.redis.kill()
    await asyncio.sleep(1)
    await asyncio.to_thread(site.redis.start)


async def all_records() -> dict[str, dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder) / "site", ROOT, groups=[WorkerGroup(model="scripted", count=2)], settings=SETTINGS)
        try:
            await site.start(apis=1)
            found = {}
            for name, strike in {
                "worker killed": kill,
                "worker told to stop": stop,
                "Redis killed, back after 1 s": restart_redis,
            }.items():
                found[name] = await record(site, strike)
                await site.staffed()
            return found
        finally:
            await site.stop()


@click.command()
def main() -> None:
    OUT.write_text(json.dumps(asyncio.run(all_records())))


if __name__ == "__main__":
    main()
