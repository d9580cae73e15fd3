"""What the operator's commands share: a connection to their Redis, and the option that names it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import click
from redis.asyncio import Redis

from cli.redis_location import operator_settings
from shared.catalog.job_records import JobRecords
from shared.catalog.model_registry import ModelRegistry
from shared.domain.errors import NotFound
from shared.queue.event_channel import RedisChannel
from shared.queue.redis_queue import RedisQueue
from shared.redis.client import connect

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@dataclass(frozen=True, slots=True)
class Backend:
    """What the commands work with."""

    client: Redis
    job_records: JobRecords
    queue: RedisQueue
    channel: RedisChannel
    model_registry: ModelRegistry

    async def known_models(self) -> list[str]:
        """Models that workers announced, and those of which there are jobs."""
        announced = [info.name for info in await self.model_registry.models()]
        return sorted({*announced, *await self.job_records.models()})

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
async def open_backend(redis_url: str | None) -> AsyncIterator[Backend]:
    settings = operator_settings(redis_url)
    client: Redis = connect(settings.redis_url)
    queue = RedisQueue(client, job_ttl_s=settings.job_ttl_s, failed_ttl_s=settings.failed_ttl_s)
    try:
        yield Backend(client, JobRecords(client), queue, RedisChannel(client), ModelRegistry(client))
    finally:
        await client.aclose()


def with_backend(redis_url: str | None, work: Callable[[Backend], Awaitable[None]]) -> None:
    async def run() -> None:
        async with open_backend(redis_url) as backend:
            await work(backend)

    asyncio.run(run())
