"""The Redis connection and the options that the operator's commands share."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import click
from redis.asyncio import Redis

from cli.redis_location import operator_settings
from shared.catalog.api_keys import ApiKeyStore
from shared.catalog.hosting import Hosting
from shared.catalog.job_records import JobRecords
from shared.catalog.model_orders import ModelOrders
from shared.catalog.model_registry import ModelRegistry
from shared.catalog.routes import RouteTable
from shared.domain.errors import NotFound
from shared.domain.lifecycle import State
from shared.models_file.problems import did_you_mean
from shared.queue.event_channel import RedisChannel
from shared.queue.redis_queue import RedisQueue
from shared.redis.client import connect
from shared.settings import Settings

FAILED_MAX = 1000
REDIS_URL_HELP = (
    "URL of the Redis that holds the queue. The default is PENSTOCK_REDIS_URL, else the Redis that `penstock up` runs "
    "in this folder."
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The parts of Penstock that the commands use."""

    client: Redis
    settings: Settings
    job_records: JobRecords
    queue: RedisQueue
    channel: RedisChannel
    model_registry: ModelRegistry
    api_keys: ApiKeyStore
    hosting: Hosting
    model_orders: ModelOrders

    async def known_models(self) -> list[str]:
        """List the models that workers announced or that have jobs."""
        announced = [info.name for info in await self.model_registry.models()]
        return sorted({*announced, *await self.job_records.models()})

    async def failed_jobs(self, model: str) -> int:
        """Count the failed jobs that are kept, up to FAILED_MAX."""
        return len(await self.job_records.ids(model, State.FAILED, limit=FAILED_MAX))

    async def require_model(self, name: str) -> None:
        """Raise NotFound for a model without an announcement or a job."""
        known = await self.known_models()
        if name not in known:
            near = did_you_mean(name, known) or f". Known models: {', '.join(known) or 'none'}."
            raise NotFound(f"There is no model {name!r}{near}")


class OperatorGroup(click.Group):
    """A group that takes `--redis-url` before or after the sub-command. The URL becomes the context's object."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(_redis_url())

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params.append(_redis_url())
        super().add_command(cmd, name)


def _redis_url() -> click.Option:
    def choose(context: click.Context, _: click.Parameter, url: str | None) -> None:
        context.obj = url or context.obj

    return click.Option(["--redis-url"], help=REDIS_URL_HELP, expose_value=False, callback=choose)


@asynccontextmanager
async def open_backend(redis_url: str | None) -> AsyncIterator[Backend]:
    settings = operator_settings(redis_url)
    client: Redis = connect(settings.redis_url)
    queue = RedisQueue(
        client,
        job_ttl_s=settings.job_ttl_s,
        failed_ttl_s=settings.failed_ttl_s,
        keep_requests=settings.keep_requests,
    )
    try:
        records, registry = JobRecords(client), ModelRegistry(client)
        hosting = Hosting(client)
        yield Backend(
            client=client,
            settings=settings,
            job_records=records,
            queue=queue,
            channel=RedisChannel(client),
            model_registry=registry,
            api_keys=ApiKeyStore(client),
            hosting=hosting,
            model_orders=ModelOrders(hosting, RouteTable(client)),
        )
    finally:
        await client.aclose()


def with_backend(redis_url: str | None, command: Callable[[Backend], Awaitable[None]]) -> None:
    async def run() -> None:
        async with open_backend(redis_url) as backend:
            await command(backend)

    asyncio.run(run())
