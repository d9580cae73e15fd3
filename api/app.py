"""The composition root of the API: everything is made here and handed down."""

import asyncio
import logging
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from api import problems
from api.admission import Admission
from api.auth import LIMIT_HEADERS, Authentication, Gate, keys_required
from api.batch import BatchStore
from api.batch_runner import BatchRunner
from api.bodies import BodyReader
from api.docs import described_app
from api.files import FileStore
from api.house import House
from api.middleware import BodyLimit, RequestFrame
from api.notifier import Notifier
from api.origins import OriginGuard, origins_of, readers
from api.pressure import Pressure
from api.relay import Relay
from api.responses import ResponseStore
from api.routes import (
    admin,
    batches,
    billing,
    chat,
    completions,
    embeddings,
    files,
    health,
    jobs,
    metrics,
    models,
    rerank,
    responses,
    stored_chats,
    tokens,
    webhooks,
)
from api.stored_chats import ChatStore
from api.webhooks import Webhooks
from shared.api_key import KeyRing
from shared.checkup import confirmation
from shared.fleet import Fleet, FleetDemand, FleetDirectory, FleetLedger, Places, shard
from shared.redis_client import connect
from shared.redis_queue import RedisQueue
from shared.settings import Settings
from shared.tasks import end
from shared.telemetry import ApiMetrics, watch_loop

log = logging.getLogger(__name__)
ROUTES = (
    chat,
    stored_chats,
    completions,
    responses,
    embeddings,
    rerank,
    tokens,
    models,
    files,
    batches,
    webhooks,
    jobs,
    billing,
    admin,
    health,
    metrics,
)


def make_app(settings: Settings) -> FastAPI:
    counts = ApiMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        house = _furnish(settings, counts)
        app.state.house = house
        relaying = asyncio.create_task(house.relay.run())
        runner = BatchRunner(house, folder=Path(settings.files), at_once=settings.batch_requests)
        notifier = Notifier(
            [shard.client for shard in house.places.shards], webhooks=house.webhooks, channel=house.channel
        )
        forever = (house.pressure.run(), runner.run(), notifier.run(), watch_loop(counts.loop_lag))
        background = [asyncio.create_task(work) for work in forever]
        for task in (relaying, *background):
            task.add_done_callback(_stop_if_failed)
        yield
        await house.relay.close()
        await asyncio.wait([relaying])
        await end(background)
        house.bodies.close()
        for place in house.places.shards:
            await place.client.aclose()

    app = described_app(shown=settings.docs, lifespan=lifespan)
    problems.install(app)
    for route in ROUTES if settings.metrics else [route for route in ROUTES if route is not metrics]:
        app.include_router(route.router, tags=[route.__name__.rpartition(".")[2].replace("_", " ")])
    app.add_middleware(BodyLimit, bytes_max=settings.body_bytes_max, file_bytes_max=settings.file_bytes_max)
    app.add_middleware(Authentication)
    _let_pages_in(app, settings)
    app.add_middleware(RequestFrame, metrics=counts)
    if settings.otlp_endpoint:
        _trace_requests(app)
    return app


def _let_pages_in(app: FastAPI, settings: Settings) -> None:
    if pages := readers(settings):
        app.add_middleware(
            CORSMiddleware,
            **pages,  # type: ignore[arg-type]
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "x-penstock-job-id", "retry-after", *LIMIT_HEADERS],
        )
    if origins := origins_of(settings):
        app.add_middleware(OriginGuard, origins=origins)


def _trace_requests(app: FastAPI) -> None:
    """A span around each request, outside of everything else; one that came with a trace context goes on with it."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(app, excluded_urls="health/,metrics", exclude_spans=["receive", "send"])


def _stop_if_failed(task: asyncio.Task[None]) -> None:
    """An API that hears nothing, or does no more what it does beside, must not look alive: stop, and let the supervisor
    start a new one."""
    if not task.cancelled() and (error := task.exception()):
        log.critical("a part of the API failed; stopping", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


def _places(settings: Settings) -> Places:
    shards = []
    for url in settings.redis_urls:
        client = connect(url)
        queue = RedisQueue(
            client,
            job_ttl_s=settings.job_ttl_s,
            failed_ttl_s=settings.failed_ttl_s,
            confirm=partial(confirmation, client, settings),
        )
        shards.append(shard(client, queue))
    return Places(shards)


def _furnish(settings: Settings, metrics: ApiMetrics) -> House:
    places = _places(settings)
    client, clients = places.home.client, [each.client for each in places.shards]
    fleet, directory = Fleet(places), FleetDirectory(places)
    ring = KeyRing(client, counting=clients)
    stored = {"ttl_s": settings.response_ttl_s, "tenant_bytes_max": settings.stored_bytes_max}
    relay = Relay(
        f"api-{uuid.uuid4().hex[:12]}",
        queue=fleet,
        channel=fleet,
        silence_ms=settings.silence_ms,
        buffer_max=settings.stream_buffer_max,
        metrics=metrics,
    )
    return House(
        settings=settings,
        redis=client,
        places=places,
        queue=fleet,
        relay=relay,
        pressure=Pressure(clients, settings, metrics),
        ledger=FleetLedger(places),
        admission=Admission(directory, settings),
        channel=fleet,
        bodies=BodyReader(),
        webhooks=Webhooks(client, private=settings.webhook_private),
        responses=ResponseStore(client, **stored),
        chats=ChatStore(client, **stored),
        files=FileStore(Path(settings.files), client, tenant_bytes_max=settings.files_bytes_max),
        batches=BatchStore(client, owner=relay.name),
        keys=ring,
        gate=Gate(ring, required=keys_required(settings)),
        directory=directory,
        demand=FleetDemand(places),
        metrics=metrics,
    )
