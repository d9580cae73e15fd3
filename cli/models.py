"""`penstock models`: which there are, and pausing one."""

import click

from cli.jobs import Desk, at_desk


@click.group(invoke_without_command=True)
@click.option("--redis-url", help="Where the queue lives; by default the one that `penstock up` runs here.")
@click.pass_context
def models(context: click.Context, redis_url: str | None) -> None:
    """List the models with their workers and waiting jobs; pause one."""
    context.obj = redis_url
    if context.invoked_subcommand is None:
        at_desk(redis_url, _list)


@models.command()
@click.argument("model")
@click.pass_obj
def pause(redis_url: str | None, model: str) -> None:
    """Claim no more of the model's waiting jobs; those that run go on."""
    _set(redis_url, model, paused=True)


@models.command()
@click.argument("model")
@click.pass_obj
def resume(redis_url: str | None, model: str) -> None:
    """Claim the model's waiting jobs again."""
    _set(redis_url, model, paused=False)


async def _list(seat: Desk) -> None:
    for info in await seat.directory.models():
        paused = "  paused" if info.paused else ""
        click.echo(
            f"{info.name}  {info.engine}  context {info.context_length}  "
            f"workers {info.workers}  waiting {info.waiting}{paused}"
        )


def _set(redis_url: str | None, model: str, *, paused: bool) -> None:
    async def work(seat: Desk) -> None:
        info = await seat.directory.model(model)
        await seat.queue.pause(model, paused=paused)
        click.echo(f"{model} {'paused' if paused else 'resumed'}, {info.waiting} waiting")

    at_desk(redis_url, work)
