"""The middleware of every request: an id, its time, a count, and a bound on its body. It is plain ASGI, since streams
pass through."""

import logging
import secrets
import time
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.anthropic import speaks_anthropic
from api.http.problems import Problem
from api.http.sse import BLOCKS_SENT_BY
from shared.observability.metrics import ApiMetrics

log = logging.getLogger(__name__)
UPLOAD = "/v1/files"
FORM_BYTES = 100_000  # room for the parts of a form beside the file
PATH_MAX = 200  # characters of a path in the log
HEALTH = ("/health", "/ping", "/metrics")
VERSIONED = "/v1"
# Paths that clients of vLLM, SGLang and llama.cpp also use without a version.
UNVERSIONED = frozenset(
    {
        "chat",
        "classify",
        "completions",
        "detokenize",
        "embeddings",
        "models",
        "pooling",
        "rerank",
        "responses",
        "score",
        "tokenize",
    }
)
SECOND_RERANK = "/v2/rerank"  # Cohere's, which vLLM has, too


class RequestFrame:
    """Adds `x-request-id` and `openai-processing-ms`, and counts each answer and each refusal."""

    def __init__(self, app: ASGIApp, *, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        request_id = f"req_{secrets.token_hex(12)}"
        state = {**scope.get("state", {}), "request_id": request_id}
        scope = {**scope, "path": versioned(scope["path"]), "state": state, BLOCKS_SENT_BY: send}
        about: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "path": scope["path"][:PATH_MAX]}
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the server, which has the other scope, sends no body

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if speaks_anthropic(scope):
                    headers["request-id"] = request_id
                headers["openai-processing-ms"] = str(int((time.monotonic() - began) * 1000))
                about["status"] = message["status"]
                if job_id := headers.get("x-penstock-job-id"):
                    about["job_id"] = job_id
                if reason := headers.get("x-penstock-dropped-reason"):
                    self._metrics.refused.labels(reason).inc()
            await send(message)

        try:
            await self._app(scope, receive, framed)
        finally:
            if not scope["path"].startswith(HEALTH):
                self._account(getattr(scope.get("route"), "path", "none"), about, time.monotonic() - began)

    def _account(self, route: str, about: dict[str, Any], seconds: float) -> None:
        """Count and log a request whose answer has ended or was broken off."""
        self._metrics.requests.labels(route, str(about.get("status", "none"))).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        log.info("answered", extra=about | {"seconds": round(seconds, 3)})


class BodyLimit:
    """Refuses a body over `bytes_max` before it is read completely: by its declared length, or as it arrives. Uploads
    of files may be larger."""

    def __init__(self, app: ASGIApp, *, bytes_max: int, file_bytes_max: int) -> None:
        self._app = app
        self._bytes_max = bytes_max
        self._upload_max = file_bytes_max + FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        bytes_max = self._upload_max if scope["path"] == UPLOAD else self._bytes_max
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        too_large = f"The request body is larger than {bytes_max} bytes."
        if not declared.isdigit() or int(declared) > bytes_max:
            await Problem(code="request_too_large", message=too_large).response(scope)(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > bytes_max:
                raise HTTPException(413, too_large)
            return message

        await self._app(scope, bounded, send)


def versioned(path: str) -> str:
    """Return the path under `/v1` that an unversioned one stands for; any other path as it is."""
    if path == SECOND_RERANK:
        return "/v1/rerank"
    first = path.split("/", 2)[1] if path.startswith("/") else ""
    return VERSIONED + path if first in UNVERSIONED else path
