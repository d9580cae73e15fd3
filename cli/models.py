"""`penstock models`: lists, pauses, resumes and forgets models. What hosts do has a module of its own."""

from dataclasses import asdict
from typing import Any

import click

from cli.backend import Backend, OperatorGroup, json_option, with_backend
from cli.doctor import of_files
from cli.model_check import check, schema
from cli.model_files import pull, rm
from cli.model_orders import keep, load, ps, switch, unload
from cli.terminal import echo, echo_json, table
from shared.catalog.model_states import model_objects
from shared.domain.errors import InvalidRequest

COLUMNS = ("MODEL", "STATE", "ENGINE", "CONTEXT", "WORKERS", "QUEUED", "NOTE")


@click.group(cls=OperatorGroup, invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List, load, unload, keep, pause and forget models."""
    if context.invoked_subcommand is None:
        _list(context.obj, as_json=as_json)


@models.command("list")
@json_option
@click.pass_obj
def list_models(redis_url: str | None, as_json: bool) -> None:
    """List the models with their states, workers and queued jobs.

    A model is ready, loading, draining (its last worker ends), asleep, configured (its host loads it when it is
    wanted), failed (its last load did not succeed), or absent: no host has it, and no worker serves it."""
    _list(redis_url, as_json=as_json)


@models.command()
@click.argument("model")
@click.pass_obj
def pause(redis_url: str | None, model: str) -> None:
    """Start no more of the model's queued jobs. Started jobs go on."""
    _set(redis_url, model, paused=True)


@models.command()
@click.argument("model")
@click.pass_obj
def resume(redis_url: str | None, model: str) -> None:
    """Start the model's queued jobs again."""
    _set(redis_url, model, paused=False)


@models.command()
@click.argument("model")
@click.pass_obj
def forget(redis_url: str | None, model: str) -> None:
    """Remove a model that no worker serves from the list.

    Jobs of the model that have ended are kept for their usual time."""

    async def forget_model(backend: Backend) -> None:
        await backend.require_model(model)
        listed = model in [info.name for info in await backend.model_registry.models()]
        if in_use := await backend.queue.forget_model(model):
            raise InvalidRequest(f"{model} is not forgotten: {in_use}.")
        kept = _kept(model, failed) if (failed := await backend.failed_jobs(model)) else ""
        echo(f"{model} {'forgotten' if listed else 'was already forgotten'}{kept}")

    with_backend(redis_url, forget_model)


def _kept(model: str, failed: int) -> str:
    """Explain why `rq info` still lists the model's queue."""
    kept = (
        "1 failed job is kept until it expires" if failed == 1 else f"{failed} failed jobs are kept until they expire"
    )
    return f"; {kept} (`penstock jobs list --model {model}`)"


def _list(redis_url: str | None, *, as_json: bool) -> None:
    async def print_models(backend: Backend) -> None:
        objects = await model_objects(backend.model_registry, backend.hosting)
        infos = {info.name: asdict(info) for info in await backend.model_registry.models()}
        if as_json:
            echo_json([infos.get(each["id"], {"name": each["id"]}) | each for each in objects])
            return
        echo(table(COLUMNS, [_columns(each) for each in objects]))
        for finding in of_files(await backend.hosting.hosts()):
            echo(f"warning: {finding.text}", err=True)

    with_backend(redis_url, print_models)


def _columns(model: dict[str, Any]) -> tuple[object, ...]:
    note = "paused" if model["paused"] else model["reason"]
    about = model["engine"] or "-", model["context_length"] or "-", model["workers"], model["waiting_jobs"]
    return model["id"], model["state"], *about, note


def _set(redis_url: str | None, model: str, *, paused: bool) -> None:
    async def set_paused(backend: Backend) -> None:
        info = await backend.model_registry.model(model)
        await backend.queue.pause(model, paused=paused)
        echo(f"{model} {'paused' if paused else 'resumed'}, {info.waiting} queued")

    with_backend(redis_url, set_paused)


for command in (ps, load, unload, switch, keep, pull, rm, check, schema):
    models.add_command(command)
