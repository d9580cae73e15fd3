"""A worker pauses an upstream's quota, and corrects it, beside its claims."""

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared.queue import lua
from shared.queue.protocols import Quota
from shared.redis.client import translated

VERBS = ("pause_quota", "spend_quota", "fail_quota", "clear_quota")


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaking:
    """The rule of a breaker: it opens at so many failures within that time, for `first_s`, and for twice as long each
    time, up to `longest_s`."""

    failures: int
    within_s: float
    first_s: float
    longest_s: float


class RedisQuotas:
    def __init__(self, client: Redis) -> None:
        self._scripts = {name: client.register_script(lua.verbs()[name].script) for name in VERBS}

    async def pause(self, quota: Quota, seconds: float, *, refused: int = 0) -> None:
        """Let no worker claim a job for this quota for so long. `refused` requests that a claim has taken from it count
        as not sent. Raises QueueUnavailable."""
        limits = {"requests": quota.requests, "tokens": quota.tokens}
        await self._call("pause_quota", quota, milliseconds=int(seconds * 1000), refused=refused, **limits)

    async def spend(self, quota: Quota, count: int = 1) -> None:
        """Take requests that no claim has taken; a negative count gives back those that were taken and not sent. Raises
        QueueUnavailable."""
        await self._call("spend_quota", quota, count=count, requests=quota.requests, tokens=quota.tokens)

    async def fail(self, quota: Quota, breaking: Breaking) -> float:
        """Count a failure of the upstream. Return for how many seconds its breaker is open now, in which no worker
        claims a job for it; after them one job of all workers is claimed. Raises QueueUnavailable."""
        numbers = {"failures": breaking.failures, "within_ms": int(breaking.within_s * 1000)}
        numbers |= {"first_ms": int(breaking.first_s * 1000), "longest_ms": int(breaking.longest_s * 1000)}
        return int(await self._call("fail_quota", quota, **numbers)) / 1000

    async def clear(self, quota: Quota) -> None:
        """Forget the failures of an upstream that answers. Raises QueueUnavailable."""
        await self._call("clear_quota", quota)

    async def _call(self, verb: str, quota: Quota, **named: Any) -> Any:
        with translated():
            return await self._scripts[verb](args=lua.verbs()[verb].arguments({"name": quota.name, **named}))
