"""The upstreams of one model: opened together, and their pauses told to all workers."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from workers.engines.upstream.errors import UpstreamError
from workers.engines.upstream.options import UpstreamOptions
from workers.engines.upstream.providers import MEDIA, SAMPLING_OF_SERVERS
from workers.engines.upstream.reports import RedisReports
from workers.engines.upstream.token_protocols import TokenProtocol
from workers.engines.upstream.transport import Transport
from workers.engines.upstream.upstream import Upstream
from workers.source import Resume

log = logging.getLogger(__name__)
PROBE_S = 5.0
PASSED = frozenset({"tools", "reasoning", "structured_outputs", "extra_parameters"}) | MEDIA
BY_PARAMETER = frozenset({"logprobs", "logit_bias"}) | SAMPLING_OF_SERVERS


class Upstreams:
    """Use it in one event loop."""

    def __init__(self, options: UpstreamOptions, *, model: str, redis_url: str) -> None:
        self._options = options
        self._model = model
        self._redis_url = redis_url
        self._reports: RedisReports | None = None
        self.all: list[Upstream] = []
        self.known: Mapping[str, Any] = {}  # what the first that answers says of the model

    async def open(self) -> None:
        """Ask each upstream what it is. One that does not answer is asked for answers all the same. Raises
        SettingsError for a key whose variable is not set."""
        self._transport = self._new_transport()
        self._reports = RedisReports(self._redis_url)
        self.all = [
            Upstream(target, self._transport, model=self._model, reports=self._reports)
            for target in self._options.targets
        ]
        for found in await asyncio.gather(*map(_probed, self.all)):
            self.known = self.known or found

    async def check(self, protocol: TokenProtocol) -> None:
        """Ask all upstreams. Raises SettingsError for one that answers, and does not speak the protocol."""
        if protocol.needs:
            await asyncio.gather(*(_checked(upstream, protocol) for upstream in self.all))

    async def close(self) -> None:
        await self._transport.close()
        if self._reports:
            await self._reports.close()

    async def watch(self) -> None:
        """Return, or raise EngineBroken when what computes the model here is lost. Servers of others come back."""

    @property
    def resume(self) -> Resume:
        """The class that all of them can keep, or the one that the options name."""
        if self._options.resume:
            return Resume(self._options.resume)
        each = {upstream.provider.resume for upstream in self.all}
        return Resume.PREFILL if each == {Resume.PREFILL} else Resume.RESTART

    @property
    def serves(self) -> frozenset[str]:
        completes = all(upstream.provider.completes for upstream in self.all)
        usual = {"chat", "complete"} if completes else {"chat"}
        return frozenset(self._options.serves or usual)

    @property
    def abilities(self) -> frozenset[str]:
        lacking = frozenset(told_lacking(self.known)).union(
            *(upstream.provider.lacks | set(upstream.target.lacks) for upstream in self.all)
        )
        ids = {"token_ids"} if "complete" in self.serves else set()
        return (PASSED | BY_PARAMETER | ids) - lacking

    @property
    def context_length(self) -> int:
        """The most tokens of prompt and answer; 0 if nobody says."""
        told = self.known.get("max_model_len") or (self.known.get("meta") or {}).get("n_ctx_train")
        return self._options.context_length or (told if isinstance(told, int) else 0)

    def _new_transport(self) -> Transport:
        return Transport(silence_s=self._options.silence_s)


def told_lacking(listed: Mapping[str, Any]) -> Iterator[str]:
    """Yield the abilities that a server's list of models says the model has not: Penstock names all that it has,
    Mistral those that its models differ in, OpenRouter the kinds of content."""
    capabilities, about = listed.get("capabilities"), listed.get("architecture")
    if isinstance(capabilities, list) and "chat" in capabilities:
        yield from (each for each in MEDIA | {"tools", "reasoning"} if each not in capabilities)
    if isinstance(capabilities, dict):
        named = {"vision": "images", "function_calling": "tools"}
        yield from (ours for theirs, ours in named.items() if capabilities.get(theirs) is False)
    kinds = about.get("input_modalities") if isinstance(about, dict) else None
    if isinstance(kinds, list) and "text" in kinds:
        named = {"image": "images", "audio": "audio", "video": "video", "file": "files"}
        yield from (ours for theirs, ours in named.items() if theirs not in kinds)


async def _checked(upstream: Upstream, protocol: TokenProtocol) -> None:
    try:
        async with asyncio.timeout(PROBE_S):
            await upstream.check(protocol)
    except (UpstreamError, TimeoutError) as error:
        log.warning("an upstream does not answer yet", extra={"upstream": upstream.target.shown, "error": str(error)})


async def _probed(upstream: Upstream) -> Mapping[str, Any]:
    try:
        async with asyncio.timeout(PROBE_S):
            return await upstream.probe()
    except (UpstreamError, TimeoutError) as error:
        log.warning(
            "an upstream does not list its models", extra={"upstream": upstream.target.shown, "error": str(error)}
        )
        return {}
