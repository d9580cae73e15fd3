"""Server-sent events on the wire: blocks of finished frames, keep-alives, and an end that never looks clean when the
answer is not whole."""

from collections.abc import AsyncIterator
from contextlib import ExitStack

import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus, SendTimeoutError
from starlette.types import Receive, Scope, Send

from api.problems import Problem
from shared.settings import Settings

DONE = b"data: [DONE]\n\n"

# A stopping server lets its streams end by themselves within uvicorn's graceful time-out.
AppStatus.enable_automatic_graceful_drain = False


class StreamBroken(Exception):
    """Raised after the error frame has been sent: the body must not end cleanly."""


class KeepAlive(ServerSentEvent):
    """A comment without a blank line: in a stream that carries `id:` lines, openai clients take a blank line after a
    comment for an event without data, and fail."""

    def encode(self) -> bytes:
        return b": keep-alive\n"


class EventStream(EventSourceResponse):
    """Bytes are passed on as they are, one write for each block. A client that takes nothing for the settings'
    `send_timeout_s` counts as gone.

    `opened` is closed however this ends: a client that leaves early may leave before the first block is asked for."""

    def __init__(
        self, blocks: AsyncIterator[bytes], settings: Settings, *, opened: ExitStack, headers: dict[str, str]
    ) -> None:
        self._opened = opened
        super().__init__(
            blocks,
            ping=settings.keep_alive_s,
            ping_message_factory=KeepAlive,
            send_timeout=settings.send_timeout_s,
            headers={"cache-control": "no-cache", **headers},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._opened:
            try:
                await super().__call__(scope, receive, send)
            except (StreamBroken, SendTimeoutError):
                return  # the server closes the connection without the final chunk


def frame(body: object) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def error_frame(problem: Problem) -> bytes:
    return frame(problem.body)
