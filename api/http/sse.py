"""Server-sent events on the wire: blocks of finished frames, keep-alives, and an end that never looks clean when the
answer is incomplete."""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing

import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.types import Message, Receive, Scope, Send

from api.http.problems import Problem
from shared.settings import Settings

DONE = b"data: [DONE]\n\n"

# A middleware outside of the others puts its `send` into the scope under this name, for the blocks of a stream. The
# others look at nothing but the start of an answer, and passing blocks through them was a tenth of the relay's work.
BLOCKS_SENT_BY = "penstock.send"

# A stopping server lets its streams end by themselves within uvicorn's graceful timeout.
AppStatus.enable_automatic_graceful_drain = False


class StreamBroken(Exception):
    """Raised after the error frame has been sent: the body must not end cleanly."""


class KeepAlive(ServerSentEvent):
    """The comment of a silent stream. It has no blank line: in a stream that carries `id:` lines, openai clients take a
    blank line after a comment for an event without data, and fail."""

    def encode(self) -> bytes:
        return b": keep-alive\n"


class EventStream(EventSourceResponse):
    """A response that sends each block in one write. A client that reads nothing for the settings' `send_timeout_s` is
    cut off.

    `opened` is closed on every exit, even if the client leaves before the first block."""

    def __init__(
        self, blocks: AsyncGenerator[bytes], settings: Settings, *, opened: ExitStack, headers: dict[str, str]
    ) -> None:
        self._opened = opened
        self._blocks = blocks
        self._send_timeout_s = settings.send_timeout_s
        self._late_at = math.inf  # when the current write has taken too long
        self._gone = False
        super().__init__(
            blocks,
            ping=settings.keep_alive_s,
            ping_message_factory=KeepAlive,
            headers={"cache-control": "no-cache", **headers},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = asyncio.current_task()
        assert serving
        self._send_block: Send = scope.get(BLOCKS_SENT_BY, send)
        self._cut_off_if_late(serving)
        with self._opened:
            try:
                await super().__call__(scope, receive, send)
            except StreamBroken:
                return  # the server closes the connection without the final chunk
            except asyncio.CancelledError:
                if not self._gone:
                    raise
                serving.uncancel()
            finally:
                self._timer.cancel()

    def _cut_off_if_late(self, serving: "asyncio.Task[None]") -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._late_at:
            self._gone = serving.cancel()
            return
        self._timer = loop.call_at(
            min(self._late_at, loop.time() + self._send_timeout_s), self._cut_off_if_late, serving
        )

    async def _stream_response(self, send: Send) -> None:
        """Send the head, each block when it comes, and the end. The library's own version looks at the type of each
        block and logs it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._blocks) as blocks:
            async for block in blocks:
                await self._send_with_timeout(
                    self._send_block, {"type": "http.response.body", "body": block, "more_body": True}
                )
        async with self._send_lock:
            self.active = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """Send a block; note when it must have left, and leave the waiting to `_cut_off_if_late`. The library's own
        version opens a cancel scope for each block, which was a quarter of the relay's work."""
        self._late_at = min(self._late_at, asyncio.get_running_loop().time() + self._send_timeout_s)
        await send(message)
        self._late_at = math.inf


def frame(body: object) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def error_frame(problem: Problem) -> bytes:
    return frame(problem.body)
