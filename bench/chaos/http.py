"""A minimal HTTP/1.1 client for streams, strict about how a body ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SILENCE_S = 100.0


class Broken(Exception):
    """The connection ended before the answer did."""


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def body(self, silence_s: float = SILENCE_S) -> bytes:
        return b"".join([piece async for piece in self.pieces(silence_s)])

    async def pieces(self, silence_s: float = SILENCE_S) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises Broken if the body ends early, or after that long without a byte."""

        async def read(count: int | None = None) -> bytes:
            async with asyncio.timeout(silence_s):
                return await (self.reader.readuntil(b"\r\n") if count is None else self.reader.readexactly(count))

        try:
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(await read(), 16):
                    yield (await read(size + 2))[:-2]
                await read(2)
            elif length := int(self.headers.get("content-length", 0)):
                yield await read(length)
        except (asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise Broken(str(error)) from error

    def close(self) -> None:
        self.writer.transport.abort()


async def call(
    url: str, *, method: str = "POST", body: dict[str, Any] | bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Send a request; return the status and the JSON body. Raises Broken without an answer."""
    answer = await ask(url, method=method, body=body, headers=headers)
    try:
        found = json.loads(await answer.body())
        return answer.status, found if isinstance(found, dict) else {}
    except ValueError as error:
        raise Broken(f"status {answer.status} without JSON") from error
    finally:
        answer.close()


async def ask(
    url: str, *, method: str = "POST", body: dict[str, Any] | bytes | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """Send a request; return its answer. Raises Broken without one. A cancelled call closes its connection."""
    parts = urlsplit(url)
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    head = {"host": parts.netloc, "content-length": str(len(data)), "content-type": "application/json"}
    lines = [f"{method} {path} HTTP/1.1", *[f"{name}: {value}" for name, value in (head | (headers or {})).items()]]
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except OSError as error:
        raise Broken(str(error)) from error
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except (asyncio.IncompleteReadError, OSError) as error:
        writer.transport.abort()
        raise Broken(str(error)) from error
    except asyncio.CancelledError:
        writer.transport.abort()
        raise
    pairs = [line.partition(": ") for line in rest if line]
    return Answer(int(first.split()[1]), {name.lower(): value for name, _, value in pairs}, reader, writer)
