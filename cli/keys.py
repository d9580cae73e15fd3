"""`penstock keys`: who may use the API, and how much of it."""

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


def limits(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `create` and `limit` share."""
    options = [
        click.option("--model", "-m", "models", multiple=True, help="May use this model only; repeatable, * for all."),
        click.option("--requests-per-minute", type=click.IntRange(0), help="0 for no limit."),
        click.option("--tokens-per-minute", type=click.IntRange(0), help="Of prompts and answers; 0 for no limit."),
        click.option("--concurrent-jobs", type=click.IntRange(0), help="Waiting and running; 0 for no limit."),
        click.option("--tokens-per-month", type=click.IntRange(0), help="0 for no limit."),
        click.option("--weight", type=click.FloatRange(0, 1000, min_open=True), help="Its share beside other keys."),
        click.option(
            "--priority", type=click.Choice(list(map(str, Priority))), help="Class of its jobs, and the most."
        ),
        click.option("--expires", type=Age(), help="In how long, like 90d; 0s for never."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@keys.command()
@click.argument("name")
@click.option("--secret", help="A key that clients have already, instead of a new one; - reads it from the input.")
@limits
@click.pass_obj
def create(redis_url: str | None, /, name: str, secret: str | None, **given: Any) -> None:
    """Make a key and print it, once."""
    if secret == STDIN:
        secret = sys.stdin.readline().strip()
    if secret is not None and len(secret) < SECRET_MIN:
        raise click.BadParameter(f"at least {SECRET_MIN} characters", param_hint="--secret")

    async def work(backend: Backend) -> None:
        key, made = await ApiKeyStore(backend.client).create(name, secret=secret or "", **_changes(given))
        echo(row(key.id, key.name), err=True)
        echo(made)

    with_backend(redis_url, work)


@keys.command("list")
@json_option
@click.pass_obj
def list_keys(redis_url: str | None, as_json: bool) -> None:
    """List the keys with their limits and what they used this month."""

    async def work(backend: Backend) -> None:
        ring = ApiKeyStore(backend.client)
        found = [(key, await ring.used(key.id)) for key in await ring.all()]
        if as_json:
            echo_json([asdict(key) | {"tokens_this_month": used} for key, used in found])
            return
        for key, used in found:
            echo(_line(key, used=used))

    with_backend(redis_url, work)


@keys.command()
@click.argument("key_id")
@limits
@click.option("--name", help="Call it otherwise.")
@click.pass_obj
def limit(redis_url: str | None, /, key_id: str, name: str | None, **given: Any) -> None:
    """Change what a key may use; what is not named stays."""

    async def work(backend: Backend) -> None:
        ring = ApiKeyStore(backend.client)
        key = await ring.change(key_id, **_changes(given), **({"name": name} if name else {}))
        echo(_line(key, used=await ring.used(key.id)))

    with_backend(redis_url, work)


@keys.command()
@click.argument("key_ids", nargs=-1, required=True)
@click.pass_obj
def revoke(redis_url: str | None, key_ids: tuple[str, ...]) -> None:
    """Make keys unknown. What they have enqueued runs on."""

    async def work(backend: Backend) -> None:
        for key_id in key_ids:
            await ApiKeyStore(backend.client).revoke(key_id)
            echo(f"{key_id} revoked")

    with_backend(redis_url, work)


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    changes = {name: value for name, value in given.items() if value not in (None, ())}
    if models := changes.get("models"):
        changes["models"] = () if "*" in models else models
    if "priority" in changes:
        changes["priority"] = Priority(changes["priority"])
    if (expires := changes.pop("expires", None)) is not None:
        changes["expires_s"] = int(time.time() + expires) if expires else 0
    return changes


def _line(key: ApiKey, *, used: int) -> str:
    about = [
        (key.requests_per_minute, "requests/min"),
        (key.tokens_per_minute, "tokens/min"),
        (key.concurrent_jobs, "jobs at a time"),
        (key.tokens_per_month, "tokens/month"),
    ]
    words = [f"{amount} {what}" for amount, what in about if amount]
    words += [f"models {','.join(key.models)}"] if key.models else []
    words += [f"weight {key.weight:g}"] if key.weight != 1 else []
    words += [f"expires {time.strftime('%Y-%m-%d', time.gmtime(key.expires_s))}"] if key.expires_s else []
    return row(key.id, key.name, key.priority, f"used {used}", ", ".join(words) or "no limits")
