"""Server-sent events on the wire: blocks of finished frames, keep-alives, and an end that never looks clean when the
answer is incomplete."""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, suppress

import orjson
from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.types import Message, Receive, Scope, Send

from api.http.problems import Problem
from shared.process.tasks import end
from shared.settings import Settings

DONE = b"data: [DONE]\n\n"
# The comment of a silent stream. It has no blank line: in a stream that carries `id:` lines, openai clients take a
# blank line after a comment for an event without data, and fail.
KEEP_ALIVE = b": keep-alive\n"

# A middleware outside of the others puts its `send` into the scope under this name, for the blocks of a stream. The
# others look at nothing but the start of an answer, and passing blocks through them was a tenth of the relay's work.
BLOCKS_SENT_BY = "penstock.send"

# A stopping server lets its streams end by themselves within uvicorn's graceful timeout.
AppStatus.enable_automatic_graceful_drain = False


class StreamBroken(Exception):
    """Raised after the error frame has been sent: the body must not end cleanly."""


class EventStream(EventSourceResponse):
    """A response that sends each block in one write. A client that reads nothing for the settings' `send_timeout_s` is
    cut off. `keep_alive` is sent while there is nothing else to send.

    `opened` is closed on every exit, even if the client leaves before the first block."""

    def __init__(
        self,
        blocks: AsyncGenerator[bytes],
        settings: Settings,
        *,
        opened: ExitStack,
        headers: dict[str, str],
        keep_alive: bytes = KEEP_ALIVE,
    ) -> None:
        self._opened = opened
        self._keep_alive = keep_alive
        self._blocks = blocks
        self._send_timeout_s = settings.send_timeout_s
        self._late_at = math.inf  # when the current write has taken too long
        super().__init__(blocks, ping=settings.keep_alive_s, headers={"cache-control": "no-cache", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream to the end, or until the client leaves or is cut off. The library's own version starts four tasks in a
        group, which took a sixth of the work for a short answer."""
        self._send_block: Send = scope.get(BLOCKS_SENT_BY, send)
        with self._opened:
            streaming = asyncio.create_task(self._stream_response(send))
            leaving = asyncio.create_task(self._listen_for_disconnect(receive))
            self._pinging = streaming
            self._cut_off_if_late(leaving)
            self._ping_in_time(first=True)
            try:
                await asyncio.wait({streaming, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if streaming.done():
                    with suppress(StreamBroken):  # the server closes the connection without the final chunk
                        streaming.result()
            finally:
                self._late_timer.cancel()
                self._ping_timer.cancel()
                await end({streaming, leaving, self._pinging})

    def _cut_off_if_late(self, leaving: "asyncio.Task[None]") -> None:
        """Look whether the current write has taken too long. The client then counts as gone."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._late_at:
            leaving.cancel()
            return
        self._late_timer = loop.call_at(
            min(self._late_at, loop.time() + self._send_timeout_s), self._cut_off_if_late, leaving
        )

    def _ping_in_time(self, *, first: bool = False) -> None:
        """Send a keep-alive at each interval, unless a block is being sent."""
        if not first and self.active and self._late_at == math.inf:
            self._pinging = asyncio.create_task(self._send_unless_ended(self._keep_alive))
        self._ping_timer = asyncio.get_running_loop().call_later(self.ping_interval, self._ping_in_time)

    async def _send_unless_ended(self, block: bytes) -> None:
        async with self._send_lock:
            if self.active:
                await self._send_with_timeout(
                    self._send_block, {"type": "http.response.body", "body": block, "more_body": True}
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
