"""What the operator's commands share: a connection to their Redis, and the option that names it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import click
from redis.asyncio import Redis

from cli.where import operator_settings
from shared.directory import Directory
from shared.errors import NotFound
from shared.ledger import Ledger
from shared.lifecycle import State
from shared.redis_channel import RedisChannel
from shared.redis_client import connect
from shared.redis_queue import RedisQueue

FAILED_MAX = 1000

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@dataclass(frozen=True, slots=True)
class Desk:
    """What the commands work with."""

    client: Redis
    ledger: Ledger
    queue: RedisQueue
    channel: RedisChannel
    directory: Directory

    async def known_models(self) -> list[str]:
        """Models that workers announced, and those of which there are jobs."""
        announced = [info.name for info in await self.directory.models()]
        return sorted({*announced, *await self.ledger.models()})

    async def failed_jobs(self, model: str) -> int:
        """How many are kept; no more than FAILED_MAX are counted."""
        return len(await self.ledger.ids(model, State.FAILED, limit=FAILED_MAX))

    async def require_model(self, name: str) -> None:
        """Raise NotFound for a model that was never here."""
        known = await self.known_models()
        if name not in known:
            raise NotFound(f"There is no model {name!r} here; known: {', '.join(known) or 'none'}.")


class OperatorGroup(click.Group):
    """A group whose `--redis-url` may stand before or after the sub-command. The URL becomes the context's object."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(_redis_url())

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params.append(_redis_url())
        super().add_command(cmd, name)


def _redis_url() -> click.Option:
    def choose(context: click.Context, _: click.Parameter, url: str | None) -> None:
        context.obj = url or context.obj

    about = "Where the queue lives; by default the one that `penstock up` runs here."
    return click.Option(["--redis-url"], help=about, expose_value=False, callback=choose)


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
