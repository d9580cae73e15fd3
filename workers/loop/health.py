"""A worker's own small HTTP server for health and metrics. Live is not ready: a draining worker is live."""

from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared.observability.metrics import CONTENT_TYPE, WorkerMetrics
from workers.loop.worker import Worker


class HealthServer(uvicorn.Server):
    """A server that leaves SIGTERM to the worker, which ends it last."""

    def __init__(self, worker: Worker, metrics: WorkerMetrics) -> None:
        async def live(_: Request) -> Response:
            return _answer(worker.alive)

        async def ready(_: Request) -> Response:
            return _answer(worker.accepting)

        async def page(_: Request) -> Response:
            return Response(b"".join([metrics.page(), *worker.metrics_pages()]), media_type=CONTENT_TYPE)

        app = Starlette(routes=[Route("/health/live", live), Route("/health/ready", ready), Route("/metrics", page)])
        super().__init__(uvicorn.Config(app, log_config=None, lifespan="off", access_log=False))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _answer(good: bool) -> Response:
    return JSONResponse({"status": "ok" if good else "unavailable"}, status_code=200 if good else 503)
