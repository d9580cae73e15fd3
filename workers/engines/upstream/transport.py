"""HTTP to upstreams: one pool of connections, streams of events, and errors in our words. Leaving a stream closes its
connection, which ends the generation at every upstream that is known to us."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from workers.engines.upstream.answers import error_of, failure_in
from workers.engines.upstream.errors import UpstreamBroken, UpstreamError
from workers.engines.upstream.sse import EventReader

CONNECT_S = 10
ERROR_BYTES_MAX = 64_000
ANSWER_BYTES_MAX = 64_000_000
DONE = b"[DONE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to an upstream; `body` is JSON, and None asks by GET. Neither prompts nor keys are shown."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: Any = field(default=None, repr=False)


class Transport:
    """Use it in the event loop in which it was made. No redirect is followed, so that no key goes elsewhere."""

    def __init__(self, *, silence_s: float) -> None:
        """`silence_s` is the longest time without a byte of an answer."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s)
        connector = aiohttp.TCPConnector(limit=0)  # the places of the worker are the bound
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        self._proxies: dict[str, str | None] = {}  # by scheme and host; `trust_env` would read files for each request

    async def events(self, call: Call) -> AsyncGenerator[bytes, None]:
        """The data of the answer's events, up to `[DONE]`. Raises UpstreamError; a stream that only ends is no error
        here, since the reader of its events knows whether it was whole."""
        reader = EventReader()
        async with self._answer(call) as response:
            if "text/event-stream" not in response.headers.get("content-type", "text/event-stream"):
                raise _no_stream(await response.content.read(ERROR_BYTES_MAX))
            async for piece in response.content.iter_any():
                for data in reader.feed(piece):
                    if data == DONE:
                        return
                    yield data

    async def fetch(self, call: Call) -> Any:
        """The JSON of a whole answer. Raises UpstreamError."""
        async with self._answer(call) as response:
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > ANSWER_BYTES_MAX:
                    raise UpstreamBroken(f"sent more than {ANSWER_BYTES_MAX} bytes")
        return parsed(bytes(body))

    async def status(self, call: Call) -> int:
        """The status of an answer, whose body is not read. Raises UpstreamError if there is none."""
        async with self._response(call) as response:
            return response.status

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def _answer(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        async with self._response(call) as response:
            if response.status != 200:
                raise error_of(response.status, response.headers, await response.content.read(ERROR_BYTES_MAX))
            yield response

    @asynccontextmanager
    async def _response(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        method, data = ("GET", None) if call.body is None else ("POST", orjson.dumps(call.body))
        headers = {"content-type": "application/json", "accept-encoding": "identity", **call.headers}
        try:
            async with self._session.request(
                method, call.url, data=data, headers=headers, allow_redirects=False, proxy=self._proxy_of(call.url)
            ) as response:
                yield response
        except TimeoutError as error:
            raise UpstreamBroken("says nothing for too long") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamBroken(f"cannot be reached: {type(error).__name__}: {error}") from error

    def _proxy_of(self, url: str) -> str | None:
        """The proxy that the environment has for the URL's host, by HTTP_PROXY, HTTPS_PROXY and NO_PROXY."""
        parts = urlsplit(url)
        host = f"{parts.scheme}://{parts.netloc}"
        if host not in self._proxies:
            self._proxies[host] = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
        return self._proxies[host]


def parsed(body: bytes) -> Any:
    """The JSON. Raises UpstreamBroken."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UpstreamBroken(f"sends what is no JSON: {body[:80]!r}") from error


def _no_stream(body: bytes) -> UpstreamError:
    """Some put an error into a whole answer of status 200."""
    content = parsed(body)
    if isinstance(content, dict) and (failed := failure_in(content)):
        return failed
    return UpstreamBroken(f"does not stream: {body[:80]!r}")
