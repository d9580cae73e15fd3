"""`penstock keys`: creates, lists, limits and revokes API keys."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from cli.backend import Backend, OperatorGroup, json_option, with_backend
from cli.click_types import Age
from cli.terminal import echo, echo_json, row
from shared.catalog.api_keys import ApiKey, ApiKeyStore
from shared.domain.job import Priority

SECRET_MIN = 16
STDIN = "-"


@click.group(cls=OperatorGroup)
def keys() -> None:
    """Create, list, limit and revoke API keys."""


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that `create` and `limit` share."""
    options = [
        click.option(
            "--model", "-m", "models", multiple=True, help="Allow only this model. May be repeated; * allows all."
        ),
        click.option(
            "--requests-per-minute", type=click.IntRange(0), help="Limit on requests per minute; 0 means no limit."
        ),
        click.option(
            "--tokens-per-minute",
            type=click.IntRange(0),
            help="Limit on tokens of prompts and answers per minute; 0 means no limit.",
        ),
        click.option(
            "--concurrent-jobs",
            type=click.IntRange(0),
            help="Limit on jobs that are queued or started at a time; 0 means no limit.",
        ),
        click.option(
            "--tokens-per-month",
            type=click.IntRange(0),
            help="Limit on tokens of prompts and answers per month; 0 means no limit.",
        ),
        click.option(
            "--weight",
            type=click.FloatRange(0, 1000, min_open=True),
            help="Share of the workers while several keys wait: weight 2 gets twice as much as weight 1.",
        ),
        click.option(
            "--priority",
            type=click.Choice(list(map(str, Priority))),
            help="Class of the key's jobs; a request may ask for a lower class, never for a higher one.",
        ),
        click.option("--expires", type=Age(), help="Time until the key expires, such as 90d; 0s means never."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@keys.command()
@click.argument("name")
@click.option(
    "--secret", help="Use this key, which clients already have, instead of a new one; - reads it from standard input."
)
@limit_options
@click.pass_obj
def create(redis_url: str | None, /, name: str, secret: str | None, **given: Any) -> None:
    """Create an API key and print it. It is never shown again."""
    if secret == STDIN:
        secret = sys.stdin.readline().strip()
    if secret is not None and len(secret) < SECRET_MIN:
        raise click.BadParameter(f"the key must have at least {SECRET_MIN} characters", param_hint="--secret")

    async def create_key(backend: Backend) -> None:
        key, created = await ApiKeyStore(backend.client).create(name, secret=secret or "", **_changes(given))
        echo(row(key.id, key.name), err=True)
        echo(created)

    with_backend(redis_url, create_key)


@keys.command("list")
@json_option
@click.pass_obj
def list_keys(redis_url: str | None, as_json: bool) -> None:
    """List the API keys, their limits, and this month's tokens and cost."""

    async def print_keys(backend: Backend) -> None:
        store = ApiKeyStore(backend.client)
        found = [(key, await store.used(key.id), await store.costs(key.id)) for key in await store.all()]
        if as_json:
            counts = [{"tokens_this_month": used, "cost_micros_this_month": costs} for _, used, costs in found]
            echo_json([asdict(key) | count for (key, *_), count in zip(found, counts, strict=True)])
            return
        for key, used, costs in found:
            echo(_line(key, used=used, costs=costs))

    with_backend(redis_url, print_keys)


@keys.command()
@click.argument("key_id")
@limit_options
@click.option("--name", help="Rename the key.")
@click.pass_obj
def limit(redis_url: str | None, /, key_id: str, name: str | None, **given: Any) -> None:
    """Change a key's limits. Options that are not given keep their values."""

    async def change_key(backend: Backend) -> None:
        store = ApiKeyStore(backend.client)
        key = await store.change(key_id, **_changes(given), **({"name": name} if name else {}))
        echo(_line(key, used=await store.used(key.id), costs=await store.costs(key.id)))

    with_backend(redis_url, change_key)


@keys.command()
@click.argument("key_ids", nargs=-1, required=True)
@click.pass_obj
def revoke(redis_url: str | None, key_ids: tuple[str, ...]) -> None:
    """Revoke API keys. Jobs that are queued or started already still run."""

    async def revoke_each(backend: Backend) -> None:
        for key_id in key_ids:
            await ApiKeyStore(backend.client).revoke(key_id)
            echo(f"{key_id} revoked")

    with_backend(redis_url, revoke_each)


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    changes = {name: value for name, value in given.items() if value not in (None, ())}
    if models := changes.get("models"):
        changes["models"] = () if "*" in models else models
    if "priority" in changes:
        changes["priority"] = Priority(changes["priority"])
    if (expires := changes.pop("expires", None)) is not None:
        changes["expires_s"] = int(time.time() + expires) if expires else 0
    return changes


def _line(key: ApiKey, *, used: int, costs: dict[str, int]) -> str:
    amounts = [
        (key.requests_per_minute, "requests/min"),
        (key.tokens_per_minute, "tokens/min"),
        (key.concurrent_jobs, "jobs at a time"),
        (key.tokens_per_month, "tokens/month"),
    ]
    limits = [f"{amount} {unit}" for amount, unit in amounts if amount]
    limits += [f"models {','.join(key.models)}"] if key.models else []
    limits += [f"weight {key.weight:g}"] if key.weight != 1 else []
    limits += [f"expires {time.strftime('%Y-%m-%d', time.gmtime(key.expires_s))}"] if key.expires_s else []
    spent = f"used {used}" + (f", cost {sum(costs.values()) / 1_000_000:.6f}" if costs else "")
    return row(key.id, key.name, key.priority, spent, ", ".join(limits) or "no limits")
