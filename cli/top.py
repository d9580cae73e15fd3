"""`penstock top`: models, workers and running jobs, as Redis has them now."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.jobs import Desk, at_desk
from shared import keys
from shared.demand import Demand, DemandReader
from shared.job import Priority
from shared.ledger import JobRecord
from shared.lifecycle import State
from shared.redis_client import translated

JOBS_SHOWN = 15
OLD_S = 30.0  # a wait that deserves a colour


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    name: str
    models: str
    state: str
    host: str
    pid: int
    done: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    at: float
    demands: list[Demand]
    paused: set[str]
    workers: list[WorkerRecord]
    running: list[JobRecord]


def top(redis_url: str | None, *, seconds: float, once: bool, target_wait_s: float) -> None:
    """Until Ctrl-C, or one picture."""

    async def watch(desk: Desk) -> None:
        now = await picture(desk)
        if once:
            Console().print(drawn(now, None, target_wait_s))
            return
        with Live(drawn(now, None, target_wait_s), auto_refresh=False, screen=True) as live:
            while True:
                await asyncio.sleep(seconds)
                before, now = now, await picture(desk)
                live.update(drawn(now, before, target_wait_s), refresh=True)

    with suppress(KeyboardInterrupt):
        at_desk(redis_url, watch)


async def picture(desk: Desk) -> Picture:
    demands = await DemandReader(desk.client).all()
    running: list[JobRecord] = []
    for demand in demands:
        if demand.running_jobs:
            running += await desk.ledger.records(demand.model, State.STARTED, limit=JOBS_SHOWN)
    return Picture(
        at=time.monotonic(),
        demands=demands,
        paused={info.name for info in await desk.directory.models() if info.paused},
        workers=await workers(desk.client),
        running=sorted(running, key=lambda job: job.started_at)[:JOBS_SHOWN],
    )


async def workers(client: Redis) -> list[WorkerRecord]:
    with translated():
        names: Any = await client.smembers(keys.WORKERS)
        async with client.pipeline(transaction=False) as pipe:
            for name in sorted(names):
                pipe.hgetall(name)
            found = await pipe.execute()
    return [_worker(name.decode(), fields) for name, fields in zip(sorted(names), found, strict=True) if fields]


def _worker(key: str, fields: dict[bytes, bytes]) -> WorkerRecord:
    text = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
    return WorkerRecord(
        name=key.removeprefix(keys.worker("")),
        models=text.get("queues", "").replace(",", ", "),
        state=text.get("state", ""),
        host=text.get("hostname", ""),
        pid=int(text.get("pid", 0)),
        done=int(text.get("successful_job_count", 0)),
        failed=int(text.get("failed_job_count", 0)),
    )


def drawn(now: Picture, before: Picture | None, target_wait_s: float) -> Group:
    return Group(_models(now, target_wait_s), Text(), _workers(now, before), Text(), _running(now))


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        numbers = column.endswith("#")
        table.add_column(column.removesuffix("#"), justify="right" if numbers else "left", no_wrap=True)
    return table


def _models(now: Picture, target_wait_s: float) -> Table:
    classes = [f"{priority.value}#" for priority in Priority]
    table = _table("MODEL", "workers#", "wanted#", "running#", *classes, "tokens waiting#", "oldest#", "")
    for demand in now.demands:
        old = f"{demand.oldest_s:.1f} s" if demand.waiting else "-"
        table.add_row(
            demand.model,
            Text(str(demand.workers), style="red" if demand.waiting and not demand.workers else ""),
            str(demand.workers_wanted(target_wait_s)),
            str(demand.running_jobs),
            *[str(demand.waiting_jobs[priority]) for priority in Priority],
            str(demand.waiting_tokens),
            Text(old, style="yellow" if demand.oldest_s > OLD_S else ""),
            "paused" if demand.model in now.paused else "",
        )
    return table


def _workers(now: Picture, before: Picture | None) -> Table:
    table = _table("WORKER", "host", "pid#", "state", "models", "done#", "failed#", "jobs/s#")
    earlier = {worker.name: worker.done for worker in before.workers} if before else {}
    for worker in now.workers:
        pace = "-"
        if before and worker.name in earlier:
            pace = f"{(worker.done - earlier[worker.name]) / (now.at - before.at):.1f}"
        about = (worker.name, worker.host, str(worker.pid), worker.state, worker.models)
        table.add_row(*about, str(worker.done), str(worker.failed), pace)
    return table


def _running(now: Picture) -> Table:
    table = _table("JOB", "model", "class", "tenant", "attempt#", "since", "worker")
    for job in now.running:
        since = job.started_at[11:19]
        table.add_row(job.id, job.model, job.priority.value, job.tenant, str(job.attempts), since, job.worker)
    return table
