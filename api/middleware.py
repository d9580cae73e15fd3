"""Around every request: an id, a clock, a count, and a bound on its body. Plain ASGI, since streams pass through."""

import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import Problem
from shared.telemetry import ApiMetrics

UPLOAD = "/v1/files"
FORM_BYTES = 100_000  # for what a form has beside the file
HEALTH = ("/health/", "/metrics")


class RequestFrame:
    """`x-request-id`, `openai-processing-ms`, and one count for each answer and each refusal."""

    def __init__(self, app: ASGIApp, *, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        request_id = f"req_{secrets.token_hex(12)}"

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(int((time.monotonic() - began) * 1000))
                self._count(scope, message["status"])
                if reason := headers.get("x-penstock-dropped-reason"):
                    self._metrics.refused.labels(reason).inc()
            await send(message)

        await self._app(scope, receive, framed)

    def _count(self, scope: Scope, status: int) -> None:
        if not scope["path"].startswith(HEALTH):
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(status)).inc()


class BodyLimit:
    """Refuses a body over `bytes_max` before it is read whole: by its declared length, or as it arrives. Uploads of
    files may be larger."""

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
            await Problem(code="request_too_large", message=too_large).response()(scope, receive, send)
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
