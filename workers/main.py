"""A worker process: read the settings, check Redis, load the models, serve, leave."""

import asyncio
import logging
import os
import signal
import socket
import uuid
from collections.abc import Sequence
from functools import partial

from redis.asyncio import Redis

from shared import rq_view
from shared.catalog.model_registry import ModelRegistry
from shared.domain.errors import SettingsError
from shared.domain.job import ModelInfo
from shared.observability.metrics import WorkerMetrics
from shared.observability.tracing import start_tracing
from shared.process.garbage import spare_what_stays
from shared.process.sockets import listen, url_of
from shared.queue.event_channel import RedisChannel
from shared.queue.redis_queue import RedisQueue, iso_now
from shared.redis.client import connect, translated
from shared.redis.health import patiently, require_healthy
from shared.settings import Settings
from workers.loading.loaded import Loaded, load
from workers.loading.model_spec import ModelSpec
from workers.loop.health import HealthServer
from workers.loop.worker import Worker
from workers.process.ranks import rank, world
from workers.process.succession import tell_successors
from workers.protocols import EngineBroken

log = logging.getLogger(__name__)
WORKER_TTL_S = 10
BROKEN = 70  # exit status: the engine is lost; a new process may serve


def run(specs: Sequence[ModelSpec], settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; under torchrun, as one of its ranks. Raises SettingsError if it cannot start."""
    if world() > 1 and (len(specs) > 1 or specs[0].engine != "native"):
        raise SettingsError("MODEL: under torchrun a worker serves one model, by the native engine")
    if rank() == 0:
        start_tracing(settings, service="penstock-worker")
        asyncio.run(serve(specs, settings))
    else:
        _follow(specs[0], settings)


def _follow(spec: ModelSpec, settings: Settings) -> None:
    """Compute the steps that rank 0 sends, until it ends them or is gone."""
    from workers.engines.native.loader import load_engine
    from workers.engines.native.weights.parallel import follow

    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, signal.SIG_IGN)
    engine = load_engine(spec, settings)
    try:
        follow(engine)
    except Exception:
        log.critical("the first rank is gone", exc_info=True)
        logging.shutdown()
        os._exit(BROKEN)


async def serve(specs: Sequence[ModelSpec], settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, or until SIGUSR1, which hands running jobs back at once. Raises SettingsError if it
    cannot start."""
    client, blocking = connect(settings.redis_url), connect(settings.redis_url, retries=0)
    for warning in await patiently(partial(require_healthy, client, settings), settings):
        log.warning(warning)
    bound = listen(settings.worker_host, settings.worker_port, setting="PENSTOCK_WORKER_PORT")
    models = [await load(spec, settings) for spec in specs]
    spare_what_stays()
    presence = _Presence(client, [info for model in models for info in model.infos], url_of(bound))
    metrics = WorkerMetrics()
    worker = _worker(presence, models, client, blocking, settings, metrics)
    presence.sleeps = worker.sleeps
    server = HealthServer(worker, metrics)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, worker.stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, worker.stop_now)
    log.info("serving", extra={"worker": presence.name, "models": presence.models, "url": presence.url})
    try:
        await worker.run()
    except* EngineBroken:
        log.critical("giving up; the supervisor starts a new worker", exc_info=True)
        logging.shutdown()
        os._exit(BROKEN)  # an orderly exit would wait for a hung engine thread
    finally:
        server.should_exit = True
        await serving
        for model in models:
            await asyncio.to_thread(model.close)
        await presence.leave()
        tell_successors()
        await client.aclose()
        await blocking.aclose()


class _Presence:
    """This worker's entries in RQ's records and in the model registry."""

    def __init__(self, client: Redis, infos: Sequence[ModelInfo], url: str) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.models = [info.name for info in infos]
        self.url = url
        self._client = client
        self._infos = infos
        self._directory = ModelRegistry(client)
        self._born = iso_now()
        self._asleep = False
        self.sleeps = False  # as its models can

    async def announce(self) -> None:
        """Announce the models first, so that whoever sees the worker can ask for its models."""
        for info in self._infos:
            await self._directory.announce(info)
        with translated():
            await rq_view.register_worker(
                self._client,
                self.name,
                self.models,
                born=self._born,
                ttl_s=WORKER_TTL_S,
                url=self.url,
                sleeps=self.sleeps,
                asleep=self._asleep,
            )

    async def tell_rest(self, asleep: bool) -> None:
        self._asleep = asleep
        await self.announce()

    async def leave(self) -> None:
        try:
            await rq_view.unregister_worker(self._client, self.name, self.models)
        except Exception as error:  # Redis is away: the record expires by itself
            log.warning("not unregistered", extra={"error": str(error)})


def _worker(
    presence: _Presence,
    models: Sequence[Loaded],
    client: Redis,
    blocking: Redis,
    settings: Settings,
    metrics: WorkerMetrics,
) -> Worker:
    queue = RedisQueue(
        client,
        blocking=blocking,
        lease_ms=settings.lease_ms,
        attempts_max=settings.attempts_max,
        job_ttl_s=settings.job_ttl_s,
        failed_ttl_s=settings.failed_ttl_s,
        worker_ttl_s=WORKER_TTL_S,
    )
    return Worker(
        presence.name,
        models,
        queue=queue,
        channel=RedisChannel(client),
        announce=presence.announce,
        tell_rest=presence.tell_rest,
        settings=settings,
        metrics=metrics,
    )
