"""`penstock jobs`: look at jobs, follow one, cancel one, run failed ones again."""

import asyncio
import difflib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import click
from redis.asyncio import Redis

from cli.amounts import Age, Rate
from cli.where import operator_settings
from shared.directory import Directory
from shared.errors import NotFound
from shared.events import Delta, Event, Finished
from shared.ledger import JobRecord, Ledger
from shared.lifecycle import TERMINAL, State
from shared.redis_channel import RedisChannel
from shared.redis_client import connect
from shared.redis_queue import RedisQueue
from shared.replay import EVERY_MODEL, Filter, Replayed, Replayer

FOLLOW_S = 0.1
LISTED = (State.STARTED, State.QUEUED, State.FAILED, State.FINISHED, State.CANCELED)


@dataclass(frozen=True, slots=True)
class Desk:
    """What the commands work with."""

    client: Redis
    ledger: Ledger
    queue: RedisQueue
    channel: RedisChannel
    directory: Directory


@asynccontextmanager
async def desk(redis_url: str | None) -> AsyncIterator[Desk]:
    settings = operator_settings(redis_url)
    client: Redis = connect(settings.redis_url)
    queue = RedisQueue(client, job_ttl_s=settings.job_ttl_s, failed_ttl_s=settings.failed_ttl_s)
    try:
        yield Desk(client, Ledger(client), queue, RedisChannel(client), Directory(client))
    finally:
        await client.aclose()


def at_desk(redis_url: str | None, work: Callable[[Desk], Awaitable[None]]) -> None:
    async def sit() -> None:
        async with desk(redis_url) as seat:
            await work(seat)

    asyncio.run(sit())


@click.group()
@click.option("--redis-url", help="Where the queue lives; by default the one that `penstock up` runs here.")
@click.pass_context
def jobs(context: click.Context, redis_url: str | None) -> None:
    """Inspect, follow, cancel and replay jobs."""
    context.obj = redis_url


@jobs.command("list")
@click.option("--model", "-m", help="Only this model's jobs.")
@click.option("--state", type=click.Choice([str(state) for state in LISTED]), help="Only jobs in this state.")
@click.option("--limit", default=20, show_default=True, help="At most this many of each state.")
@click.pass_obj
def list_jobs(redis_url: str | None, model: str | None, state: str | None, limit: int) -> None:
    """List jobs: running, waiting, failed, finished, cancelled."""

    async def work(seat: Desk) -> None:
        states = [State(state)] if state else LISTED
        for name in [model] if model else await seat.ledger.models():
            for each in states:
                for job_id in await seat.ledger.ids(name, each, limit=limit):
                    await _print_line(seat, job_id)

    at_desk(redis_url, work)


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def show(redis_url: str | None, job_id: str) -> None:
    """Show one job in full, with what it wrote so far."""

    async def work(seat: Desk) -> None:
        record = await seat.ledger.record(job_id)
        (page,) = await seat.channel.read([(job_id, 0)])
        click.echo(_details(record, events=len(page.events)))
        click.echo(_text(page.events))

    at_desk(redis_url, work)


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def tail(redis_url: str | None, job_id: str) -> None:
    """Follow a job's text until it ends."""

    async def work(seat: Desk) -> None:
        await seat.ledger.record(job_id)
        seen = 0
        while True:
            (page,) = await seat.channel.read([(job_id, seen)])
            for event in page.events:
                if isinstance(event, Delta):
                    click.echo(event.text, nl=False)
                elif isinstance(event, Finished):
                    click.echo(f"\n[{type(event.outcome).__name__.lower()}]")
                    return
            seen += len(page.events)
            if page.state is None or (page.state in TERMINAL and not page.events):
                return
            await asyncio.sleep(FOLLOW_S)

    at_desk(redis_url, work)


@jobs.command()
@click.argument("job_ids", nargs=-1, required=True)
@click.pass_obj
def cancel(redis_url: str | None, job_ids: Sequence[str]) -> None:
    """Cancel waiting or running jobs."""

    async def work(seat: Desk) -> None:
        for job_id in job_ids:
            before = await seat.queue.cancel(job_id, by="operator")
            if before is None:
                raise NotFound(f"There is no job {job_id}.")
            click.echo(f"{job_id} {'was ' + before if before in TERMINAL else 'cancelled'}")

    at_desk(redis_url, work)


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
    """Run failed jobs once more: as new jobs, linked to the old ones, with the same request and seed."""
    if not job_ids and not model and not everything:
        raise click.UsageError("name jobs, or give --model or --all")
    wanted = Filter(model=model or EVERY_MODEL, since_s=since_s, error=error, tenant=tenant)

    async def work(seat: Desk) -> None:
        replayer = Replayer(seat.queue, seat.ledger)
        chosen = list(job_ids) or [record.id async for record in replayer.find(wanted)]
        if dry_run:
            click.echo("\n".join([*chosen, f"{_jobs(len(chosen))} would be queued again"]))
            return
        replayed = 0
        async for each in replayer.replay(chosen, rate_per_s=rate_per_s):
            replayed += each.before is State.FAILED
            click.echo(f"{each.origin} {_what(each)}")
        click.echo(f"{_jobs(replayed)} queued again")

    at_desk(redis_url, work)


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def compare(redis_url: str | None, job_id: str) -> None:
    """Show what a replay wrote beside what the job had written before."""

    async def work(seat: Desk) -> None:
        record = await seat.ledger.record(job_id)
        names = (record.replay_of or job_id, record.replayed_as or job_id)
        old, new = await seat.channel.read([(name, 0) for name in names])
        before = old.events if names[0] != names[1] else await seat.channel.previous(job_id)
        if not before:
            raise NotFound(f"The job {job_id} was never run again.")
        lines = difflib.unified_diff(_text(before).splitlines(), _text(new.events).splitlines(), *names, lineterm="")
        click.echo("\n".join(lines) or "both wrote the same")

    at_desk(redis_url, work)


def _jobs(count: int) -> str:
    return f"{count} job{'s' if count != 1 else ''}"


def _what(replayed: Replayed) -> str:
    if replayed.job_id:
        return f"replayed as {replayed.job_id}"
    return "not replayed: " + (f"it is {replayed.before}" if replayed.before else "there is no such job")


def _text(events: Iterable[Event]) -> str:
    """Of the first choice."""
    return "".join(event.text for event in events if isinstance(event, Delta) and event.choice == 0)


async def _print_line(seat: Desk, job_id: str) -> None:
    record = await seat.ledger.record_or_none(job_id)
    if record is None:
        return  # it expired between the two reads
    when = record.ended_at or record.started_at or record.enqueued_at
    words = [record.id, f"{record.state:<8}", record.model, f"attempts {record.attempts}", when[:19], record.reason]
    click.echo("  ".join(words).rstrip())


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
    lines = [f"{name:<12} {value}" for name, value in rows.items() if value != ""]
    history = [f"{'history':<12} {_clock(at_ms)} {what}" for at_ms, what in record.timeline]
    return "\n".join([*lines, *history, *([record.traceback] if record.traceback else [])])


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
