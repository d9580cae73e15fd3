"""`penstock doctor`: finds what is wrong with Redis, the workers and the queues, and says how to mend it."""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

import click
from redis.asyncio import Redis

from cli.backend import REDIS_URL_HELP, Backend, json_option, with_backend
from cli.redis_location import operator_settings
from cli.terminal import echo, echo_json, row
from shared.catalog.hosting import best_of
from shared.domain.hosting import Host, HostedModel, HostedState
from shared.domain.job import ModelInfo
from shared.domain.lifecycle import State
from shared.redis import keys
from shared.redis.health import Finding, Level, examine

MARKS = {Level.GOOD: "ok", Level.WARNING: "!!", Level.BAD: "XX"}
SLOW_MS = 20.0
OLD_S = 60.0


@click.command()
@click.option("--redis-url", help=REDIS_URL_HELP)
@json_option
def doctor(redis_url: str | None, as_json: bool) -> None:
    """Check Redis, the workers and the queues.

    Each problem is printed with its remedy. The exit status is 1 if something can lose jobs, and 0 otherwise."""
    found: list[Finding] = []

    async def check(backend: Backend) -> None:
        found.extend(await examine(backend.client, operator_settings(redis_url)))
        found.append(await _latency(backend.client))
        if await backend.client.exists(keys.SUSPENDED):
            found.append(Finding(Level.WARNING, "all queues are suspended: `rq resume` resumes them"))
        found.extend(of_files(await backend.hosting.hosts()))
        models = await backend.model_registry.models()
        if not models:
            found.append(Finding(Level.WARNING, "no worker serves a model: start one with `penstock worker`"))
        for model in models:
            found.extend(await _model(backend, model.name))

    with_backend(redis_url, check)
    if as_json:
        echo_json([asdict(finding) for finding in found])
    else:
        for finding in found:
            echo(row(MARKS[finding.level], finding.text))
    sys.exit(int(any(finding.level is Level.BAD for finding in found)))


def of_files(hosts: Sequence[Host]) -> list[Finding]:
    """Describe the models files that hosts could not read when they looked at them last."""
    return [
        Finding(Level.WARNING, f"the host on {each.hostname} goes on with what it read before: {each.file_error}")
        for each in hosts
        if each.file_error
    ]


async def _latency(client: Redis) -> Finding:
    took = []
    for _ in range(10):
        began = time.perf_counter()
        await client.ping()
        took.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0)
    return latency(sorted(took)[5])


def latency(median_ms: float) -> Finding:
    text = f"Redis answers within {median_ms:.1f} ms"
    if median_ms <= SLOW_MS:
        return Finding(Level.GOOD, text)
    return Finding(Level.WARNING, f"{text}, which delays every token: run it nearer, or give its machine more CPU time")


async def _model(backend: Backend, name: str) -> list[Finding]:
    oldest = await backend.job_records.records(name, State.QUEUED, limit=1)
    hosted = await backend.hosting.of(name)
    silent: int = await backend.client.zcount(keys.leases(name), "-inf", time.time() * 1000 - OLD_S * 1000)
    return diagnosis(
        await backend.model_registry.model(name),
        started=await backend.client.zcard(keys.registry(State.STARTED, name)),
        failed=await backend.failed_jobs(name),
        oldest_s=time.time() - oldest[0].queued_s if oldest else 0,
        silent=silent,
        hosted=best_of(hosted) if hosted else None,
    )


def diagnosis(
    info: ModelInfo, *, started: int, failed: int, oldest_s: float, silent: int, hosted: HostedModel | None = None
) -> list[Finding]:
    """Describe one model. `silent` counts the started jobs whose lease ran out long ago: their workers are dead. A
    model that is `hosted` needs no worker while nobody wants it."""
    name = info.name
    found = [f"{name}: workers {info.workers}, queued {info.waiting}, started {started}, failed {failed}"]
    start = f"start one with `penstock worker --model {info.parent or name}`"
    if hosted and hosted.state is HostedState.FAILED:
        found.append(f"{name}: its last load failed ({hosted.reason}): see the log of its host, and mend what it names")
    if hosted and not info.workers:
        start = f"run `penstock models load {name}`"
    elif info.waiting and not info.workers:
        found.append(f"{name}: {info.waiting} queued jobs and no worker to serve them: {start}")
    elif not info.workers and not silent:
        found.append(f"{name}: no worker serves it: {start}, or remove it with `penstock models forget {name}`")
    if info.paused:
        found.append(f"{name} is paused: `penstock models resume {name}` resumes it")
    if oldest_s > OLD_S and info.workers and not info.paused:
        found.append(f"{name}: its oldest queued job has waited for {oldest_s:.0f} s: start more workers")
    if failed:
        jobs = "1 failed job is" if failed == 1 else f"{failed} failed jobs are"
        show, replay = f"`penstock jobs list -m {name} --state failed`", f"`penstock jobs replay -m {name}`"
        found.append(f"{name}: {jobs} kept: use {show} to see why, and {replay} to run them again")
    if silent:
        found.append(f"{name}: {silent} started jobs have no worker: {start}")
    return [Finding(Level.WARNING if number else Level.GOOD, text) for number, text in enumerate(found)]
