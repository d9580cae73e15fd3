"""The composition root of the API: it creates every object and passes it down."""

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

from api.background.batch_runner import BatchRunner
from api.background.webhook_notifier import WebhookNotifier
from api.http import problems
from api.http.auth import LIMIT_HEADERS, Authentication, Authenticator, keys_required
from api.http.docs import described_app
from api.http.json_route import BodyReader
from api.http.middleware import BodyLimit, RequestFrame
from api.http.origins import OriginGuard, origins_of, readers
from api.routes import (
    admin,
    batches,
    billing,
    chat,
    completions,
    conversations,
    embeddings,
    files,
    health,
    hosting,
    jobs,
    messages,
    metrics,
    models,
    moderations,
    rerank,
    responses,
    running,
    score,
    stored_chats,
    tokens,
    webhooks,
)
from api.serving.admission import Admission
from api.serving.hosted_models import HostedModels
from api.serving.model_router import ModelRouter
from api.serving.moderation import Moderation
from api.serving.places import PlaceTeller
from api.serving.redis_monitor import RedisMonitor
from api.serving.relay import Relay
from api.serving.services import Services
from api.stores.batches import BatchStore
from api.stores.conversations import ConversationStore
from api.stores.files import FileStore
from api.stores.json_store import RecordStore
from api.stores.responses import RESPONSES, ResponseStore
from api.stores.stored_chats import STORED_CHATS
from api.stores.webhooks import Webhooks
from shared.catalog.api_keys import ApiKeyStore
from shared.catalog.model_orders import ModelOrders
from shared.observability.metrics import ApiMetrics, watch_loop
from shared.process.tasks import end
from shared.queue.redis_queue import RedisQueue
from shared.redis.client import connect
from shared.redis.health import durability_command
from shared.settings import Settings
from shared.sharded_catalog import (
    ShardedDemand,
    ShardedHosting,
    ShardedJobRecords,
    ShardedModelRegistry,
    ShardedPlaces,
    ShardedRoutes,
    ShardedWaits,
)
from shared.shards import ShardedQueue, ShardMap, shard

log = logging.getLogger(__name__)
OF_THE_JOB = [
    f"x-penstock-{name}" for name in ("job-id", "model", "queue-position", "tokens-ahead", "estimated-wait-s")
]
EXPOSED_HEADERS = ["x-request-id", "request-id", *OF_THE_JOB, "retry-after", *LIMIT_HEADERS]
ROUTES = (
    chat,
    stored_chats,
    completions,
    responses,
    conversations,
    messages,
    embeddings,
    rerank,
    score,
    tokens,
    moderations,
    models,
    files,
    batches,
    webhooks,
    jobs,
    billing,
    running,
    hosting,
    admin,
    health,
    metrics,
)


def make_app(settings: Settings) -> FastAPI:
    counts = ApiMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = _make_services(settings, counts)
        app.state.services = services
        relaying = asyncio.create_task(services.relay.run())
        runner = BatchRunner(services, folder=Path(settings.files), at_once=settings.batch_requests)
        notifier = WebhookNotifier(
            [shard.client for shard in services.shard_map.shards], webhooks=services.webhooks, channel=services.queue
        )
        teller = PlaceTeller(services.relay, services.places, services.hosted_models)
        works = (services.redis_monitor, runner, notifier, teller)
        forever = (*(work.run() for work in works), watch_loop(counts.loop_lag))
        background = [asyncio.create_task(work) for work in forever]
        for task in (relaying, *background):
            task.add_done_callback(_stop_if_failed)
        yield
        await services.relay.close()
        await asyncio.wait([relaying])
        await end(background)
        services.bodies.close()
        await services.moderation.close()
        for place in services.shard_map.shards:
            await place.client.aclose()

    app = described_app(shown=settings.docs, lifespan=lifespan)
    problems.install(app)
    for route in ROUTES if settings.metrics else [route for route in ROUTES if route is not metrics]:
        app.include_router(route.router, tags=[route.__name__.rpartition(".")[2].replace("_", " ")])
    app.add_middleware(BodyLimit, bytes_max=settings.body_bytes_max, file_bytes_max=settings.file_bytes_max)
    app.add_middleware(Authentication)
    _allow_origins(app, settings)
    app.add_middleware(RequestFrame, metrics=counts)
    if settings.otlp_endpoint:
        _trace_requests(app)
    return app


def _allow_origins(app: FastAPI, settings: Settings) -> None:
    if pages := readers(settings):
        app.add_middleware(
            CORSMiddleware,
            **pages,  # type: ignore[arg-type]
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    if origins := origins_of(settings):
        app.add_middleware(OriginGuard, origins=origins)


def _trace_requests(app: FastAPI) -> None:
    """Wrap each request in a span, outside all other middleware; a client's trace context is continued."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(app, excluded_urls="health,ping,metrics", exclude_spans=["receive", "send"])


def _stop_if_failed(task: asyncio.Task[None]) -> None:
    """Stop the process if the task failed, so that the supervisor starts a new one: an API without events or without
    background work must not look alive."""
    if not task.cancelled() and (error := task.exception()):
        log.critical("a part of the API failed; stopping", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


def _make_shard_map(settings: Settings) -> ShardMap:
    shards = []
    for url in settings.redis_urls:
        client = connect(url)
        queue = RedisQueue(
            client,
            job_ttl_s=settings.job_ttl_s,
            failed_ttl_s=settings.failed_ttl_s,
            keep_requests=settings.keep_requests,
            confirm=partial(durability_command, client, settings),
        )
        shards.append(shard(client, queue))
    return ShardMap(shards)


def _make_services(settings: Settings, metrics: ApiMetrics) -> Services:
    shard_map = _make_shard_map(settings)
    client, clients = shard_map.home.client, [each.client for each in shard_map.shards]
    queue, model_registry = ShardedQueue(shard_map), ShardedModelRegistry(shard_map)
    job_records, api_keys = ShardedJobRecords(shard_map), ApiKeyStore(client, counting=clients)
    hosted_models, routes = HostedModels(ShardedHosting(shard_map)), ShardedRoutes(shard_map)
    model_router = ModelRouter(model_registry, routes, ShardedWaits(shard_map), job_records, hosted_models)
    stored = {"ttl_s": settings.response_ttl_s, "tenant_bytes_max": settings.stored_bytes_max}
    relay = Relay(
        f"api-{uuid.uuid4().hex[:12]}",
        queue=queue,
        channel=queue,
        silence_ms=settings.silence_ms,
        buffer_max=settings.stream_buffer_max,
        metrics=metrics,
    )
    return Services(
        settings=settings,
        redis=client,
        shard_map=shard_map,
        queue=queue,
        relay=relay,
        redis_monitor=RedisMonitor(clients, settings, metrics),
        job_records=job_records,
        model_router=model_router,
        hosted_models=hosted_models,
        places=ShardedPlaces(shard_map),
        model_orders=ModelOrders(hosted_models.hosting, routes),
        admission=Admission(model_router, settings),
        moderation=Moderation(settings),
        bodies=BodyReader(),
        webhooks=Webhooks(client, private=settings.webhook_private),
        responses=ResponseStore(client, RESPONSES, **stored),
        conversations=ConversationStore(client, **stored),
        chats=RecordStore(client, STORED_CHATS, **stored),
        files=FileStore(Path(settings.files), client, tenant_bytes_max=settings.files_bytes_max),
        batches=BatchStore(client, owner=relay.name),
        keys=api_keys,
        authenticator=Authenticator(api_keys, queue=queue, required=keys_required(settings)),
        model_registry=model_registry,
        demand=ShardedDemand(shard_map),
        metrics=metrics,
    )
