"""`penstock models`: which there are, pausing one, and forgetting one."""

from dataclasses import asdict

import click

from cli.backend import Backend, OperatorGroup, json_option, with_backend
from cli.terminal import echo, echo_json, row
from shared.domain.errors import InvalidRequest


@click.group(cls=OperatorGroup, invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the models with their workers and waiting jobs; pause or forget one."""
    if context.invoked_subcommand is None:
        _list(context.obj, as_json=as_json)


@models.command("list")
@json_option
@click.pass_obj
def list_models(redis_url: str | None, as_json: bool) -> None:
    """List the models with their workers and waiting jobs."""
    _list(redis_url, as_json=as_json)


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


@models.command()
@click.argument("model")
@click.pass_obj
def forget(redis_url: str | None, model: str) -> None:
    """List a model no more that nobody serves any longer. Jobs of it that have ended stay as long as they would."""

    async def work(backend: Backend) -> None:
        await backend.require_model(model)
        if in_use := await backend.queue.forget(model):
            raise InvalidRequest(f"{model} is not forgotten: {in_use}. Stop its workers and cancel its jobs first.")
        echo(f"{model} forgotten")

    with_backend(redis_url, work)


def _list(redis_url: str | None, *, as_json: bool) -> None:
    async def work(backend: Backend) -> None:
        found = await backend.model_registry.models()
        if as_json:
            echo_json([asdict(info) for info in found])
            return
        for info in found:
            about = [
                info.engine,
                f"context {info.context_length}",
                f"workers {info.workers}",
                f"waiting {info.waiting}",
            ]
            echo(row(info.name, *about, *(["paused"] if info.paused else [])))

    with_backend(redis_url, work)


def _set(redis_url: str | None, model: str, *, paused: bool) -> None:
    async def work(backend: Backend) -> None:
        info = await backend.model_registry.model(model)
        await backend.queue.pause(model, paused=paused)
        echo(f"{model} {'paused' if paused else 'resumed'}, {info.waiting} waiting")

    with_backend(redis_url, work)
