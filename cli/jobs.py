"""`penstock jobs`: look at jobs, follow one, cancel one, run failed ones again."""

import asyncio
import difflib
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from cli.backend import Backend, OperatorGroup, json_option, with_backend
from cli.click_types import Age, Rate
from cli.terminal import echo, echo_json, one_line, row
from shared.catalog.job_records import JobRecord
from shared.catalog.replay import EVERY_MODEL, Filter, Replayed, Replayer
from shared.domain.errors import NotFound
from shared.domain.events import Delta, Event, Finished
from shared.domain.lifecycle import TERMINAL, State

FOLLOW_S = 0.1
LISTED_MAX = 1000
UNLISTED = ("payload", "view", "timeline", "traceback")  # too large for a list, or the client's own
LISTED = (State.STARTED, State.QUEUED, State.FAILED, State.FINISHED, State.CANCELED)


@click.group(cls=OperatorGroup)
def jobs() -> None:
    """Inspect, follow, cancel and replay jobs."""


@jobs.command("list")
@click.option("--model", "-m", help="Only this model's jobs.")
@click.option("--state", type=click.Choice([str(state) for state in LISTED]), help="Only jobs in this state.")
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1, LISTED_MAX), help="At most so many of each state."
)
@json_option
@click.pass_obj
def list_jobs(redis_url: str | None, model: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """List jobs: running, waiting, failed, finished, cancelled."""

    async def work(backend: Backend) -> None:
        if model:
            await backend.require_model(model)
        found = _records(backend, model, [State(state)] if state else LISTED, limit)
        if as_json:
            echo_json([_listed(record) async for record in found])
            return
        async for record in found:
            echo(_line(record))

    with_backend(redis_url, work)


async def _records(
    backend: Backend, model: str | None, states: Sequence[State], limit: int
) -> AsyncIterator[JobRecord]:
    for name in [model] if model else await backend.job_records.models():
        for each in states:
            for record in await backend.job_records.records(name, each, limit=limit):
                yield record


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def show(redis_url: str | None, job_id: str) -> None:
    """Show one job in full, with what it wrote so far."""

    async def work(backend: Backend) -> None:
        record = await backend.job_records.record(job_id)
        (page,) = await backend.channel.read([(job_id, 0)])
        echo(_details(record, events=len(page.events)))
        echo(_text(page.events))

    with_backend(redis_url, work)


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def tail(redis_url: str | None, job_id: str) -> None:
    """Follow a job's text until it ends."""

    async def work(backend: Backend) -> None:
        await backend.job_records.record(job_id)
        seen = 0
        while True:
            (page,) = await backend.channel.read([(job_id, seen)])
            for event in page.events:
                if isinstance(event, Delta):
                    echo(event.text, nl=False)
                elif isinstance(event, Finished):
                    echo(f"\n[{type(event.outcome).__name__.lower()}]")
                    return
            seen += len(page.events)
            if page.state is None or (page.state in TERMINAL and not page.events):
                return
            await asyncio.sleep(FOLLOW_S)

    with_backend(redis_url, work)


@jobs.command()
@click.argument("job_ids", nargs=-1, required=True)
@click.pass_obj
def cancel(redis_url: str | None, job_ids: Sequence[str]) -> None:
    """Cancel waiting or running jobs."""

    async def work(backend: Backend) -> None:
        for job_id in job_ids:
            before = await backend.queue.cancel(job_id, by="operator")
            if before is None:
                raise NotFound(f"There is no job {job_id}.")
            echo(f"{job_id} {'was ' + before if before in TERMINAL else 'cancelled'}")

    with_backend(redis_url, work)


@jobs.command()
@click.argument("job_ids", nargs=-1)
@click.option("--model", "-m", help="Failed jobs of this model.")
@click.option("--all", "everything", is_flag=True, help="Failed jobs of every model.")
@click.option("--since", "since_s", type=Age(), help="Only those that failed within this time, like 90s, 15m, 2h, 3d.")
@click.option("--error", help="Only those whose failure holds these words.")
@click.option("--tenant", help="Only those of this tenant, as `show` names it.")
@click.option("--rate", "rate_per_s", type=Rate(), default="0", help="At most so many a second or minute, like 5/s.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@click.pass_obj
def replay(
    redis_url: str | None,
    job_ids: Sequence[str],
    model: str | None,
    everything: bool,
    since_s: float | None,
    error: str | None,
    tenant: str | None,
    rate_per_s: float,
    dry_run: bool,
) -> None:
    """Run failed jobs once more: as new jobs, linked to the old ones, with the same request and seed.

    The exit status is 1 when a job that was named could not be run again."""
    if not job_ids and not model and not everything:
        raise click.UsageError("name jobs, or give --model or --all")
    wanted = Filter(model=model or EVERY_MODEL, since_s=since_s, error=error, tenant=tenant)

    async def work(backend: Backend) -> None:
        if model:
            await backend.require_model(model)
        replayer = Replayer(backend.queue, backend.job_records)
        chosen = list(job_ids) or [record.id async for record in replayer.find(wanted)]
        if dry_run:
            echo("\n".join([*chosen, f"{_jobs(len(chosen))} would be queued again"]))
            return
        replayed = 0
        async for each in replayer.replay(chosen, rate_per_s=rate_per_s):
            replayed += each.before is State.FAILED
            echo(f"{each.origin} {_what(each)}")
        echo(f"{_jobs(replayed)} queued again")
        if job_ids and replayed < len(chosen):
            sys.exit(1)

    with_backend(redis_url, work)


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def compare(redis_url: str | None, job_id: str) -> None:
    """Show what a replay wrote beside what the job had written before."""

    async def work(backend: Backend) -> None:
        record = await backend.job_records.record(job_id)
        names = (record.replay_of or job_id, record.replayed_as or job_id)
        old, new = await backend.channel.read([(name, 0) for name in names])
        before = old.events if names[0] != names[1] else await backend.channel.previous(job_id)
        if not before:
            raise NotFound(f"The job {job_id} was never run again.")
        lines = difflib.unified_diff(_text(before).splitlines(), _text(new.events).splitlines(), *names, lineterm="")
        echo("\n".join(lines) or "both wrote the same")

    with_backend(redis_url, work)


def _jobs(count: int) -> str:
    return f"{count} job{'s' if count != 1 else ''}"


def _what(replayed: Replayed) -> str:
    if replayed.job_id:
        return f"replayed as {replayed.job_id}"
    return "not replayed: " + (f"it is {replayed.before}" if replayed.before else "there is no such job")


def _text(events: Iterable[Event]) -> str:
    """Of the first choice."""
    return "".join(event.text for event in events if isinstance(event, Delta) and event.choice == 0)


def _line(record: JobRecord) -> str:
    when = record.ended_at or record.started_at or record.enqueued_at
    return row(record.id, f"{record.state:<8}", record.model, f"attempts {record.attempts}", when[:19], record.reason)


def _listed(record: JobRecord) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(record).items() if name not in UNLISTED}
    return fields | {"reason": record.reason}


def _details(record: JobRecord, *, events: int) -> str:
    rows = {
        "job": record.id,
        "model": record.model,
        "state": record.state,
        "priority": record.priority,
        "tenant": record.tenant,
        "attempts": record.attempts,
        "replay of": record.replay_of,
        "replayed as": record.replayed_as,
        "events": events,
        "queued": record.enqueued_at,
        "started": record.started_at,
        "ended": record.ended_at,
        "worker": record.worker,
    }
    lines = [f"{name:<12} {one_line(value)}" for name, value in rows.items() if value != ""]
    history = [f"{'history':<12} {_clock(at_ms)} {one_line(what)}" for at_ms, what in record.timeline]
    return "\n".join([*lines, *history, *([record.traceback] if record.traceback else [])])


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
