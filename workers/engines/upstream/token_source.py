"""The token upstream: token ids go out and come back, so an answer goes on exactly, here or on any other worker."""

from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Seq
from contextlib import aclosing

from shared.domain.events import Usage
from workers.engines.upstream.attempts import Attempts, refusal
from workers.engines.upstream.errors import UpstreamError, UpstreamRefused
from workers.engines.upstream.token_protocols import TokenProtocol, TokenRequest, spoken_by
from workers.engines.upstream.upstream import Upstream
from workers.scheduling.sequence import Sampled
from workers.source import ChatSource, Resume


class TokenSource(ChatSource):
    """`end` is the token that ends an answer, for a server that does not give it."""

    resume = Resume.EXACT

    def __init__(self, upstreams: Seq[Upstream], protocol: TokenProtocol, *, end: int) -> None:
        self._upstreams = upstreams
        self._protocol = protocol
        self._end = end

    @property
    def protocol(self) -> TokenProtocol:
        """The protocol whose limits a request must keep, whichever upstream gets it: that of the narrowest one."""
        spoken = [spoken_by(upstream.provider.name, self._protocol) for upstream in self._upstreams]
        return next((each for each in spoken if each is not self._protocol), self._protocol)

    def cost(self, usage: Usage) -> int:
        """Return the cost by the first upstream's price."""
        return self._upstreams[0].cost(usage)

    async def tokens(self, request: Callable[[], TokenRequest], *, quota: str = "") -> AsyncIterator[Sampled]:
        """The tokens of an answer. Each is in what `request` returns before the next is asked for, so another upstream
        continues where one broke off. The one with `quota` is asked first. Raises AnswerLost, Busy, EngineError and
        InvalidRequest."""
        attempts, begun = Attempts(self._upstreams, quota=quota), False
        for upstream in attempts:
            grown, protocol = False, spoken_by(upstream.provider.name, self._protocol)
            try:
                async with aclosing(upstream.tokens(protocol, request())) as chunks:
                    async for chunk in chunks:
                        for token in chunk.tokens:
                            grown = begun = True
                            yield token
                if chunk.end == "stop":
                    yield Sampled(self._end)
                return
            except UpstreamRefused as error:
                raise refusal(error, begun=begun) from error
            except UpstreamError as error:
                attempts.failed(upstream, error, begun=grown)
        raise attempts.verdict(begun=begun)
