"""`penstock top`: shows the models, the workers and the started jobs in Redis, again and again."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from rich.console import Console, Group, JustifyMethod
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.backend import Backend, with_backend
from cli.model_orders import state_of
from cli.terminal import one_line, unechoed
from shared.catalog.demand import Demand, DemandReader
from shared.catalog.hosting import best_of
from shared.catalog.job_records import JobRecord
from shared.domain.hosting import HostedModel, HostedState
from shared.domain.job import Priority
from shared.domain.lifecycle import State
from shared.redis import keys
from shared.redis.client import translated

JOBS_SHOWN = 15
WIDE = 140  # width in columns from which every field is shown
UNBOUNDED = 10_000
OLD_S = 30.0  # a longer wait is coloured


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
class Snapshot:
    at: float
    demands: list[Demand]
    paused: set[str]
    hosted: dict[str, HostedModel]
    workers: list[WorkerRecord]
    started: list[JobRecord]


def top(redis_url: str | None, *, seconds: float, once: bool, target_wait_s: float) -> None:
    """Redraw the tables until q or Ctrl-C. A file or a pipe gets them once, wide enough that no id is cut."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=UNBOUNDED)

    async def watch(backend: Backend) -> None:
        now = await snapshot(backend)
        if once or not console.is_terminal:
            console.print(render(now, None, target_wait_s, width=console.width))
            return
        first = render(now, None, target_wait_s, width=console.width)
        with quit_key() as quitting, Live(first, console=console, auto_refresh=False, screen=True) as live:
            while not await _within(quitting, seconds):
                before, now = now, await snapshot(backend)
                live.update(render(now, before, target_wait_s, width=console.width), refresh=True)

    with suppress(KeyboardInterrupt):
        with_backend(redis_url, watch)


@contextmanager
def quit_key() -> Iterator[asyncio.Event]:
    """Yield an event that is set when somebody presses q; without a terminal as input it is never set."""
    pressed, loop = asyncio.Event(), asyncio.get_running_loop()

    def read() -> None:
        if b"q" in os.read(sys.stdin.fileno(), 64).lower():
            pressed.set()

    with unechoed() as keyboard:
        if keyboard:
            loop.add_reader(sys.stdin, read)
        try:
            yield pressed
        finally:
            loop.remove_reader(sys.stdin)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


async def snapshot(backend: Backend) -> Snapshot:
    demands = await DemandReader(backend.client).all()
    started: list[JobRecord] = []
    for demand in demands:
        if demand.running_jobs:
            started += await backend.job_records.records(demand.model, State.STARTED, limit=JOBS_SHOWN)
    return Snapshot(
        at=time.monotonic(),
        demands=demands,
        paused={info.name for info in await backend.model_registry.models() if info.paused},
        hosted={model: best_of(records) for model, records in (await backend.hosting.all()).items()},
        workers=await workers(backend.client),
        started=sorted(started, key=lambda job: job.started_at)[:JOBS_SHOWN],
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


def render(now: Snapshot, before: Snapshot | None, target_wait_s: float, *, width: int) -> Group:
    """Draw the three tables. A narrow screen (80 columns) gets fewer fields and shortened names; ids are never cut."""
    wide = width >= WIDE
    return Group(
        _models(now, target_wait_s, wide=wide),
        Text(),
        _workers(now, before, wide=wide),
        Text(),
        _started(now, wide=wide),
    )


def _table(*columns: str, wide: bool, names: Mapping[str, int]) -> Table:
    """Make an empty table. A title that ends with # marks a column of numbers; `names` maps the columns that may be
    shortened to their greatest width."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        title = column.removesuffix("#")
        justify: JustifyMethod = "right" if column.endswith("#") else "left"
        table.add_column(title, justify=justify, no_wrap=True, max_width=None if wide else names.get(title))
    return table


def _cell(text: object, style: str = "") -> Text:
    return Text(one_line(text), style=style)


def _models(now: Snapshot, target_wait_s: float, *, wide: bool) -> Table:
    queued = [f"{priority.value}#" for priority in Priority] if wide else ["queued#"]
    columns = (
        "MODEL",
        "workers#",
        "wanted#",
        "started#",
        *queued,
        "tokens queued#" if wide else "tokens#",
        "oldest#",
    )
    table = _table(*columns, "state", wide=wide, names={"MODEL": 16})
    for demand in now.demands:
        jobs = [demand.waiting_jobs[priority] for priority in Priority]
        table.add_row(
            _cell(demand.model),
            _cell(demand.workers, "red" if demand.waiting and not demand.workers else ""),
            _cell(demand.workers_wanted(target_wait_s)),
            _cell(demand.running_jobs),
            *map(_cell, jobs if wide else [sum(jobs)]),
            _cell(demand.waiting_tokens),
            _cell(f"{demand.oldest_s:.1f} s" if demand.waiting else "-", "yellow" if demand.oldest_s > OLD_S else ""),
            _state(now, demand.model),
        )
    return table


def _state(now: Snapshot, model: str) -> Text:
    """Say that the model is paused, or in which state its host has it."""
    hosted = now.hosted.get(model)
    state = state_of(hosted) if hosted else ""
    failed = hosted is not None and hosted.state is HostedState.FAILED
    return _cell("paused" if model in now.paused else state, "red" if failed else "")


def _workers(now: Snapshot, before: Snapshot | None, *, wide: bool) -> Table:
    where = ("host", "pid#") if wide else ()
    columns = ("WORKER", *where, "state", "models", "done#", "failed#", "jobs/s#")
    table = _table(*columns, wide=wide, names={"WORKER": 26, "models": 20})
    earlier = {worker.name: worker.done for worker in before.workers} if before else {}
    for worker in now.workers:
        pace = "-"
        if before and worker.name in earlier:
            pace = f"{(worker.done - earlier[worker.name]) / (now.at - before.at):.1f}"
        place = (worker.host, worker.pid) if wide else ()
        about = (worker.name, *place, worker.state, worker.models, worker.done, worker.failed, pace)
        table.add_row(*map(_cell, about))
    return table


def _started(now: Snapshot, *, wide: bool) -> Table:
    if not wide:
        table = _table("JOB", "model", "attempt#", "since", wide=wide, names={"model": 16})
        for job in now.started:
            table.add_row(*map(_cell, (job.id, job.model, job.attempts, job.started_at[11:19])))
        return table
    table = _table("JOB", "model", "class", "tenant", "attempt#", "since", "worker", wide=wide, names={})
    for job in now.started:
        about = (job.id, job.model, job.priority.value, job.tenant, job.attempts, job.started_at[11:19], job.worker)
        table.add_row(*map(_cell, about))
    return table
