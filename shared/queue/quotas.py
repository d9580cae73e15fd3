"""A worker pauses an upstream's quota, and corrects it, beside its claims."""

from typing import Any

from redis.asyncio import Redis

from shared.queue import lua
from shared.queue.protocols import Quota
from shared.redis.client import translated

VERBS = ("pause_quota", "spend_quota")


class RedisQuotas:
    def __init__(self, client: Redis) -> None:
        self._scripts = {name: client.register_script(lua.verbs()[name].script) for name in VERBS}

    async def pause(self, quota: Quota, seconds: float, *, refused: int = 0) -> None:
        """Let no worker claim a job for this quota for so long. `refused` requests that a claim has taken from it count
        as not sent. Raises QueueUnavailable."""
        await self._call("pause_quota", quota, milliseconds=int(seconds * 1000), refused=refused)

    async def spend(self, quota: Quota, count: int = 1) -> None:
        """Take requests that no claim has taken; a negative count gives back those that were taken and not sent. Raises
        QueueUnavailable."""
        await self._call("spend_quota", quota, count=count)

    async def _call(self, verb: str, quota: Quota, **named: Any) -> None:
        about = {"name": quota.name, "requests": quota.requests, "tokens": quota.tokens}
        with translated():
            await self._scripts[verb](args=lua.verbs()[verb].arguments(about | named))
