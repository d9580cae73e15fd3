"""One upstream: its calls, and how its answers are read."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import aclosing, contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any

import orjson

from shared.domain.errors import SettingsError
from shared.domain.events import Usage
from shared.queue.protocols import Quota
from workers.engines.upstream.breaker import Breaker
from workers.engines.upstream.chat_protocols import PROTOCOLS, Asked
from workers.engines.upstream.errors import UpstreamBroken, UpstreamBusy, UpstreamError
from workers.engines.upstream.messages_body import ANTHROPIC_VERSION
from workers.engines.upstream.options import Target
from workers.engines.upstream.providers import OWNERS, PROVIDERS, Provider
from workers.engines.upstream.reports import Reports
from workers.engines.upstream.token_protocols import TokenChunk, TokenProtocol, TokenRequest, likeliest
from workers.engines.upstream.transport import Call, Transport
from workers.scheduling.sequence import Sampled
from workers.source import Piece, Said

log = logging.getLogger(__name__)
NO_REPORTS = Reports()
LACKING = frozenset({403, 404, 405})


class Upstream:
    """`model` is its own name of the model. The key is in `_headers` alone, and nothing shows them."""

    def __init__(
        self,
        target: Target,
        transport: Transport,
        *,
        model: str,
        reports: Reports = NO_REPORTS,
    ) -> None:
        """`reports` tell all workers how it does. Raises SettingsError for a key whose variable is not set."""
        self.target = target
        self.provider = target.kind
        self.breaker = Breaker()
        self.model = target.model or model
        self._transport = transport
        key = target.secret()
        self.quota = Quota(
            name=f"upstream:{sha256(f'{target.url} {self.model} {key}'.encode()).hexdigest()[:16]}",
            requests=target.requests_per_minute,
            tokens=target.tokens_per_minute,
            at_once=target.requests_at_once,
        )
        self._headers = key_headers(target.kind, key)
        self._reports = reports
        self._paused_until = 0.0

    def __repr__(self) -> str:
        return f"<upstream {self.target.shown}>"

    def cost(self, usage: Usage) -> int:
        """Return what so many tokens cost here, in millionths of the price's currency; 0 without a price."""
        return self.target.price.cost_micros(usage) if self.target.price else 0

    def spend(self) -> None:
        """Tell that it is asked for a job that no claim has taken from its quota."""
        self._reports.spend(self.quota, 1)

    def give_back(self) -> None:
        """Tell that it is not asked for a job that a claim has taken from its quota."""
        self._reports.spend(self.quota, -1)

    @property
    def open_for(self) -> float:
        """For how many seconds it must not be asked."""
        now = time.monotonic()
        return max(self.breaker.open_for(now), self._paused_until - now, 0.0)

    async def answer(self, request: Asked, said: Said) -> AsyncGenerator[list[Piece], None]:
        """The pieces of an answer that continues `said`, those of a chunk at a time. Raises UpstreamError, and
        InvalidRequest for what this provider does not take."""
        protocol = PROTOCOLS[self.provider.speaks]
        path, body = protocol.request(request, self.provider, self.model, said)
        base = self.provider.prefill_url if said.text and self.target.url == self.provider.url else ""
        reader = protocol.reader(request, self.provider, said)
        with self.judged():
            async with aclosing(self._transport.events(self.call(path, body, base=base))) as events:
                async for data in events:
                    if pieces := reader.read(data):
                        self._succeeded()
                        yield pieces
            if not reader.ended:
                raise UpstreamBroken("ends its stream in the middle")

    async def tokens(self, protocol: TokenProtocol, request: TokenRequest) -> AsyncGenerator[TokenChunk, None]:
        """The tokens that continue the request, those of a chunk at a time; the last chunk has an end. What a stream
        lacks is asked for once more without a stream. An answer in a form, which cannot be asked for in parts, is asked
        for so from its beginning. Raises UpstreamError."""
        with self.judged():
            lacks = request.tokens_max if protocol.loses_ids and request.form else 0
            while True:
                new: list[Sampled] = []
                if lacks:
                    chunk = await self._whole(protocol, request, lacks)
                    yield chunk
                    if chunk.end:
                        return
                    request = request.after(chunk.tokens)
                lacks = 0
                async with aclosing(self._transport.events(self._token_call(protocol, request))) as events:
                    async for data in events:
                        chunk = _cut(protocol.read(data), request)
                        if chunk.total > len(new) + len(chunk.tokens):
                            lacks = chunk.total - len(new)
                            break
                        new += chunk.tokens
                        self._succeeded()
                        yield chunk
                        if chunk.end:
                            return
                if not lacks:
                    raise UpstreamBroken("ends its stream in the middle")
                request = request.after(new)

    async def _whole(self, protocol: TokenProtocol, request: TokenRequest, count: int) -> TokenChunk:
        """The next so many tokens. They are the end only if the answer ends there."""
        asked = self._token_call(protocol, request._replace(tokens_max=count), stream=False)
        chunk = _cut(protocol.read(orjson.dumps(await self._transport.fetch(asked))), request)
        self._succeeded()
        if not (chunk.tokens or chunk.end == "stop"):
            raise UpstreamBroken("gives no token ids")
        return chunk._replace(end=chunk.end if chunk.end == "stop" or count >= request.tokens_max else "")

    def _token_call(self, protocol: TokenProtocol, request: TokenRequest, *, stream: bool = True) -> Call:
        call = self.call(protocol.path, protocol.fields(request, self.model) | {"stream": stream})
        # llama.cpp's server closes connections behind streams, and the next request could be sent into a closing one.
        return replace(call, headers={**call.headers, "connection": "close"}) if protocol.loses_ids else call

    async def check(self, protocol: TokenProtocol) -> None:
        """Ask by a request without a prompt, which computes nothing, whether the server has the protocol's path. Raises
        SettingsError if it has not, and UpstreamError if it does not answer."""
        status = await self._transport.status(self.call(protocol.path, {}))
        if status in LACKING:
            path = protocol.path.removeprefix("..")
            raise SettingsError(
                f"ENGINE_OPTION tokens: {self.target.shown} answers {status} at {path}, "
                f"which must be {protocol.needs}; other servers have tokens=completions"
            )

    async def probe(self) -> Mapping[str, Any]:
        """Return what its list says of the model; a server whose kind was not told is known by it. `{}` if it is not
        listed. Raises UpstreamError."""
        listed = await self.models()
        mine = next((each for each in listed if each["id"] == self.model), {})
        owner = str((mine or (listed[0] if listed else {})).get("owned_by", "")).lower()
        if self.provider.name == "other" and owner in OWNERS:
            self.provider = PROVIDERS[OWNERS[owner]]
        return mine

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON of a whole answer. Raises UpstreamError."""
        with self.judged():
            return await self._transport.fetch(self.call(path, {"model": self.model, **body}))

    async def models(self) -> Seq[Mapping[str, Any]]:
        """Its list of models. Raises UpstreamError."""
        listed = await self._transport.fetch(self.call("/models"))
        if not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
            raise UpstreamBroken("has no list of models")
        return [each for each in listed["data"] if isinstance(each, dict) and isinstance(each.get("id"), str)]

    def call(self, path: str, body: Any = None, *, base: str = "") -> Call:
        """A call to a path below the URL, or below its root if it begins with `..`."""
        base = base or self.target.url
        url = base.removesuffix("/v1") + path.removeprefix("..") if path.startswith("..") else base + path
        return Call(url=url, headers=self._headers, body=body)

    def _succeeded(self) -> None:
        self.breaker.succeeded()
        self._reports.answer(self.quota)

    def _pause(self, seconds: float) -> None:
        log.warning("an upstream pauses", extra={"upstream": self.target.shown, "seconds": round(seconds, 2)})
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Tell the breaker how a request went. An upstream without room pauses for as long as it asks for."""
        self.breaker.begin(time.monotonic())
        try:
            yield
        except UpstreamBroken:
            self.breaker.failed(time.monotonic())
            self._reports.fail(self.quota, self._pause)
            raise
        except UpstreamBusy as error:
            self.breaker.left()
            self._pause(error.retry_after_s)
            self._reports.pause(self.quota, error.retry_after_s, refused=1)
            raise
        except (GeneratorExit, asyncio.CancelledError):
            self.breaker.left()
            raise
        except UpstreamError:
            self._succeeded()
            raise
        else:
            self._succeeded()


def _cut(chunk: TokenChunk, request: TokenRequest) -> TokenChunk:
    """The chunk with no more likely tokens than are asked for."""
    count = request.sampling.logprobs
    return chunk if count is None else chunk._replace(tokens=likeliest(chunk.tokens, count))


def key_headers(provider: Provider, key: str) -> dict[str, str]:
    own = {"anthropic-version": ANTHROPIC_VERSION} if provider.speaks == "anthropic" else {}
    if not key:
        return own
    return {**own, provider.key_header: f"Bearer {key}" if provider.key_header == "authorization" else key}
