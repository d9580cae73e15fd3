"""`penstock jobs`: lists, shows, follows, cancels and replays jobs. `job_reruns` adds `rerun` and `compare`."""

import asyncio
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from cli.backend import Backend, OperatorGroup, json_option, with_backend
from cli.click_types import Age, Rate
from cli.terminal import echo, echo_json, one_line, table
from shared.catalog.job_records import JobRecord
from shared.catalog.replay import EVERY_MODEL, Filter, Replayed, Replayer
from shared.domain.errors import NotFound
from shared.domain.events import Delta, Event, Finished
from shared.domain.lifecycle import TERMINAL, State, after, settling

FOLLOW_S = 0.1
LISTED_MAX = 1000
UNLISTED = ("payload", "view", "timeline", "traceback")  # too large for a list, or the client's own words
LISTED = (
    State.FAILED,
    State.SCHEDULED,
    State.QUEUED,
    State.STARTED,
    State.FINISHED,
    State.CANCELED,
)  # by the attention they need
COLUMNS = ("JOB", "STATE", "MODEL", "ATTEMPTS", "SINCE", "REASON")


@click.group(cls=OperatorGroup)
def jobs() -> None:
    """List, show, follow, cancel and replay jobs.

    A job is queued (scheduled, until its time comes), then started, then finished, failed or canceled. These are RQ's
    words for its states."""


@jobs.command("list")
@click.option("--model", "-m", help="List only this model's jobs.")
@click.option("--state", type=click.Choice([str(state) for state in LISTED]), help="List only jobs in this state.")
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, LISTED_MAX),
    help="List at most this many jobs of each state and model.",
)
@json_option
@click.pass_obj
def list_jobs(redis_url: str | None, model: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """List jobs by state, failed ones first.

    The order is: failed, scheduled, queued, started, finished, canceled. Jobs that have ended are listed newest first,
    others oldest first. SINCE is the time at which a job entered its state."""

    async def print_jobs(backend: Backend) -> None:
        if model:
            await backend.require_model(model)
        found = await _records(backend, model, [State(state)] if state else LISTED, limit)
        if as_json:
            echo_json([_listed(record) for record in found])
            return
        echo(table(COLUMNS, [_columns(record) for record in found]))

    with_backend(redis_url, print_jobs)


async def _records(backend: Backend, model: str | None, states: Sequence[State], limit: int) -> list[JobRecord]:
    """Read the jobs of one model or of all, state by state."""
    models = [model] if model else await backend.job_records.models()
    found: list[JobRecord] = []
    for state in states:
        records = [record for name in models for record in await backend.job_records.records(name, state, limit=limit)]
        found += sorted(records, key=_since, reverse=state in TERMINAL)
    return found


def _since(record: JobRecord) -> str:
    """Return the time at which the job entered its state. All times have one format, so they sort as text."""
    return record.ended_at or record.started_at or record.enqueued_at


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def show(redis_url: str | None, job_id: str) -> None:
    """Show one job in full, with its output so far."""

    async def print_job(backend: Backend) -> None:
        record = await backend.job_records.record(job_id)
        (page,) = await backend.channel.read([(job_id, 0)])
        echo(_details(record, events=len(page.events)))
        echo(_text(page.events))

    with_backend(redis_url, print_job)


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def tail(redis_url: str | None, job_id: str) -> None:
    """Print a job's output as it comes, until the job ends."""

    async def follow(backend: Backend) -> None:
        await backend.job_records.record(job_id)
        seen = 0
        while True:
            (page,) = await backend.channel.read([(job_id, seen)])
            for event in page.events:
                if isinstance(event, Delta):
                    echo(event.text, nl=False)
                elif isinstance(event, Finished):
                    echo(f"\n[{after(State.STARTED, settling(event.outcome))}]")
                    return
            seen += len(page.events)
            if page.state is None or (page.state in TERMINAL and not page.events):
                return
            await asyncio.sleep(FOLLOW_S)

    with_backend(redis_url, follow)


@jobs.command()
@click.argument("job_ids", nargs=-1, required=True)
@click.pass_obj
def cancel(redis_url: str | None, job_ids: Sequence[str]) -> None:
    """Cancel queued or started jobs."""

    async def cancel_each(backend: Backend) -> None:
        for job_id in job_ids:
            before = await backend.queue.cancel(job_id, by="operator")
            if before is None:
                raise NotFound(f"There is no job {job_id}.")
            echo(f"{job_id} {'was already ' + before if before in TERMINAL else 'canceled'}")

    with_backend(redis_url, cancel_each)


@jobs.command()
@click.argument("job_ids", nargs=-1)
@click.option("--model", "-m", help="Replay the failed jobs of this model.")
@click.option("--all", "everything", is_flag=True, help="Replay the failed jobs of all models.")
@click.option(
    "--since", "since_s", type=Age(), help="Replay only jobs that failed within this time: 90s, 15m, 2h or 3d."
)
@click.option("--error", help="Replay only jobs whose error contains this text.")
@click.option("--tenant", help="Replay only jobs of this tenant, as `penstock jobs show` names it.")
@click.option(
    "--rate",
    "rate_per_s",
    type=Rate(),
    default="0",
    help="Replay at most this many jobs per second or minute, such as 5/s or 30/m.",
)
@click.option("--to-model", help="Replay as jobs of this model. A job that it cannot serve stays as it is.")
@click.option("--dry-run", is_flag=True, help="Print the jobs that would be replayed, and change nothing.")
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
    to_model: str | None,
    dry_run: bool,
) -> None:
    """Replay failed jobs as new jobs.

    Each new job has the request and the seed of the failed one, and both name each other. The exit status is 1 if a job
    given by its id could not be replayed."""
    if not job_ids and not model and not everything:
        raise click.UsageError("give the ids of failed jobs, or --model or --all")
    wanted = Filter(model=model or EVERY_MODEL, since_s=since_s, error=error, tenant=tenant)

    async def replay_chosen(backend: Backend) -> None:
        if model:
            await backend.require_model(model)
        replayer = Replayer(backend.queue, backend.job_records, backend.model_registry, backend.api_keys)
        to = await replayer.target(to_model)
        chosen = list(job_ids) or [record.id async for record in replayer.find(wanted)]
        if dry_run:
            echo("\n".join([*chosen, f"{_jobs(len(chosen))} would be replayed"]))
            return
        replayed = 0
        async for each in replayer.replay(chosen, rate_per_s=rate_per_s, to=to):
            replayed += bool(each.job_id)
            echo(f"{each.origin} {_result(each)}")
        echo(f"{_jobs(replayed)} replayed")
        if job_ids and replayed < len(chosen):
            sys.exit(1)

    with_backend(redis_url, replay_chosen)


def _jobs(count: int) -> str:
    return f"{count} job{'s' if count != 1 else ''}"


def _result(replayed: Replayed) -> str:
    if replayed.job_id:
        return f"replayed as {replayed.job_id}"
    if replayed.refusal:
        return f"not replayed: {replayed.refusal}"
    return "not replayed: " + (f"it is {replayed.before}" if replayed.before else "there is no such job")


def _text(events: Iterable[Event]) -> str:
    """Join the output of the first choice."""
    return "".join(event.text for event in events if isinstance(event, Delta) and event.choice == 0)


def _columns(record: JobRecord) -> Sequence[object]:
    return record.id, record.state, record.model, record.attempts, _since(record)[:19], record.reason


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
