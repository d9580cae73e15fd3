"""uvicorn with bounds that it leaves to a proxy: on the size of a request's head and on the time in which a request
arrives. A connection whose other end is gone is noticed, and each slow reader has a small buffer of its own."""

import asyncio
import resource
import socket
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shared.settings import Settings

SEND_BUFFER_BYTES = 128 * 1024
BODY_PART_BYTES = 1 << 20  # less than this in `request_timeout_s` is too slow
LEAVE_S = 0.5  # this long before the end of the graceful stop, open streams are cut off
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """A connection. uvicorn creates it, with the settings bound beforehand."""

    def __init__(self, *, settings: Settings, **given: Any) -> None:
        super().__init__(**given)
        self._settings = settings
        self._head_bytes = 0
        self._head_complete = False
        self._body_bytes = 0
        self._arriving: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arriving = self._wait_for_request()
        if connection := transport.get_extra_info("socket"):
            _notice_death(connection, self._settings.send_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_complete:
            self._progress(len(data))
        else:
            self._head_bytes += len(data)
            if self._head_bytes > self._settings.header_bytes_max and not self.transport.is_closing():
                self.transport.write(TOO_LARGE)
                self.transport.close()

    def _progress(self, received: int) -> None:
        """Give a large body the same time again for each part that arrives."""
        self._body_bytes += received
        if self._arriving and self._body_bytes >= BODY_PART_BYTES:
            self._body_bytes = 0
            self._arriving.cancel()
            self._arriving = self._wait_for_request()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes, self._head_complete, self._body_bytes = 0, False, 0
        self._arriving = self._arriving or self._wait_for_request()

    def on_headers_complete(self) -> None:
        self._head_complete = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._arrived()
        super().on_message_complete()

    def _wait_for_request(self) -> asyncio.TimerHandle:
        """Cut the connection if the request has not arrived in time."""
        return self.loop.call_later(self._settings.request_timeout_s, self.transport.abort)

    def _arrived(self) -> None:
        if self._arriving:
            self._arriving.cancel()
            self._arriving = None


class ApiServer(uvicorn.Server):
    """The server. Before it stops, it tells the relay that this process is leaving, and not its clients."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._app = app
        self._grace_s = max(1, int(settings.drain_s))
        config = uvicorn.Config(
            app,
            http=partial(BoundedProtocol, settings=settings),  # type: ignore[arg-type]  # uvicorn only calls it
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=self._grace_s,
            server_header=False,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the loop has ended already
            loop = asyncio.get_event_loop()
            loop.call_soon_threadsafe(loop.call_later, self._grace_s - LEAVE_S, self._leave)
        super().handle_exit(sig, frame)

    def _leave(self) -> None:
        self._app.state.services.relay.quiet()


def allow_many_connections() -> None:
    """Raise the process's soft limit of file descriptors to its hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _notice_death(connection: socket.socket, timeout_s: float) -> None:
    """Send keep-alive probes on a silent connection, and bound unacknowledged data where the system can."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(timeout_s * 1000)),
    ):
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
