"""`penstock jobs`: look at jobs, follow one, cancel one, run failed ones again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import click
from redis.asyncio import Redis

from cli.where import operator_settings
from shared.errors import NotFound
from shared.events import Delta, Finished
from shared.ledger import JobRecord, Ledger
from shared.lifecycle import TERMINAL, State
from shared.redis_channel import RedisChannel
from shared.redis_client import connect
from shared.redis_queue import RedisQueue

FOLLOW_S = 0.1
LISTED = (State.STARTED, State.QUEUED, State.FAILED, State.FINISHED, State.CANCELED)


@dataclass(frozen=True, slots=True)
class Desk:
    """What the commands work with."""

    ledger: Ledger
    queue: RedisQueue
    channel: RedisChannel


@asynccontextmanager
async def desk(redis_url: str | None) -> AsyncIterator[Desk]:
    settings = operator_settings(redis_url)
    client: Redis = connect(settings.redis_url)
    queue = RedisQueue(client, job_ttl_s=settings.job_ttl_s, failed_ttl_s=settings.failed_ttl_s)
    try:
        yield Desk(Ledger(client), queue, RedisChannel(client))
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
        click.echo("".join(event.text for event in page.events if isinstance(event, Delta) and event.choice == 0))

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
            before = await seat.queue.cancel(job_id)
            if before is None:
                raise NotFound(f"There is no job {job_id}.")
            click.echo(f"{job_id} {'was ' + before if before in TERMINAL else 'cancelled'}")

    at_desk(redis_url, work)


@jobs.command()
@click.argument("job_ids", nargs=-1)
@click.option("--model", "-m", help="Every failed job of this model.")
@click.option("--all", "everything", is_flag=True, help="Every failed job.")
@click.pass_obj
def replay(redis_url: str | None, job_ids: Sequence[str], model: str | None, everything: bool) -> None:
    """Run failed jobs again, from the start, with the same request and seed."""
    if not job_ids and not model and not everything:
        raise click.UsageError("name jobs, or give --model or --all")

    async def work(seat: Desk) -> None:
        chosen = list(job_ids)
        for name in [model] if model else await seat.ledger.models() if everything else []:
            chosen += [job_id async for job_id in seat.ledger.all_failed(name)]
        replayed = 0
        for job_id in chosen:
            before = await seat.queue.replay(job_id)
            if before is State.FAILED:
                replayed += 1
            elif job_ids:
                click.echo(f"{job_id} not replayed: " + (f"it is {before}" if before else "there is no such job"))
        click.echo(f"{replayed} job{'s' if replayed != 1 else ''} queued again")

    at_desk(redis_url, work)


async def _print_line(seat: Desk, job_id: str) -> None:
    try:
        record = await seat.ledger.record(job_id)
    except NotFound:
        return  # it expired between the two reads
    when = record.ended_at or record.started_at or record.enqueued_at
    click.echo(f"{record.id}  {record.state:<8}  {record.model}  attempts {record.attempts}  {when[:19]}")


def _details(record: JobRecord, *, events: int) -> str:
    rows = {
        "job": record.id,
        "model": record.model,
        "state": record.state,
        "attempts": record.attempts,
        "replays": record.replays,
        "events": events,
        "queued": record.enqueued_at,
        "started": record.started_at,
        "ended": record.ended_at,
        "worker": record.worker,
    }
    lines = [f"{name:<9} {value}" for name, value in rows.items() if value != ""]
    return "\n".join([*lines, *([record.traceback] if record.traceback else [])])
