"""Server-sent events on the wire: blocks of finished frames, keep-alives, and an end that never looks clean when the
answer is not whole."""

from collections.abc import AsyncIterator
from contextlib import ExitStack

import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.types import Receive, Scope, Send

from api.problems import Problem

DONE = b"data: [DONE]\n\n"

# A stopping server lets its streams end by themselves within uvicorn's graceful time-out.
AppStatus.enable_automatic_graceful_drain = False


class StreamBroken(Exception):
    """Raised after the error frame has been sent: the body must not end cleanly."""


class EventStream(EventSourceResponse):
    """Bytes are passed on as they are, one write for each block. Chat streams carry no `id:` lines, so a comment with
    a blank line is a safe keep-alive.

    `opened` is closed however this ends: a client that leaves early may leave before the first block is asked for."""

    def __init__(self, blocks: AsyncIterator[bytes], *, keep_alive_s: float, opened: ExitStack) -> None:
        self._opened = opened
        super().__init__(
            blocks,
            ping=keep_alive_s,
            ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
            headers={"cache-control": "no-cache"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._opened:
            try:
                await super().__call__(scope, receive, send)
            except StreamBroken:
                return  # the server closes the connection without the final chunk


def frame(body: object) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def error_frame(problem: Problem) -> bytes:
    return frame(problem.body)
