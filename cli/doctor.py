"""`penstock doctor`: is everything as it should be, and what is to be done if not."""

import asyncio
import sys
import time

import click
from redis.asyncio import Redis

from cli.jobs import Desk, at_desk
from cli.where import operator_settings
from shared import keys
from shared.checkup import Finding, Level, examine
from shared.lifecycle import State

MARKS = {Level.GOOD: "ok", Level.WARNING: "!!", Level.BAD: "XX"}
SLOW_MS = 20.0
OLD_S = 60.0


@click.command()
@click.option("--redis-url", help="Where the queue lives; by default the one that `penstock up` runs here.")
def doctor(redis_url: str | None) -> None:
    """Examine Redis, the workers and the queues. Exit status 1 when something loses jobs, 0 otherwise."""
    found: list[Finding] = []

    async def work(seat: Desk) -> None:
        found.extend(await examine(seat.client, operator_settings(redis_url)))
        found.append(await _latency(seat.client))
        for model in await seat.directory.models():
            found.extend(await _model(seat, model.name))

    at_desk(redis_url, work)
    for finding in found:
        click.echo(f"{MARKS[finding.level]}  {finding.text}")
    sys.exit(int(any(finding.level is Level.BAD for finding in found)))


async def _latency(client: Redis) -> Finding:
    took = []
    for _ in range(10):
        began = time.perf_counter()
        await client.ping()
        took.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0)
    median = sorted(took)[5]
    level = Level.WARNING if median > SLOW_MS else Level.GOOD
    return Finding(level, f"Redis answers within {median:.1f} ms")


async def _model(seat: Desk, name: str) -> list[Finding]:
    info = await seat.directory.model(name)
    failed = len(await seat.ledger.ids(name, State.FAILED, limit=1000))
    running = await seat.client.zcard(keys.registry(State.STARTED, name))
    counts = f"workers {info.workers}, waiting {info.waiting}, running {running}, failed {failed}"
    idle = info.waiting and not info.workers
    found = [Finding(Level.WARNING if idle else Level.GOOD, f"{name}: {counts}")]
    if info.paused:
        found.append(Finding(Level.WARNING, f"{name} is paused: `penstock models resume {name}` goes on"))
    if await seat.client.exists(keys.SUSPENDED):
        found.append(Finding(Level.WARNING, "all queues are suspended: `rq resume` goes on"))
    oldest = await seat.ledger.records(name, State.QUEUED, limit=1)
    if oldest and (waits := time.time() - oldest[0].queued_s) > OLD_S:
        found.append(Finding(Level.WARNING, f"{name}: the first in its queue has waited for {waits:.0f} s"))
    silent: int = await seat.client.zcount(keys.leases(name), "-inf", time.time() * 1000 - OLD_S * 1000)
    if silent:
        found.append(Finding(Level.WARNING, f"{name}: {silent} running jobs have no worker; start one"))
    return found
