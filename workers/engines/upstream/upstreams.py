"""The upstreams of one model: opened together, and their pauses told to all workers."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from redis.asyncio import Redis

from shared.domain.errors import QueueUnavailable
from shared.queue.quotas import RedisQuotas
from shared.redis.client import connect
from workers.engines.upstream.errors import UpstreamError
from workers.engines.upstream.options import UpstreamOptions
from workers.engines.upstream.providers import SAMPLING_OF_SERVERS
from workers.engines.upstream.transport import Transport
from workers.engines.upstream.upstream import Upstream
from workers.source import Resume

log = logging.getLogger(__name__)
PROBE_S = 5.0
TELLING_MAX = 64
PASSED = frozenset(
    {"tools", "reasoning", "structured_outputs", "images", "audio", "video", "files", "extra_parameters"}
)
BY_PARAMETER = frozenset({"logprobs", "logit_bias"}) | SAMPLING_OF_SERVERS


class Upstreams:
    """Use it in one event loop."""

    def __init__(self, options: UpstreamOptions, *, model: str, redis_url: str) -> None:
        self._options = options
        self._model = model
        self._redis_url = redis_url
        self._redis: Redis | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self.all: list[Upstream] = []
        self.known: Mapping[str, Any] = {}  # what the first that answers says of the model

    async def open(self) -> None:
        """Ask each upstream what it is. One that does not answer is asked for answers all the same. Raises
        SettingsError for a key whose variable is not set."""
        self._transport = self._new_transport()
        self._redis = connect(self._redis_url)
        self._quotas = RedisQuotas(self._redis)
        self.all = [
            Upstream(target, self._transport, model=self._model, paused=self._pause, spent=self._spend)
            for target in self._options.targets
        ]
        for found in await asyncio.gather(*map(_probed, self.all)):
            self.known = self.known or found

    async def close(self) -> None:
        await self._transport.close()
        for task in self._telling:
            task.cancel()
        if self._redis:
            await self._redis.aclose()

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
        lacking = frozenset().union(*(upstream.provider.lacks for upstream in self.all))
        ids = {"token_ids"} if "complete" in self.serves else set()
        return (PASSED | (BY_PARAMETER - lacking) | ids) - ({"structured_outputs"} & lacking)

    @property
    def context_length(self) -> int:
        """The most tokens of prompt and answer; 0 if nobody says."""
        told = self.known.get("max_model_len") or (self.known.get("meta") or {}).get("n_ctx_train")
        return self._options.context_length or (told if isinstance(told, int) else 0)

    def _new_transport(self) -> Transport:
        return Transport(silence_s=self._options.silence_s)

    def _pause(self, upstream: Upstream, seconds: float, refused: int) -> None:
        """Let no worker claim a job for the upstream for so long."""
        log.warning("an upstream pauses", extra={"upstream": upstream.target.shown, "seconds": round(seconds, 2)})
        self._tell(self._quotas.pause(upstream.quota, seconds, refused=refused))

    def _spend(self, upstream: Upstream, count: int) -> None:
        if upstream.quota.requests or upstream.quota.tokens:
            self._tell(self._quotas.spend(upstream.quota, count))

    def _tell(self, telling: Coroutine[Any, Any, None]) -> None:
        """Tell Redis, while the answer goes on."""
        if len(self._telling) >= TELLING_MAX:
            telling.close()
            return
        task = asyncio.ensure_future(_told(telling))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


async def _told(telling: Coroutine[Any, Any, None]) -> None:
    try:
        await telling
    except QueueUnavailable as error:
        log.warning("redis was not told of a quota", extra={"error": str(error)})


async def _probed(upstream: Upstream) -> Mapping[str, Any]:
    try:
        async with asyncio.timeout(PROBE_S):
            return await upstream.probe()
    except (UpstreamError, TimeoutError) as error:
        log.warning(
            "an upstream does not list its models", extra={"upstream": upstream.target.shown, "error": str(error)}
        )
        return {}
