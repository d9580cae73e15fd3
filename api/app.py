"""The composition root of the API: everything is made here and handed down."""

import asyncio
import logging
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from api import problems
from api.admission import Admission
from api.house import House
from api.middleware import BodyLimit, RequestFrame
from api.pressure import Pressure
from api.relay import Relay
from api.routes import admin, chat, completions, embeddings, health, jobs, models
from shared.directory import Directory
from shared.ledger import Ledger
from shared.redis_channel import RedisChannel
from shared.redis_client import connect
from shared.redis_queue import RedisQueue
from shared.settings import Settings
from shared.tasks import end
from shared.telemetry import ApiMetrics

log = logging.getLogger(__name__)


def make_app(settings: Settings, confirm: tuple[Any, ...] = ()) -> FastAPI:
    """`confirm`: what Redis must answer before a job is accepted, as `checkup.confirmation` found it."""
    metrics = ApiMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        house = _furnish(settings, metrics, confirm)
        app.state.house = house
        relaying = asyncio.create_task(house.relay.run())
        relaying.add_done_callback(_stop_if_failed)
        weighing = asyncio.create_task(house.pressure.run())
        yield
        await house.relay.close()
        await asyncio.wait([relaying])
        await end([weighing])
        await house.redis.aclose()

    app = FastAPI(title="Penstock", version="0.1.0", lifespan=lifespan)
    problems.install(app)
    for route in (chat, completions, embeddings, models, jobs, admin, health):
        app.include_router(route.router)
    app.add_middleware(BodyLimit, bytes_max=settings.body_bytes_max)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.strip() for origin in settings.cors_origins.split(",")],
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "x-penstock-job-id", "retry-after"],
        )
    app.add_middleware(RequestFrame, metrics=metrics)
    return app


def _stop_if_failed(relaying: asyncio.Task[None]) -> None:
    """An API that hears nothing must not look alive: stop, and let the supervisor start a new one."""
    if not relaying.cancelled() and (error := relaying.exception()):
        log.critical("the relay failed; stopping", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


def _furnish(settings: Settings, metrics: ApiMetrics, confirm: tuple[Any, ...]) -> House:
    client = connect(settings.redis_url)
    queue = RedisQueue(client, job_ttl_s=settings.job_ttl_s, failed_ttl_s=settings.failed_ttl_s, confirm=confirm)
    directory = Directory(client)
    relay = Relay(
        f"api-{uuid.uuid4().hex[:12]}",
        queue=queue,
        channel=RedisChannel(client),
        silence_ms=settings.silence_ms,
        buffer_max=settings.stream_buffer_max,
        metrics=metrics,
    )
    return House(
        settings=settings,
        redis=client,
        queue=queue,
        relay=relay,
        pressure=Pressure(client, share_max=settings.redis_memory_share),
        ledger=Ledger(client),
        admission=Admission(directory, settings),
        directory=directory,
        metrics=metrics,
    )
